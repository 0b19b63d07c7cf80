"""Matches of a query and a passage: by token for sparse vectors, by row for ColBERT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import SparseVector


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A token id that query and passage share, and its weight in each of them.

    Attributes:
        id: token id.
        query: weight in the query.
        passage: weight in the passage.
        contribution: contribution to the score. None if the store also weights by IDF, which only the store knows.
    """

    id: int
    query: float
    passage: float
    contribution: float | None


@dataclass(frozen=True, slots=True)
class RowMatch:
    """The row of the passage that is nearest to a row of the query, and their inner product."""

    row: int
    score: float


def token_matches(query: SparseVector, passage: SparseVector | None, *, idf: bool = False) -> tuple[TokenMatch, ...]:
    """Return the shared tokens, the largest product of weights first. The products sum to the inner product.

    With `idf`, the store multiplies each product by the inverse document frequency of its token before it sums them, so
    that the tokens have no contribution.
    """
    if passage is None:
        return ()
    shared, query_positions, passage_positions = np.intersect1d(
        query.indices, passage.indices, assume_unique=True, return_indices=True
    )
    matches = [
        TokenMatch(index, query_weight, passage_weight, None if idf else query_weight * passage_weight)
        for index, query_weight, passage_weight in zip(
            shared.tolist(),
            query.values[query_positions].tolist(),
            passage.values[passage_positions].tolist(),
            strict=True,
        )
    ]
    return tuple(sorted(matches, key=lambda match: (-match.query * match.passage, match.id)))


def row_matches(query: NDArray[Any], passage: NDArray[Any]) -> tuple[RowMatch, ...]:
    """Return the nearest row of the passage for each row of the query. The scores sum to the MaxSim.

    Args:
        query: float [Q, size] with rows of norm 1.
        passage: float [R, size] with rows of norm 1 and R >= 1.
    """
    products = query.astype(np.float32) @ passage.astype(np.float32).T
    best = products.argmax(axis=1)
    scores = products[np.arange(len(best)), best]
    return tuple(RowMatch(row, score) for row, score in zip(best.tolist(), scores.tolist(), strict=True))
