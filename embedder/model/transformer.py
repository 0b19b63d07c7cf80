"""The layers of XLM-RoBERTa over texts without padding, in pieces short enough to yield between them.

Token-wise layers see the concatenated tokens [T, H]; only attention looks at texts. On a CPU both run piece
by piece: a piece keeps its intermediate results in the cache, and between two pieces a batch of passages can
yield to a query. On a GPU pieces are larger and for token-wise layers alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from embedder.model import kernels
from embedder.model.attention import Packing, attention
from embedder.model.linear import Linear


@dataclass(frozen=True, slots=True)
class Norm:
    """Layer norm over the last axis."""

    weight: Tensor  # [H]
    bias: Tensor  # [H]
    epsilon: float

    def of_sum(self, x: Tensor, residual: Tensor, out: Tensor | None = None) -> Tensor:
        """Norm of `x + residual`, [T, H] each; `x` may be overwritten."""
        return kernels.add_norm(x, residual, self.weight, self.bias, self.epsilon, out=out)


@dataclass(frozen=True, slots=True)
class Embedding:
    """The states that the layers start from.

    Attributes:
        words: [V, H], token embeddings; on a CPU in the type of the file, and left in the file until touched.
        positions: [P, H], position embeddings, with the embedding of the single token type added.
        norm: of the sum of both.
    """

    words: Tensor
    positions: Tensor
    norm: Norm

    def __call__(self, ids: Tensor, positions: Tensor) -> Tensor:
        """int32 [T], ids and positions -> [T, H]."""
        norm = self.norm
        return kernels.embed_norm(ids, positions, self.words, self.positions, norm.weight, norm.bias, norm.epsilon)


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
        qkv = _by_rows(self.qkv, 3 * x.shape[1], packing, yield_point, x)
        context = attention(qkv, packing, self.heads, yield_point)
        return _by_rows(self._rest, x.shape[1], packing, yield_point, x, context)

    def _rest(self, x: Tensor, context: Tensor, out: Tensor | None = None) -> Tensor:
        x = self.attention_norm.of_sum(self.attended(context), x)
        return self.output_norm.of_sum(self.down(self.up(x)), x, out)


def _by_rows(
    function: Callable[..., Tensor], width: int, packing: Packing, yield_point: Callable[[], None], *inputs: Tensor
) -> Tensor:
    """A token-wise function of [T, ...] inputs, piece by piece: [T, width]."""
    if len(packing.rows) == 1:
        whole = function(*inputs)
        yield_point()
        return whole
    out = torch.empty(len(inputs[0]), width, dtype=inputs[0].dtype, device=inputs[0].device)
    for rows in packing.rows:
        function(*(x[rows] for x in inputs), out=out[rows])
        yield_point()
    return out
