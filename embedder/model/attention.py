"""Attention within the texts of a batch that are concatenated without padding.

On CUDA one call attends over all texts of a batch: in 16 bits our kernel by tiles or, where Triton does not run, the
variable-length kernel of torch. Else texts of one length are computed together; on a CPU in pieces short enough to
yield between them, and where oneDNN multiplies bfloat16 much faster than torch's kernel for CPUs does, by its products.
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

from embedder.model.kernels import has_triton, packed_attention, text_spans_of, tiles_of
from embedder.model.row_pieces import row_pieces

Flash = Callable[[Tensor, Tensor, Tensor, Tensor, int], Tensor]
"""(q, k, v, bounds, longest) -> context: [T, heads, D] each; bounds int32 [B + 1], where the texts begin and end."""

_FLASH_HEAD_MAX_WIDTH = 256
"""Widest head of the flash kernels; narrower ones must be multiples of 8."""

WIDE_TILES_MIN_TOKENS = 96
"""Mean tokens per text from which tiles have 128 queries rather than 64."""
PRODUCT_MIN_TOKENS = 32
"""Tokens of a text from which attention by products pays: shorter ones are hardly longer than the calls."""
_PRODUCT_SCORES = 1 << 22
"""Scores that attention by products holds at a time, over all heads: 8 MB, twice."""
_PRODUCT_STEP_MIN = 16
"""Least step between two sizes of a product of attention."""
_PRODUCT_STEPS_BITS = 4
"""Below a power of two there are at most as many sizes as 2 to this power, half of them above the one before it."""
_GPU_PIECE_ROWS = 8192
"""Rows of a piece on a GPU: the products reach their full rate, and what one kernel writes the next finds in the L2."""


@dataclass(frozen=True, slots=True)
class PieceSizes:
    """Sizes of the pieces between which a pass on a CPU can yield.

    Attributes:
        rows: most tokens of a piece of a token-wise layer; above 512 the rate of the products does not grow.
        scores: most attention scores of a piece, per head; the default takes about as long as a piece of rows.
    """

    rows: int = 512
    scores: int = 1 << 21


DEFAULT_PIECES = PieceSizes()


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
    """The division of a batch into pieces; made once and used by every layer.

    Attributes:
        rows: ranges of rows for the token-wise layers; on a CPU they cover a few rows behind the tokens as well.
        spans: the pieces of attention; empty with a variable-length kernel.
        longest: tokens of the longest text; 0 where a batch is given by tiles.
        flash: the variable-length kernel, or None.
        bounds: int32 [B + 1] on the device, for the variable-length kernel.
        tiles: int32 [N, 4] on the device, for attention by tiles (`kernels.tiles_of`).
        text_spans: int32 [T, 2] on the device, where the text of each token starts and ends, for attention by tiles.
        block: most queries of a tile.
        by_products: whether a CPU attends by products in bfloat16 (`attention_by_products`), but for short texts.
    """

    rows: tuple[slice, ...]
    spans: tuple[Span, ...]
    longest: int
    flash: Flash | None = None
    bounds: Tensor | None = None
    tiles: Tensor | None = None
    text_spans: Tensor | None = None
    block: int = 0
    by_products: bool = False

    @classmethod
    def of(
        cls,
        lengths: np.ndarray,
        device: str,
        *,
        flash: Flash | None,
        tiled: bool = False,
        by_products: bool = False,
        pieces: PieceSizes = DEFAULT_PIECES,
    ) -> Packing:
        """Cut a batch of texts with these lengths, shortest first.

        Args:
            lengths: int32 [B], ascending.
            device: where the batch runs.
            flash: the variable-length kernel of the device, or None (`flash_kernel`).
            tiled: whether the device attends by tiles (`attends_by_tiles`).
            by_products: whether a CPU attends by products in bfloat16.
            pieces: sizes on a CPU; on a GPU a piece is everything.
        """
        tokens, longest = int(lengths.sum()), int(lengths[-1])
        if tiled:
            block = tile_block(tokens / len(lengths))
            tiles, text_spans = tiles_of(lengths, block), text_spans_of(lengths)
            return cls.of_tiles(tokens, _copied(tiles, device), _copied(text_spans, device), block=block)
        if flash is not None:
            bounds = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
            return cls(_gpu_pieces(tokens), (), longest, flash, _copied(bounds, device))
        if device != "cpu":
            return cls(_gpu_pieces(tokens), _spans(lengths, tokens**2), longest)
        return cls(row_pieces(tokens, pieces.rows), _spans(lengths, pieces.scores), longest, by_products=by_products)

    @classmethod
    def of_tiles(cls, tokens: int, tiles: Tensor, text_spans: Tensor, *, block: int) -> Packing:
        """A packing of tensors that are already on a GPU, as a CUDA graph reads them: rows of zeros are no tiles.

        Args:
            tokens: T.
            tiles: int32 [N, 4], as `kernels.tiles_of` cuts them; padded up to `kernels.tile_count_max`.
            text_spans: int32 [T, 2], as of `kernels.text_spans_of`.
            block: most queries of a tile, 64 or 128.
        """
        return cls(_gpu_pieces(tokens), (), 0, tiles=tiles, text_spans=text_spans, block=block)


def tile_block(mean_tokens: float) -> int:
    """Queries of a tile for a batch of texts with so many tokens each."""
    return 128 if mean_tokens >= WIDE_TILES_MIN_TOKENS else 64


def _gpu_pieces(tokens: int) -> tuple[slice, ...]:
    """Pieces that cover [T]; a rest of less than half a piece belongs to the last one."""
    edges = [*range(0, max(tokens - _GPU_PIECE_ROWS // 2, 1), _GPU_PIECE_ROWS), tokens]
    return tuple(slice(*edge) for edge in itertools.pairwise(edges))


def attends_by_tiles(device: str, dtype: torch.dtype) -> bool:
    """Whether attention by tiles is available: on GPUs that run Triton, in 16 bits."""
    return dtype in (torch.float16, torch.bfloat16) and has_triton(device)


def attention(qkv: Tensor, packing: Packing, heads: int, yield_point: Callable[[], None]) -> Tensor:
    """Softmax attention within each text: [T, 3 H] -> [T, H]; `yield_point` is called after each piece.

    Rows behind the last text are 0.
    """
    tokens, width = qkv.shape
    if packing.tiles is not None and packing.text_spans is not None:
        return packed_attention(qkv, packing.tiles, packing.text_spans, heads, block=packing.block)
    apart = qkv.view(tokens, 3, heads, -1)
    if packing.flash is not None and packing.bounds is not None:
        q, k, v = apart.unbind(1)  # each [T, heads, H / heads]
        return packing.flash(q, k, v, packing.bounds, packing.longest).reshape(tokens, width // 3)
    context = torch.empty(tokens, heads, apart.shape[-1], dtype=qkv.dtype, device=qkv.device)
    for span in packing.spans:
        end = span.start + span.texts * span.length
        # each of q, k, v is [texts, heads, L, H / heads]
        q, k, v = apart[span.start : end].view(span.texts, span.length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        by_products = packing.by_products and span.length >= PRODUCT_MIN_TOKENS
        attend = attention_by_products if by_products else functional.scaled_dot_product_attention
        attended = attend(q[:, :, span.first : span.last], k, v)
        out = context[span.start : end].view(span.texts, span.length, heads, -1)
        out[:, span.first : span.last] = attended.transpose(1, 2)
        yield_point()
    last = packing.spans[-1]
    end = last.start + last.texts * last.length
    if end < tokens:
        context[end:] = 0  # rows of no text: they are computed, and read by nobody
    return context.view(tokens, width // 3)


def attention_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Softmax attention by batched products in bfloat16, of which a few heads' scores exist at a time.

    Args:
        q: [B, heads, M, D], float32 or bfloat16.
        k: [B, heads, L, D], as `q`.
        v: [B, heads, L, D], as `q`.

    Returns:
        bfloat16 [B, heads, M, D]. Scores are rounded to bfloat16 before the softmax.
    """
    texts, heads, queries, width = q.shape
    keys = k.shape[2]
    rows, columns = product_size(queries), product_size(keys)
    together = max(1, min(heads, _PRODUCT_SCORES // (rows * columns)))
    together = max(count for count in range(1, together + 1) if heads % count == 0)  # one number for all products
    # Scaled before the products: by the width of BGE-M3's heads that is a power of two, which rounds nothing.
    scaled = _padded(q.to(torch.bfloat16).mul(width**-0.5), rows)
    transposed = _padded(k, columns).transpose(1, 2)
    values = _padded(v, columns)
    context = torch.empty_like(scaled)
    scores = torch.empty(together, rows, columns, dtype=torch.bfloat16)
    shares = torch.empty_like(scores)
    for first in range(0, texts * heads, together):
        part = slice(first, first + together)
        torch.bmm(scaled[part], transposed[part], out=scores)
        scores[:, :, keys:] = -torch.inf
        torch.softmax(scores, -1, out=shares)
        torch.bmm(shares, values[part], out=context[part])
    return context.view(texts, heads, rows, width)[:, :, :queries]


def product_size(tokens: int) -> int:
    """The number of rows that a product over so many tokens has: one of few, as oneDNN compiles and keeps each."""
    step = max(_PRODUCT_STEP_MIN, (1 << (tokens - 1).bit_length()) >> _PRODUCT_STEPS_BITS)
    return -(-tokens // step) * step


def _padded(x: Tensor, rows: int) -> Tensor:
    """[B, heads, L, D] -> bfloat16 [B heads, rows, D], with zeros behind the tokens."""
    padded = functional.pad(x.to(torch.bfloat16), (0, 0, 0, rows - x.shape[2]))
    return padded.reshape(-1, rows, x.shape[3])


def flash_kernel(device: str, dtype: torch.dtype, head_width: int) -> Flash | None:
    """The variable-length kernel for heads of this width and type, or None where torch has none for the device.

    Args:
        device: `cpu` or `cuda:N`.
        dtype: type of the states.
        head_width: D, width of a head.
    """
    fits = dtype in (torch.float16, torch.bfloat16) and head_width % 8 == 0 and head_width <= _FLASH_HEAD_MAX_WIDTH
    if device == "cpu" or not fits or not torch.backends.cuda.is_flash_attention_available():
        return None
    if torch.cuda.get_device_capability(device) < (8, 0):
        return None
    try:
        # Here, because it imports torch's compiler: a second of a start that a CPU has no use for.
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:  # torch before 2.10
        return None
    # A text's sums are not split by the length of the longest text beside it, where torch lets one say so: on ROCm
    # its kernel has the parameter and refuses it.
    has_splits = "num_splits" in signature(varlen_attn).parameters and torch.version.hip is None
    unsplit: dict[str, Any] = {"num_splits": 1} if has_splits else {}

    def attend(q: Tensor, k: Tensor, v: Tensor, bounds: Tensor, longest: int) -> Tensor:
        context: Tensor = varlen_attn(q, k, v, bounds, bounds, longest, longest, **unsplit)  # type: ignore[assignment]
        return context

    return attend


def _copied(array: np.ndarray, device: str) -> Tensor:
    return torch.from_numpy(array).pin_memory().to(device, non_blocking=True)


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
