"""The layers of XLM-RoBERTa over texts without padding, in pieces short enough to yield between them.

Token-wise layers see the concatenated tokens [T, H]; only attention looks at texts. On a CPU both run piece
by piece: a piece keeps its intermediate results in the cache, and between two pieces a batch of passages can
yield to a query. On a GPU a piece is everything.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.attention import Packing, attention
from embedder.model.linear import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm over the last axis."""

    weight: Tensor  # [H]
    bias: Tensor  # [H]
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        """[T, H] -> [T, H]."""
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class Layer:
    """One transformer layer, post-norm; query, key and value are one product."""

    qkv: Linear  # [T, H] -> [T, 3 H]
    attended: Linear  # [T, H] -> [T, H]
    attention_norm: Norm
    up: Linear  # [T, H] -> [T, F], GELU included
    down: Linear  # [T, F] -> [T, H]
    output_norm: Norm
    heads: int

    def __call__(self, x: Tensor, packing: Packing, yield_point: Callable[[], None]) -> Tensor:
        """[T, H] -> [T, H]; `yield_point` is called after each piece."""
        context = attention(_by_rows(self.qkv, packing, yield_point, x), packing, self.heads, yield_point)
        return _by_rows(self._rest, packing, yield_point, x, context)

    def _rest(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention_norm(self.attended(context).add_(x))
        return self.output_norm(self.down(self.up(x)).add_(x))


def _by_rows(
    function: Callable[..., Tensor], packing: Packing, yield_point: Callable[[], None], *inputs: Tensor
) -> Tensor:
    """A token-wise function of [T, ...] inputs, piece by piece."""
    if len(packing.rows) == 1:
        whole = function(*inputs)
        yield_point()
        return whole
    parts = []
    for rows in packing.rows:
        parts.append(function(*(x[rows] for x in inputs)))
        yield_point()
    return torch.cat(parts)
