"""Scores of query-passage pairs: the five scores of FlagEmbedding's `compute_score`, from vectors.

    dense                   inner product of the dense vectors
    sparse                  sum over common token ids of the products of their weights
    colbert                 mean over the query's rows of the best inner product with a row of the passage
    sparse+dense            (w_sparse * sparse + w_dense * dense) / (w_sparse + w_dense)
    colbert+sparse+dense    (w_sparse * sparse + w_dense * dense + w_colbert * colbert) / (sum of the weights)

The scores equal those of `M3Embedder.compute_score_single_device` in FlagEmbedding 1.4 for a batch of one pair. In
larger batches FlagEmbedding also compares with the padding of shorter passages, where every inner product is 0.

All functions are pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from embedder import KINDS, Embedding, Kind, SparseVector


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of the weighted means. Each is at least 0, and they are not all 0.

    Raises:
        ValueError: a weight is negative, infinite or NaN, or all are 0.
    """

    dense: float = 1.0
    sparse: float = 1.0
    colbert: float = 1.0

    def __post_init__(self) -> None:
        """Validate the weights, whose sums are divisors."""
        if not all(0 <= weight < math.inf for weight in (self.dense, self.sparse, self.colbert)):
            raise ValueError(
                f"weights must be finite and at least 0, got {self.dense}, {self.sparse} and {self.colbert}"
            )
        if self.dense == self.sparse == self.colbert == 0:
            raise ValueError("weights must be above 0 for at least one kind of vector, got 0 for all")

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors with a weight above 0."""
        return tuple(kind for kind in KINDS if getattr(self, kind) > 0)


@dataclass(frozen=True, slots=True)
class PairScores:
    """The five scores of a query and a passage, all finite."""

    dense: float
    sparse: float
    colbert: float
    sparse_dense: float
    colbert_sparse_dense: float


def score(query: Embedding, passage: Embedding, weights: Weights) -> PairScores:
    """Score one pair.

    Args:
        query: embedding with all three kinds of vectors.
        passage: embedding with all three kinds of vectors.
        weights: weights of the two weighted means.

    Raises:
        ValueError: an embedding lacks a kind of vector.
    """
    dense, sparse, colbert = (kind_score(kind, query, passage) for kind in KINDS)
    weighted = weights.dense * dense + weights.sparse * sparse
    return PairScores(
        dense=dense,
        sparse=sparse,
        colbert=colbert,
        sparse_dense=weighted / (weights.dense + weights.sparse),
        colbert_sparse_dense=(weighted + weights.colbert * colbert)
        / (weights.dense + weights.sparse + weights.colbert),
    )


def weighted_mean(query: Embedding, passage: Embedding, weights: Weights) -> float:
    """The weighted mean of the three scores of a pair. It needs only the kinds of vectors with a weight above 0.

    Raises:
        ValueError: an embedding lacks one of these kinds.
    """
    weighted = sum(getattr(weights, kind) * kind_score(kind, query, passage) for kind in weights.kinds)
    return float(weighted / (weights.dense + weights.sparse + weights.colbert))


def kind_score(kind: Kind, query: Embedding, passage: Embedding) -> float:
    """The score of a pair by one kind of vector.

    Raises:
        ValueError: an embedding lacks this kind.
    """
    ours, theirs = getattr(query, kind), getattr(passage, kind)
    if ours is None or theirs is None:
        raise ValueError(f"{'query' if ours is None else 'passage'} must have a {kind} vector")
    if kind == "sparse":
        return sparse_product(ours, theirs)
    if kind == "dense":
        return float(ours @ theirs)
    return float((ours @ theirs.T).max(axis=1).mean(dtype=np.float64))


def sparse_product(query: SparseVector, passage: SparseVector) -> float:
    """The inner product of two sparse vectors."""
    _, in_query, in_passage = np.intersect1d(query.indices, passage.indices, assume_unique=True, return_indices=True)
    return float(query.values[in_query].astype(np.float64) @ passage.values[in_passage].astype(np.float64))


def groups(count: int, tokens: Callable[[int], Sequence[tuple[object, int]]], window: int) -> Iterator[range]:
    """Group consecutive pairs whose distinct texts have at most `window` tokens together. A longer pair is alone.

    Args:
        count: number of pairs.
        tokens: returns a key and the number of tokens for each text of a pair.
        window: maximum tokens whose vectors are held at the same time.
    """
    first, seen, size = 0, set[object](), 0
    for pair in range(count):
        new_texts = {key: length for key, length in tokens(pair) if key not in seen}
        if pair > first and size + sum(new_texts.values()) > window:
            yield range(first, pair)
            first, seen, size = pair, set(), 0
            new_texts = dict(tokens(pair))
        seen |= new_texts.keys()
        size += sum(new_texts.values())
    if count:
        yield range(first, count)
