"""Recommend: build a query from stored points, to find points that are like the positive and unlike the negative ones.

This module computes the query vectors, so that every store returns the same hits. The method is Qdrant's recommendation
by average vector, applied to each kind of vector:

    dense     The mean of the positive examples. With negative examples, twice this mean minus the mean of the negative.
    sparse    The same formula, applied to the weights. Weights at or below zero are left out: a sparse branch ranks
              every point that shares an index, so that a match with a negative example would count in its favour.
    colbert   The rows of all positive examples, over which MaxSim sums. Negative examples are not supported.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from embedder.errors import InvalidRequest, NotFound
from embedder.vectors import Kind, SparseVector
from qdrant_sink.conformance import NORM_MIN, rows_max
from qdrant_sink.filters import Filter, ParsedFilter, parse_filter
from qdrant_sink.points import PointId, Stored, Vectors, point_id
from qdrant_sink.schema import CollectionSchema, Distance
from qdrant_sink.searching.reading import Fetches, PartReader, Parts, read_parts


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
    schema: CollectionSchema,
    reader: PartReader | None = None,
) -> tuple[Vectors, ParsedFilter]:
    """Build the query vectors of stored examples, and a filter that excludes the examples. The call blocks.

    Args:
        store: store of the points.
        collection: name of the collection.
        positive: ids of the points that hits should resemble, as given by the caller; at least one.
        negative: ids of the points that hits should not resemble.
        scope: collection name from which ids are derived, as in `point_id`.
        kinds: kinds of vectors that the search uses.
        where: filter of the caller.
        field: path of the examples in the request, such as `like`. Errors contain paths such as `like.positive[3]`.
        schema: schema of the collection.
        reader: reader of the vectors. Without one they are read by one call, whatever their sizes.

    Raises:
        NotFound: examples do not exist. The message contains their paths; `collection` and `ids` contain the values.
        InvalidRequest: an id is invalid, a point is both a positive and a negative example, or `query_vectors` raised
            the error.
        StoreError: see the table in `qdrant_sink.store`.
    """
    examples = [(f"{field}.positive[{index}]", raw) for index, raw in enumerate(positive)]
    examples += [(f"{field}.negative[{index}]", raw) for index, raw in enumerate(negative)]
    ids = [point_id(raw, scope, field=path) for path, raw in examples]
    positive_ids, negative_ids = ids[: len(positive)], ids[len(positive) :]
    for index, negative_id in enumerate(negative_ids):
        if negative_id in positive_ids:
            duplicate = positive_ids.index(negative_id)
            raise InvalidRequest(
                f"{field}.negative[{index}]: must not be the same point as {field}.positive[{duplicate}]"
            )
    parts: Parts = (False, tuple(sorted(kinds)), schema.names)
    stored = read_parts(store, collection, dict.fromkeys(ids, 0), parts, reader)
    missing = [(path, raw) for (path, raw), point in zip(examples, ids, strict=True) if point not in stored]
    if missing:
        paths = ", ".join(path for path, _ in missing[:10]) + (", …" if len(missing) > 10 else "")
        raise NotFound(
            f"{paths}: not found in collection {collection!r}",
            collection=collection,
            ids=[raw for _, raw in missing],
        )
    distance = "cosine" if schema.dense is None else schema.dense.distance
    vectors = query_vectors(
        _vectors(stored, positive_ids), _vectors(stored, negative_ids), kinds, field=field, distance=distance
    )
    return vectors, excluding(where, ids)


def query_vectors(
    positive: Sequence[Vectors],
    negative: Sequence[Vectors],
    kinds: Collection[Kind],
    *,
    field: str,
    distance: Distance = "cosine",
) -> Vectors:
    """Compute the query vectors of these kinds. The sparse vector is None if no positive weight remains.

    Args:
        positive: vectors of at least one positive example.
        negative: vectors of the negative examples; must be empty if `kinds` contains colbert.
        kinds: kinds that the branches and the reranking use.
        field: path of the examples in the request, for errors.
        distance: distance function of dense vectors.

    Raises:
        InvalidRequest: the examples have no such vector, cancel each other out or have too many rows.
    """
    return Vectors(
        dense=_dense(positive, negative, field, distance) if "dense" in kinds else None,
        sparse=_sparse(positive, negative) if "sparse" in kinds else None,
        colbert=_colbert(positive, negative, field) if "colbert" in kinds else None,
    )


def excluding(where: Filter | None, ids: Sequence[PointId]) -> ParsedFilter:
    """Return the filter, extended so that it excludes these points."""
    examples = {"has_id": [example if isinstance(example, int) else str(example) for example in ids]}
    return parse_filter(where or {}).extended(must_not=[examples])


def _vectors(stored: Mapping[PointId, Stored], ids: Sequence[PointId]) -> list[Vectors]:
    return [stored[example].vectors or Vectors() for example in ids]


def _dense(
    positive: Sequence[Vectors], negative: Sequence[Vectors], field: str, distance: Distance
) -> NDArray[np.float32]:
    positive_vectors = [example.dense for example in positive if example.dense is not None]
    if not positive_vectors:
        raise InvalidRequest(f"{field}.positive: at least one of the points must have a dense vector, got none")
    query: NDArray[np.float64] = np.mean(np.stack(positive_vectors), axis=0, dtype=np.float64)
    formula = "mean(positive)"
    negative_vectors = [example.dense for example in negative if example.dense is not None]
    if negative_vectors:
        query = 2 * query - np.mean(np.stack(negative_vectors), axis=0, dtype=np.float64)
        formula = "2 * mean(positive) - mean(negative)"
    norm = float(np.linalg.norm(query))
    if norm < NORM_MIN and distance == "cosine":
        raise InvalidRequest(
            f"{field}: the examples cancel each other out: the norm of {formula} must be at least {NORM_MIN:g}, "
            f"got {norm:.3g}"
        )
    return query.astype(np.float32)


def _sparse(positive: Sequence[Vectors], negative: Sequence[Vectors]) -> SparseVector | None:
    weights = _mean_weights(positive)
    negative_weights = _mean_weights(negative)
    if negative_weights:
        weights = {index: 2 * weight - negative_weights.get(index, 0.0) for index, weight in weights.items()}
    kept = sorted((index, weight) for index, weight in weights.items() if weight > 0)
    if not kept:
        return None
    indices, values = zip(*kept, strict=True)
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def _mean_weights(examples: Sequence[Vectors]) -> dict[int, float]:
    """Compute the mean weight by index. In an example without weights, every weight counts as zero."""
    total: dict[int, float] = {}
    for example in examples:
        if example.sparse is not None:
            for index, value in zip(example.sparse.indices.tolist(), example.sparse.values.tolist(), strict=True):
                total[index] = total.get(index, 0.0) + value
    return {index: value / len(examples) for index, value in total.items()}


def _colbert(positive: Sequence[Vectors], negative: Sequence[Vectors], field: str) -> NDArray[np.float32]:
    if negative:
        raise InvalidRequest(
            f"{field}.negative: must be empty if the search uses colbert, got {len(negative)}; MaxSim does not "
            "support negative examples"
        )
    rows = [example.colbert for example in positive if example.colbert is not None]
    if not rows:
        raise InvalidRequest(f"{field}.positive: at least one of the points must have a colbert vector, got none")
    query = np.concatenate(rows)
    rows_limit = rows_max(query.shape[1])
    if len(query) > rows_limit:
        raise InvalidRequest(
            f"{field}.positive: the points must have at most {rows_limit} colbert rows together, got {len(query)}; "
            "name fewer points"
        )
    return query
