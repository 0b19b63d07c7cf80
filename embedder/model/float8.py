"""The layers with products in float8: weights quantised once per output channel, activations per row.

Token states stay bfloat16. What precedes a product quantises its input: the norms, GELU, and a kernel of its own after
attention. On a CPU the products are computed in float32 from the quantised numbers: for tests, not for use.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedder.errors import ConfigurationError
from embedder.model.attention import Packing, attention
from embedder.model.kernels import float8
from embedder.model.kernels.float8 import Quantised
from embedder.model.transformer import Embedding, Norm

Float8Linear = Callable[[Quantised], Tensor]
"""[T, K] -> bfloat16 [T, N]."""

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
    """One transformer layer, post-norm; see `Layer`. A piece of its token-wise parts is everything."""

    qkv: Float8Linear  # [T, H] -> [T, 3 H]
    attended: Float8Linear  # [T, H] -> [T, H]
    attention_norm: Norm
    up: Float8Linear  # [T, H] -> [T, F], without GELU
    down: Float8Linear  # [T, F] -> [T, H]
    output_norm: Norm
    heads: int

    def __call__(self, x: Float8States | Tensor, packing: Packing, yield_point: Callable[[], None]) -> Float8States:
        """[T, H] -> [T, H]; `yield_point` is called after each piece. Plain states are quantised first."""
        if isinstance(x, Tensor):
            x = Float8States(x, float8.quantise(x))
        context = attention(self.qkv(x.quantised), packing, self.heads, yield_point)
        x = _sum_norm(self.attention_norm, self.attended(float8.quantise(context)), x)
        x = _sum_norm(self.output_norm, self.down(float8.gelu_quantise(self.up(x.quantised))), x)
        yield_point()
        return x


def _sum_norm(norm: Norm, x: Tensor, residual: Float8States) -> Float8States:
    return Float8States(*float8.add_norm_quantise(x, residual.exact, norm.weight, norm.bias, norm.epsilon))


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

    def apply(x: Quantised) -> Tensor:
        return float8.scaled_product(x, quantised, rounded)

    return apply
