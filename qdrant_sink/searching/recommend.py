"""A query made of stored points: find what is like these and unlike those.

The vectors are computed here from the stored ones, so that every store answers alike. What Qdrant calls recommending by
the average vector, for each kind:

    dense     the mean of the positive examples; with negative ones, twice that less the mean of the negative
    sparse    the same of the weights; a result at or below zero is left out, since a branch ranks whatever shares an
              index, and so would credit a point for what it shares with a negative example
    colbert   the rows of all positive examples, so that MaxSim sums over them; negative examples are impossible
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedder.errors import InvalidRequest, NotFound
from embedder.vectors import Kind, SparseVector
from qdrant_sink.conformance import NORM_MIN, rows_max
from qdrant_sink.filters import Filter, as_list
from qdrant_sink.points import PointId, Stored, Vectors, WithPayload, point_id


class Fetches(Protocol):
    """The part of a store that reads points; see `Store`."""

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind], /
    ) -> dict[PointId, Stored]:
        """The parts of these points, by id; missing points are left out."""
        ...


def recommend(
    store: Fetches,
    collection: str,
    positive: Sequence[int | str],
    negative: Sequence[int | str],
    *,
    scope: str,
    kinds: Collection[Kind],
    where: Filter | None,
    field: str,
) -> tuple[Vectors, dict[str, Any]]:
    """The query vectors of stored examples, and the filter that leaves out the examples themselves. Blocks.

    Args:
        store: that has the points.
        collection: its name.
        positive: ids as their caller gives them, at least one: find points like these.
        negative: ids of points to be unlike.
        scope: what derived ids belong to, as in `point_id`.
        kinds: kinds of vectors that the search needs.
        where: the caller's filter.
        field: path of the examples in the request, such as `like`; errors name `like.positive[3]`.

    Raises:
        NotFound: points that are missing, by their fields; `collection` and `ids` say which.
        InvalidRequest: an id is invalid, or a point is an example of both kinds; or as `query_vectors`.
        StoreError: see the table of `qdrant_sink.store`.
    """
    named = [(f"{field}.positive[{index}]", raw) for index, raw in enumerate(positive)]
    named += [(f"{field}.negative[{index}]", raw) for index, raw in enumerate(negative)]
    ids = [point_id(raw, scope, field=path) for path, raw in named]
    wanted, unwanted = ids[: len(positive)], ids[len(positive) :]
    for index, unlike in enumerate(unwanted):
        if unlike in wanted:
            same = wanted.index(unlike)
            raise InvalidRequest(f"{field}.negative[{index}]: is the same point as {field}.positive[{same}]")
    stored = store.fetch(collection, list(dict.fromkeys(ids)), False, sorted(kinds))  # noqa: FBT003 - the seam's order
    missing = [(path, raw) for (path, raw), example in zip(named, ids, strict=True) if example not in stored]
    if missing:
        paths = ", ".join(path for path, _ in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise NotFound(
            f"{paths}: not in collection {collection!r}", collection=collection, ids=[raw for _, raw in missing]
        )
    vectors = query_vectors(_vectors(stored, wanted), _vectors(stored, unwanted), kinds, field=field)
    return vectors, without(where, ids)


def query_vectors(
    positive: Sequence[Vectors], negative: Sequence[Vectors], kinds: Collection[Kind], *, field: str
) -> Vectors:
    """The query vectors of these kinds; sparse is None where no example has weights that count.

    Args:
        positive: at least one.
        negative: may be empty; must be where colbert is wanted.
        kinds: the branches and the reranking of the search.
        field: path of the examples in the request, for errors.

    Raises:
        InvalidRequest: the examples have no such vector, cancel each other out, or have too many rows.
    """
    return Vectors(
        dense=_dense(positive, negative, field) if "dense" in kinds else None,
        sparse=_sparse(positive, negative) if "sparse" in kinds else None,
        colbert=_colbert(positive, negative, field) if "colbert" in kinds else None,
    )


def without(where: Filter | None, ids: Sequence[PointId]) -> dict[str, Any]:
    """The filter that also leaves out these points."""
    examples = {"has_id": [example if isinstance(example, int) else str(example) for example in ids]}
    where = dict(where or {})
    return {**where, "must_not": [*as_list(where.get("must_not")), examples]}


def _vectors(stored: Mapping[PointId, Stored], ids: Sequence[PointId]) -> list[Vectors]:
    return [stored[example].vectors or Vectors() for example in ids]


def _dense(positive: Sequence[Vectors], negative: Sequence[Vectors], field: str) -> NDArray[np.float32]:
    liked = [example.dense for example in positive if example.dense is not None]
    if not liked:
        raise InvalidRequest(f"{field}.positive: at least one of the points must have a dense vector, got none")
    query: NDArray[np.float64] = np.mean(np.stack(liked), axis=0, dtype=np.float64)
    formula = "mean(positive)"
    disliked = [example.dense for example in negative if example.dense is not None]
    if disliked:
        query = 2 * query - np.mean(np.stack(disliked), axis=0, dtype=np.float64)
        formula = "2 * mean(positive) - mean(negative)"
    norm = float(np.linalg.norm(query))
    if norm < NORM_MIN:
        raise InvalidRequest(
            f"{field}: the examples cancel each other out: the norm of {formula} must be at least {NORM_MIN:g}, "
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
    """Mean weight by index; an example without weights counts with zeros."""
    total: dict[int, float] = {}
    for example in examples:
        if example.sparse is not None:
            for index, value in zip(example.sparse.indices.tolist(), example.sparse.values.tolist(), strict=True):
                total[index] = total.get(index, 0.0) + value
    return {index: value / len(examples) for index, value in total.items()}


def _colbert(positive: Sequence[Vectors], negative: Sequence[Vectors], field: str) -> NDArray[np.float32]:
    if negative:
        raise InvalidRequest(
            f"{field}.negative: must be empty where colbert is a branch or reranks, got {len(negative)}; MaxSim has no "
            "negative examples"
        )
    rows = [example.colbert for example in positive if example.colbert is not None]
    if not rows:
        raise InvalidRequest(f"{field}.positive: at least one of the points must have a colbert vector, got none")
    query = np.concatenate(rows)
    most = rows_max(query.shape[1])
    if len(query) > most:
        raise InvalidRequest(
            f"{field}.positive: the points have at most {most} colbert rows together, got {len(query)}; "
            "name fewer points"
        )
    return query
