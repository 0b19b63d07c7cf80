"""Exact rankings of passages for queries, how good they are, and how alike: pure functions over numpy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import SparseVector

Scores = NDArray[Any]
"""float [Q, N]: of each passage for each query, the higher the better."""
Ranking = NDArray[np.int64]
"""int64 [Q, D]: per query the positions of passages, best first; -1 where fewer are found."""

RRF_K = 60
"""The constant of Cormack, Clarke and Buettcher 2009, and the service's default."""
ROWS = 16_384
"""Passage rows in one multiplication."""


def dense_scores(queries: NDArray[Any], passages: NDArray[Any]) -> Scores:
    """Inner products of vectors of norm 1, hence cosines.

    Args:
        queries: [Q, H].
        passages: [N, H].
    """
    scores: Scores = queries @ passages.T
    return scores


def sparse_scores(queries: Sequence[SparseVector], passages: Sequence[SparseVector]) -> Scores:
    """Inner products of lexical weights, float64 [Q, N]; 0 where no token id is shared."""
    counts = [len(passage.indices) for passage in passages]
    text = np.repeat(np.arange(len(passages)), counts)
    ids = np.concatenate([np.empty(0, np.uint32), *(passage.indices for passage in passages)]).astype(np.int64)
    values = np.concatenate([np.empty(0), *(passage.values for passage in passages)])
    largest = max([ids.max(initial=0), *(query.indices.max(initial=0) for query in queries)])
    weights = np.zeros(int(largest) + 1)  # of one query at a time
    scores = np.zeros((len(queries), len(passages)))
    for row, query in zip(scores, queries, strict=True):
        weights[query.indices] = query.values
        row[:] = np.bincount(text, weights=values * weights[ids], minlength=len(passages))
        weights[query.indices] = 0
    return scores


def colbert_scores(queries: Sequence[NDArray[Any]], passages: Sequence[NDArray[Any]]) -> Scores:
    """MaxSim: the sum over a query's rows of the best inner product with a row of the passage, float64 [Q, N].

    Khattab and Zaharia 2020. FlagEmbedding divides by the number of query rows, which changes no ranking.

    Args:
        queries: per query [T, C], T >= 1.
        passages: per passage [T, C], T >= 1.
    """
    scores = np.zeros((len(queries), len(passages)))
    for first, last in _blocks([len(passage) for passage in passages]):
        rows = np.concatenate(passages[first:last])
        starts = np.cumsum([0, *(len(passage) for passage in passages[first : last - 1])])
        for score, query in zip(scores, queries, strict=True):
            best = np.maximum.reduceat(query @ rows.T, starts, axis=1)  # [T, last - first]
            score[first:last] = best.sum(axis=0, dtype=np.float64)
    return scores


def top(scores: Scores, depth: int, *, above: float = -np.inf) -> Ranking:
    """The best `depth` passages per query, int64 [Q, min(depth, N)]; equal scores keep the order of the passages.

    Args:
        scores: [Q, N].
        depth: most passages per query.
        above: a passage whose score is not above it is not found.
    """
    order = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
    return np.where(np.take_along_axis(scores, order, axis=1) > above, order, -1).astype(np.int64)


def fused_scores(rankings: Sequence[Ranking], passages: int) -> Scores:
    """Reciprocal rank fusion: the sum over rankings of 1 / (60 + rank), rank from 1; float64 [Q, passages].

    Cormack, Clarke and Buettcher, SIGIR 2009.
    """
    scores = np.zeros((len(rankings[0]), passages + 1))  # the last column takes what is not found
    for ranking in rankings:
        gains = 1 / (RRF_K + 1.0 + np.arange(ranking.shape[1]))
        np.add.at(scores, (np.arange(len(ranking))[:, None], ranking), gains)
    return scores[:, :-1]


def overlap(one: Ranking, other: Ranking) -> NDArray[np.float64]:
    """Per query the passages of both over those of the longer ranking, float64 [Q] in [0, 1]; 1 if both are empty.

    Args:
        one: [Q, D].
        other: [Q, D].
    """
    common = ((one[:, :, None] == other[:, None, :]) & (one >= 0)[:, :, None]).sum(axis=(1, 2))
    longer = np.maximum((one >= 0).sum(axis=1), (other >= 0).sum(axis=1))
    return np.where(longer == 0, 1.0, common / np.maximum(longer, 1))


def ndcg(ranking: Ranking, relevant: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the whole ranking per query, float64 [Q] in [0, 1].

    Binary gains over log2(rank + 1), divided by the best that a ranking of this depth can reach:
    Jaervelin and Kekaelaeinen, TOIS 2002, with the discount from rank 2 that is common today (log2(2) = 1).

    Args:
        ranking: [Q, D].
        relevant: bool [Q, N], whether a passage answers a query; a query without any has 0.
    """
    discounts = 1 / np.log2(np.arange(ranking.shape[1]) + 2.0)
    hits = np.take_along_axis(relevant, np.maximum(ranking, 0), axis=1) & (ranking >= 0)
    reached = (hits * discounts).sum(axis=1)
    best = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(relevant.sum(axis=1), len(discounts))]
    return np.where(best == 0, 0.0, reached / np.where(best == 0, 1.0, best))


def _blocks(lengths: Sequence[int]) -> list[tuple[int, int]]:
    """Consecutive texts of at most `ROWS` rows together, or one longer text, as (first, behind the last)."""
    blocks: list[tuple[int, int]] = []
    first = rows = 0
    for number, length in enumerate(lengths):
        if number > first and rows + length > ROWS:
            blocks.append((first, number))
            first, rows = number, 0
        rows += length
    return [*blocks, (first, len(lengths))] if lengths else []
