"""The layers of XLM-RoBERTa over texts without padding, in pieces short enough to give way between them.

Token-wise layers see the concatenated tokens [T, H]; only attention looks at texts. On a CPU both run piece
by piece: a piece keeps its intermediate results in the cache, and between two pieces a batch of passages can
let a query pass. On a GPU a piece is everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder.engine import GiveWay
from embedder.flash import Flash
from embedder.linear import Linear

_ROWS = 512
"""Rows of a piece on a CPU: above it the rate of the products grows no more."""
_SCORES = 1 << 21
"""Attention scores of a piece on a CPU, per head: about the arithmetic of a piece of rows."""


@dataclass(frozen=True, slots=True)
class Span:
    """Texts of one length that lie side by side, or a part of one long text's queries.

    Attributes:
        start: first token, in [T].
        texts: number of texts.
        length: tokens of each.
        first: the first position of each text that attends in this piece.
        last: the position behind the last.
    """

    start: int
    texts: int
    length: int
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Packing:
    """How a batch is cut into pieces; made once and used by every layer.

    Attributes:
        rows: ranges of tokens that cover [T], for the token-wise layers.
        spans: the pieces of attention.
        longest: tokens of the longest text.
        flash: the variable-length kernel, where it serves; else None.
        bounds: int32 [B + 1] on the device, for the kernel.
    """

    rows: tuple[slice, ...]
    spans: tuple[Span, ...]
    longest: int
    flash: Flash | None = None
    bounds: Tensor | None = None

    @classmethod
    def of(cls, lengths: np.ndarray, device: str, *, flash: Flash | None) -> Packing:
        """Cut a batch of texts with these lengths, shortest first.

        Args:
            lengths: int32 [B], ascending.
            device: where the batch runs.
            flash: its variable-length kernel, if it has one (`flash_kernel`).
        """
        tokens, longest = int(lengths.sum()), int(lengths[-1])
        whole = (slice(0, tokens),)
        if flash is not None:
            bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            return cls(whole, (), longest, flash, bounds.pin_memory().to(device, non_blocking=True))
        if device != "cpu":
            return cls(whole, _spans(lengths, tokens**2), longest)
        pieces = -(-tokens // _ROWS)
        edges = [tokens * n // pieces for n in range(pieces + 1)]
        return cls(tuple(slice(*piece) for piece in itertools.pairwise(edges)), _spans(lengths, _SCORES), longest)


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

    def __call__(self, x: Tensor, packing: Packing, give_way: GiveWay) -> Tensor:
        """[T, H] -> [T, H]; `give_way` is called after each piece."""
        context = _attention(_by_rows(self.qkv, packing, give_way, x), packing, self.heads, give_way)
        return _by_rows(self._rest, packing, give_way, x, context)

    def _rest(self, x: Tensor, context: Tensor) -> Tensor:
        x = self.attention_norm(self.attended(context).add_(x))
        return self.output_norm(self.down(self.up(x)).add_(x))


def _by_rows(function: Callable[..., Tensor], packing: Packing, give_way: GiveWay, *inputs: Tensor) -> Tensor:
    """A token-wise function of [T, ...] inputs, piece by piece."""
    if len(packing.rows) == 1:
        whole = function(*inputs)
        give_way()
        return whole
    parts = []
    for rows in packing.rows:
        parts.append(function(*(x[rows] for x in inputs)))
        give_way()
    return torch.cat(parts)


def _attention(qkv: Tensor, packing: Packing, heads: int, give_way: GiveWay) -> Tensor:
    """Softmax attention within each text: [T, 3 H] -> [T, H]."""
    tokens, width = qkv.shape
    apart = qkv.view(tokens, 3, heads, -1)
    if packing.flash is not None and packing.bounds is not None:
        q, k, v = apart.unbind(1)  # each [T, heads, H / heads]
        return packing.flash(q, k, v, packing.bounds, packing.longest).reshape(tokens, width // 3)
    context = torch.empty(tokens, heads, apart.shape[-1], dtype=qkv.dtype, device=qkv.device)
    for span in packing.spans:
        end = span.start + span.texts * span.length
        # each of q, k, v is [texts, heads, L, H / heads]
        q, k, v = apart[span.start : end].view(span.texts, span.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        found = functional.scaled_dot_product_attention(q[:, :, span.first : span.last], k, v)
        place = context[span.start : end].view(span.texts, span.length, heads, -1)
        place[:, span.first : span.last] = found.transpose(1, 2)
        give_way()
    return context.view(tokens, width // 3)


def _spans(lengths: np.ndarray, scores: int) -> tuple[Span, ...]:
    """Pieces of at most `scores` attention scores per head, of one row at least; lengths ascend."""
    spans: list[Span] = []
    start = 0
    for length, run in itertools.groupby(lengths.tolist()):
        texts = len(list(run))
        together = min(texts, max(1, scores // length**2))
        rows = min(length, max(1, scores // length)) if together == 1 else length
        for text in range(0, texts, together):
            count = min(together, texts - text)
            spans.extend(
                Span(start, count, length, first, min(first + rows, length)) for first in range(0, length, rows)
            )
            start += count * length
    return tuple(spans)
