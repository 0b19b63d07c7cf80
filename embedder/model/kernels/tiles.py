"""Tiles: the queries and keys of each program of `packed_attention`; numpy only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

BLOCK_M = 64
"""Queries of a tile."""


def tiles_of(lengths: NDArray[np.integer], block: int = BLOCK_M) -> NDArray[np.int32]:
    """Cut a batch into tiles of attention, the most expensive first.

    A text of at least `block` tokens is cut into tiles of `block` queries, each over all keys of the text. Shorter
    texts share a tile as long as they fit, in order; its keys are theirs.

    Args:
        lengths: int [B], tokens of each text, at least 1, in the order of the batch.
        block: most queries of a tile.

    Returns:
        int32 [N, 4]: first query, behind the last query, first key, behind the last key, as indices of tokens.
    """
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    following = np.maximum(np.searchsorted(ends, starts + block, side="right"), np.arange(1, len(ends) + 1)).tolist()
    groups = []  # first text of each
    text = 0
    while text < len(following):
        groups.append(text)
        text = following[text]
    first = starts[groups]
    last = np.append(first[1:], ends[-1:])
    counts = -(-(last - first) // block)
    number = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)  # of a tile within its group
    keys_from, keys_to = np.repeat(first, counts), np.repeat(last, counts)
    queries_from = keys_from + number * block
    tiles = np.stack([queries_from, np.minimum(queries_from + block, keys_to), keys_from, keys_to], axis=1)
    return tiles[np.argsort(keys_from - keys_to, kind="stable")].astype(np.int32)


def text_spans_of(lengths: NDArray[np.integer]) -> NDArray[np.int32]:
    """int32 [T, 2]: where the text of each token starts and ends, for texts [B] of these lengths."""
    ends = np.cumsum(lengths, dtype=np.int32)
    return np.repeat(np.stack([ends - lengths, ends], axis=1).astype(np.int32), lengths, axis=0)


def tile_count_max(tokens: int, block: int = BLOCK_M) -> int:
    """Most tiles that texts of so many tokens together are cut into, in any order.

    Of two neighbouring tiles one would take the other's tokens unless they exceed a block together. The exception is
    a short rest of a long text before a group of short texts: block + 1 tokens and 1 more are three tiles.
    """
    return min(tokens, 3 * tokens // (block + 2) + 1)
