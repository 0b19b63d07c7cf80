"""Softmax attention within texts that are concatenated without padding, by tiles of queries."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from embedder.model.kernels.launch import has_triton
from embedder.model.kernels.tiles import BLOCK_M


def packed_attention(qkv: Tensor, tiles: Tensor, text_spans: Tensor, heads: int, *, block: int = BLOCK_M) -> Tensor:
    """Softmax attention of each token over the tokens of its text.

    Args:
        qkv: [T, 3 H], queries, keys and values, contiguous.
        tiles: int32 [N, 4] of `tiles_of`; rows of zeros are skipped.
        text_spans: int32 [T, 2] of `text_spans_of`.
        heads: number of heads; divides H.
        block: most queries of a tile, as the tiles were cut.

    Returns:
        [T, H] of the type of `qkv`; rows of tokens in no tile are undefined.
    """
    if has_triton(qkv.device):
        from embedder.model.kernels import triton_attention

        return triton_attention.packed_attention(qkv, tiles, text_spans, heads, block=block)
    return _plain(qkv, tiles, text_spans, heads)


def _plain(qkv: Tensor, tiles: Tensor, text_spans: Tensor, heads: int) -> Tensor:
    """Tile by tile and text by text; waits for the device."""
    tokens, width = qkv.shape
    q, k, v = qkv.view(tokens, 3, heads, -1).permute(1, 2, 0, 3)  # each [heads, T, H / heads]
    context = torch.zeros_like(q)
    spans = text_spans.tolist()
    for first, last, _, _ in tiles.tolist():
        row = first
        while row < last:
            start, end = spans[row]
            stop = min(end, last)
            context[:, row:stop] = functional.scaled_dot_product_attention(
                q[:, row:stop], k[:, start:end], v[:, start:end]
            )
            row = stop
    return context.transpose(0, 1).reshape(tokens, width // 3)
