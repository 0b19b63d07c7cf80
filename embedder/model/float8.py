"""The layers with products in float8: weights quantised once per output channel, activations per row.

Token states stay bfloat16. The norms and GELU, which precede the products in float8, quantise their input. The product
after attention stays bfloat16, too: it is a twelfth of the arithmetic, and would make a quarter of the error. On a CPU
the products in float8 are computed in float32 from the quantised numbers: for tests, not for use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from embedder.errors import ConfigurationError
from embedder.model.attention import Packing, attention
from embedder.model.kernels import float8
from embedder.model.kernels.float8 import Quantised
from embedder.model.linear import Linear
from embedder.model.transformer import Embedding, Norm


class Float8Linear(Protocol):
    """[T, K] -> bfloat16 [T, N]."""

    def __call__(self, x: Quantised, *, out: Tensor | None = None) -> Tensor:
        """The product, written to `out` if given."""
        ...


_STEP = 16
"""The products take widths that are multiples of it."""


@dataclass(frozen=True, slots=True)
class Float8States:
    """The states [T, H] between two layers.

    Attributes:
        exact: bfloat16, for the residual and the heads.
        quantised: float8, for the next product.
    """

    exact: Tensor
    quantised: Quantised

    @classmethod
    def empty(cls, like: Tensor) -> Float8States:
        """Memory for states of the shape and the type of these plain ones."""
        values = torch.empty(like.shape, dtype=float8.VALUE_TYPE, device=like.device)
        scales = torch.empty(len(like), 1, dtype=torch.float32, device=like.device)
        return cls(torch.empty_like(like), Quantised(values, scales))

    def __getitem__(self, rows: slice) -> Float8States:
        return Float8States(self.exact[rows], Quantised(self.quantised.values[rows], self.quantised.scales[rows]))


@dataclass(frozen=True, slots=True)
class Float8Embedding:
    """The states that the layers start from; see `Embedding`."""

    table: Embedding

    def __call__(self, ids: Tensor, positions: Tensor) -> Float8States:
        """int32 [T], ids and positions -> [T, H]."""
        table, norm = self.table, self.table.norm
        return Float8States(
            *float8.embed_norm_quantise(
                ids, positions, table.words, table.positions, norm.weight, norm.bias, norm.epsilon
            )
        )


@dataclass(frozen=True, slots=True)
class Float8Layer:
    """One transformer layer, post-norm; see `Layer`."""

    qkv: Float8Linear  # [T, H] -> [T, 3 H]
    attended: Linear  # [T, H] -> [T, H], bfloat16
    attention_norm: Norm
    up: Float8Linear  # [T, H] -> [T, F], without GELU
    down: Float8Linear  # [T, F] -> [T, H]
    output_norm: Norm
    heads: int

    def __call__(self, x: Float8States | Tensor, packing: Packing, yield_point: Callable[[], None]) -> Float8States:
        """[T, H] -> [T, H]; `yield_point` is called after each piece. Plain states are quantised first."""
        if isinstance(x, Tensor):
            x = Float8States(x, float8.quantise(x))
        tokens, hidden = x.exact.shape
        qkv = torch.empty(tokens, 3 * hidden, dtype=x.exact.dtype, device=x.exact.device)
        for rows in packing.rows:
            self.qkv(x[rows].quantised, out=qkv[rows])
            yield_point()
        context = attention(qkv, packing, self.heads, yield_point)
        out = Float8States.empty(x.exact)
        for rows in packing.rows:
            self._rest(x[rows], context[rows], out[rows])
            yield_point()
        return out

    def _rest(self, x: Float8States, context: Tensor, out: Float8States) -> None:
        middle = _sum_norm(self.attention_norm, self.attended(context), x)
        _sum_norm(self.output_norm, self.down(float8.gelu_quantise(self.up(middle.quantised))), middle, out)


def _sum_norm(norm: Norm, x: Tensor, residual: Float8States, out: Float8States | None = None) -> Float8States:
    target = None if out is None else (out.exact, out.quantised)
    return Float8States(*float8.add_norm_quantise(x, residual.exact, norm.weight, norm.bias, norm.epsilon, out=target))


def prepare_float8(weight: Tensor, bias: Tensor) -> Float8Linear:
    """A linear layer whose weight is quantised once.

    Args:
        weight: float32 [N, K], on its device.
        bias: float32 [N], on the same device.

    Raises:
        ConfigurationError: a width of the model does not fit the products.
    """
    if any(width % _STEP for width in weight.shape):
        raise ConfigurationError(
            f"DTYPE=float8 needs layers whose widths are multiples of {_STEP}; the model has one of "
            f"{weight.shape[1]} x {weight.shape[0]}: use auto or float16"
        )
    quantised, rounded = float8.quantised_rows(weight), bias.to(torch.bfloat16)

    def apply(x: Quantised, *, out: Tensor | None = None) -> Tensor:
        return float8.scaled_product(x, quantised, rounded, out=out)

    return apply
