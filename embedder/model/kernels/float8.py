"""Products in float8, and the kernels before them, which quantise what they write.

A row is quantised symmetrically by its largest number: values = row / scale, scale = max|row| / 448, in the type e4m3.
So a text's vectors do not depend on the texts beside it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.kernels.launch import has_triton

VALUE_TYPE = torch.float8_e4m3fn
VALUE_MAX = 448.0
"""Largest number of `VALUE_TYPE`."""
SCALE_MIN = 1e-12
"""Keeps the scale of an all-zero row above zero."""


class Quantised(NamedTuple):
    """Rows in float8.

    Attributes:
        values: float8 e4m3 [T, K].
        scales: float32 [T, 1]; a row is its values times its scale.
    """

    values: Tensor
    scales: Tensor


def quantise(x: Tensor) -> Quantised:
    """The rows [T, K] in float8; one with a number that is not finite has NaN."""
    if has_triton(x.device):
        from embedder.model.kernels import triton_float8

        return Quantised(*triton_float8.quantise(x, gelu=False))
    return quantised_rows(x.float())


def gelu_quantise(x: Tensor) -> Quantised:
    """The exact GELU of the rows [T, K], in float8."""
    if has_triton(x.device):
        from embedder.model.kernels import triton_float8

        return Quantised(*triton_float8.quantise(x, gelu=True))
    return quantised_rows(functional.gelu(x.float()))


def add_norm_quantise(  # noqa: PLR0917 - as `norms.add_norm`
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    epsilon: float,
    out: tuple[Tensor, Quantised] | None = None,
) -> tuple[Tensor, Quantised]:
    """See `norms.add_norm`: the result in the type of `x`, and in float8 from before that was rounded."""
    if has_triton(x.device):
        from embedder.model.kernels import triton_float8

        target = None if out is None else (out[0], *out[1])
        y, values, scales = triton_float8.add_norm_quantise(x, residual, weight, bias, epsilon, out=target)
        return y, Quantised(values, scales)
    exact, quantised = _norm_quantised(x.float() + residual.float(), weight, bias, epsilon, x.dtype)
    if out is None:
        return exact, quantised
    values, scales = out[1]
    return out[0].copy_(exact), Quantised(values.copy_(quantised.values), scales.copy_(quantised.scales))


def embed_norm_quantise(  # noqa: PLR0917 - as `norms.embed_norm`
    ids: Tensor, positions: Tensor, words: Tensor, position_table: Tensor, weight: Tensor, bias: Tensor, epsilon: float
) -> tuple[Tensor, Quantised]:
    """See `norms.embed_norm`: the result in the type of the states, and in float8 from before that was rounded."""
    if has_triton(words.device):
        from embedder.model.kernels import triton_float8

        y, values, scales = triton_float8.embed_norm_quantise(
            ids, positions, words, position_table, weight, bias, epsilon
        )
        return y, Quantised(values, scales)
    x = functional.embedding(ids, words).float() + functional.embedding(positions, position_table).float()
    return _norm_quantised(x, weight, bias, epsilon, position_table.dtype)


def scaled_product(x: Quantised, weight: Quantised, bias: Tensor, out: Tensor | None = None) -> Tensor:
    """bfloat16 [T, N]: `x` [T, K] times the transpose of `weight` [N, K], plus `bias`.

    Args:
        x: activations; K a multiple of 16.
        weight: one scale per output channel; N a multiple of 16.
        bias: bfloat16 [N].
        out: bfloat16 [T, N], where the result is written; None for new memory.
    """
    if x.values.is_cuda:
        product: Tensor = torch._scaled_mm(  # noqa: SLF001 - torch has no public product of rows with scales
            x.values,
            weight.values.t(),
            scale_a=x.scales,
            scale_b=weight.scales.t(),
            bias=bias,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
            out=out,
        )
        return product
    exact = functional.linear(x.values.float(), weight.values.float()) * x.scales * weight.scales.t()
    rounded = (exact + bias.float()).to(torch.bfloat16)
    return rounded if out is None else out.copy_(rounded)


def quantised_rows(x: Tensor) -> Quantised:
    """The plain form of `quantise`, of float32 rows on any device; the weights are quantised by it."""
    scales = (x.abs().amax(dim=1, keepdim=True) / VALUE_MAX).clamp_(min=SCALE_MIN)
    return Quantised((x * scales.reciprocal()).to(VALUE_TYPE), scales)


def _norm_quantised(
    x: Tensor, weight: Tensor, bias: Tensor, epsilon: float, dtype: torch.dtype
) -> tuple[Tensor, Quantised]:
    y = functional.layer_norm(x, weight.shape, weight.float(), bias.float(), epsilon)
    return y.to(dtype), quantised_rows(y)
