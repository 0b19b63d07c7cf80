"""How well passages answer queries: the five scores of FlagEmbedding's `compute_score`, from vectors.

    dense                   inner product of the dense vectors
    sparse                  sum over common token ids of the products of their weights
    colbert                 mean over the query's rows of the best inner product with a row of the passage
    sparse+dense            (w_sparse * sparse + w_dense * dense) / (w_sparse + w_dense)
    colbert+sparse+dense    likewise of all three

As `M3Embedder.compute_score_single_device` of FlagEmbedding 1.4 has them for a pair in a batch of its own. In larger
batches it compares with the padding of shorter passages too, where every inner product is 0.

Pure functions of numpy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from embedder.vectors import Embedding, SparseVector

ScoreKind = str
"""A key of the answer."""

SCORE_KINDS: Final[tuple[ScoreKind, ...]] = ("dense", "sparse", "colbert", "sparse+dense", "colbert+sparse+dense")


@dataclass(frozen=True, slots=True)
class Weights:
    """What each kind counts in the weighted means; none below 0, dense and sparse not both 0."""

    dense: float = 1.0
    sparse: float = 1.0
    colbert: float = 1.0


def score(query: Embedding, passage: Embedding, weights: Weights) -> dict[ScoreKind, float]:
    """The five scores of a pair, all finite.

    Raises:
        ValueError: one of the two lacks a kind of vector.
    """
    if query.dense is None or query.sparse is None or query.colbert is None:
        raise ValueError("the query has not all three kinds of vectors")
    if passage.dense is None or passage.sparse is None or passage.colbert is None:
        raise ValueError("the passage has not all three kinds of vectors")
    dense = float(query.dense @ passage.dense)
    sparse = sparse_product(query.sparse, passage.sparse)
    colbert = float((query.colbert @ passage.colbert.T).max(axis=1).mean(dtype=np.float64))
    two = weights.dense * dense + weights.sparse * sparse
    return {
        "dense": dense,
        "sparse": sparse,
        "colbert": colbert,
        "sparse+dense": two / (weights.dense + weights.sparse),
        "colbert+sparse+dense": (two + weights.colbert * colbert) / (weights.dense + weights.sparse + weights.colbert),
    }


def sparse_product(query: SparseVector, passage: SparseVector) -> float:
    """The inner product; 0 where no index is in both."""
    _, ours, theirs = np.intersect1d(query.indices, passage.indices, assume_unique=True, return_indices=True)
    return float(query.values[ours].astype(np.float64) @ passage.values[theirs].astype(np.float64))


def groups(count: int, tokens: Callable[[int], Sequence[tuple[object, int]]], window: int) -> Iterator[range]:
    """Consecutive pairs whose texts, each counted once, have at most `window` tokens together; or one pair alone.

    Args:
        count: of the pairs.
        tokens: of a pair, what identifies each of its texts and how many tokens it has.
        window: tokens whose vectors are held at once.
    """
    first, seen, size = 0, set[object](), 0
    for pair in range(count):
        new = {key: length for key, length in tokens(pair) if key not in seen}
        if pair > first and size + sum(new.values()) > window:
            yield range(first, pair)
            first, seen, size = pair, set(), 0
            new = dict(tokens(pair))
        seen |= new.keys()
        size += sum(new.values())
    if count:
        yield range(first, count)
