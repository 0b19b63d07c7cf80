"""The layers of XLM-RoBERTa over texts without padding, in pieces short enough to give way between them.

Token-wise layers see the concatenated tokens [T, H]; only attention looks at texts. On a CPU both run piece
by piece: a piece keeps its intermediate results in the cache, and between two pieces a batch of passages can
let a query pass. On a GPU a piece is everything.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder.engine import GiveWay
from embedder.linear import Linear

try:
    from torch.nn.attention.varlen import varlen_attn
except ImportError:  # torch before 2.10
    varlen_attn = None  # type: ignore[assignment]

_UNSPLIT: dict[str, Any] = (
    {"num_splits": 1} if varlen_attn is not None and "num_splits" in signature(varlen_attn).parameters else {}
)
"""A text's sums are not split by the length of the longest text beside it, where torch lets one say so."""
_ROWS = 512
"""Rows of a piece on a CPU: above it the rate of the products grows no more."""
_SCORES = 1 << 21
"""Attention scores of a piece on a CPU, per head: about the arithmetic of a piece of rows."""
_FLASH_HEAD = 256
"""Widest head of the flash kernels; narrower ones must be multiples of 8."""


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
        bounds: int32 [B + 1] on the device, where the variable-length kernel serves; else None.
        longest: tokens of the longest text.
    """

    rows: tuple[slice, ...]
    spans: tuple[Span, ...]
    bounds: Tensor | None
    longest: int

    @classmethod
    def of(cls, lengths: np.ndarray, device: str, *, flash: bool) -> Packing:
        """Cut a batch of texts with these lengths, shortest first.

        Args:
            lengths: int32 [B], ascending.
            device: where the batch runs.
            flash: whether the variable-length kernel may serve (`serves_flash`).
        """
        tokens, longest = int(lengths.sum()), int(lengths[-1])
        if device != "cpu":
            bounds = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
            on_device = bounds.pin_memory().to(device, non_blocking=True) if flash else None
            return cls((slice(0, tokens),), () if flash else _spans(lengths, tokens**2), on_device, longest)
        pieces = -(-tokens // _ROWS)
        edges = [tokens * n // pieces for n in range(pieces + 1)]
        rows = tuple(slice(start, end) for start, end in itertools.pairwise(edges))
        return cls(rows, _spans(lengths, _SCORES), None, longest)


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


def serves_flash(device: str, dtype: torch.dtype, head: int) -> bool:
    """Whether the variable-length flash kernel takes heads of this width and type on this device."""
    return (
        varlen_attn is not None
        and device != "cpu"
        and dtype in (torch.float16, torch.bfloat16)
        and head % 8 == 0
        and head <= _FLASH_HEAD
        and torch.backends.cuda.is_flash_attention_available()
        and torch.cuda.get_device_capability(device) >= (8, 0)
    )


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
    if packing.bounds is not None:
        q, k, v = apart.unbind(1)  # each [T, heads, H / heads]
        bounds, longest = packing.bounds, packing.longest
        flash: Tensor = varlen_attn(q, k, v, bounds, bounds, longest, longest, **_UNSPLIT)  # type: ignore[assignment]
        return flash.reshape(tokens, width // 3)
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
