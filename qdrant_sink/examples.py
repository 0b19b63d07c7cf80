"""A query made of stored points: find what is like these and unlike those.

The vectors are computed here from the stored ones, so that every store answers alike. What Qdrant calls recommending by
the average vector, for each kind:

    dense     the mean of the positive examples; with negative ones, twice that less the mean of the negative
    sparse    the same of the weights; what comes out at or below zero is left out, since a branch ranks whatever shares
              an index, and so would credit a point for what it shares with a negative example
    colbert   the rows of all positive examples, so that MaxSim sums over them; there is none for negative ones
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.errors import InvalidRequest
from embedder.vectors import Kind, SparseVector
from qdrant_sink.conformance import NORM_MIN, most_rows
from qdrant_sink.filters import as_list
from qdrant_sink.points import PointId
from qdrant_sink.search import Vectors


def alike(positive: Sequence[Vectors], negative: Sequence[Vectors], kinds: Collection[Kind]) -> Vectors:
    """The query vectors of these kinds; sparse is None where no example has weights that count.

    Args:
        positive: at least one.
        negative: may be empty; must be where colbert is wanted.
        kinds: the branches and the reranking of the search.

    Raises:
        InvalidRequest: the examples have no such vector, cancel each other out, or have too many rows.
    """
    return Vectors(
        dense=_dense(positive, negative) if "dense" in kinds else None,
        sparse=_sparse(positive, negative) if "sparse" in kinds else None,
        colbert=_colbert(positive, negative) if "colbert" in kinds else None,
    )


def without(where: Mapping[str, Any] | None, ids: Sequence[PointId]) -> dict[str, Any]:
    """The filter, less these points."""
    named = {"has_id": [one if isinstance(one, int) else str(one) for one in ids]}
    where = dict(where or {})
    return {**where, "must_not": [*as_list(where.get("must_not")), named]}


def _dense(positive: Sequence[Vectors], negative: Sequence[Vectors]) -> NDArray[np.float32]:
    liked = [one.dense for one in positive if one.dense is not None]
    if not liked:
        raise InvalidRequest("like.positive: at least one of the points must have a dense vector, got none")
    query: NDArray[np.float64] = np.mean(np.stack(liked), axis=0, dtype=np.float64)
    formula = "mean(positive)"
    disliked = [one.dense for one in negative if one.dense is not None]
    if disliked:
        query = 2 * query - np.mean(np.stack(disliked), axis=0, dtype=np.float64)
        formula = "2 * mean(positive) - mean(negative)"
    norm = float(np.linalg.norm(query))
    if norm < NORM_MIN:
        raise InvalidRequest(
            f"like: the examples cancel each other out: the norm of {formula} must be at least {NORM_MIN:g}, "
            f"got {norm:.3g}"
        )
    return query.astype(np.float32)


def _sparse(positive: Sequence[Vectors], negative: Sequence[Vectors]) -> SparseVector | None:
    weights = _mean_weights(positive)
    disliked = _mean_weights(negative)
    if disliked:
        weights = {index: 2 * weight - disliked.get(index, 0.0) for index, weight in weights.items()}
    kept = sorted((index, weight) for index, weight in weights.items() if weight > 0)
    if not kept:
        return None
    indices, values = zip(*kept, strict=True)
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def _mean_weights(examples: Sequence[Vectors]) -> dict[int, float]:
    """By index; an example without weights counts with zeros."""
    total: dict[int, float] = {}
    for one in examples:
        if one.sparse is not None:
            for index, value in zip(one.sparse.indices.tolist(), one.sparse.values.tolist(), strict=True):
                total[index] = total.get(index, 0.0) + value
    return {index: value / len(examples) for index, value in total.items()}


def _colbert(positive: Sequence[Vectors], negative: Sequence[Vectors]) -> NDArray[np.float32]:
    if negative:
        raise InvalidRequest(
            f"like.negative: must be empty where colbert is a branch or reranks, got {len(negative)}; MaxSim has no "
            "negative examples"
        )
    rows = [one.colbert for one in positive if one.colbert is not None]
    if not rows:
        raise InvalidRequest("like.positive: at least one of the points must have a colbert vector, got none")
    query = np.concatenate(rows)
    most = most_rows(query.shape[1])
    if len(query) > most:
        raise InvalidRequest(
            f"like.positive: the points have at most {most} colbert rows together, got {len(query)}; name fewer points"
        )
    return query
