"""Sample vectors, drafts and searches, and a numpy reference of the expected hits."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import SparseVector
from qdrant_sink.points import Draft, PointId, Vectors
from qdrant_sink.schema import ColbertSchema, CollectionSchema, DenseSchema, Distance, SparseSchema
from qdrant_sink.searching import Search, SearchOptions, with_branches

SIZE = 8
VOCABULARY = 40


def schema_for(dense_size: int, colbert_size: int) -> CollectionSchema:
    """Return the default schema for vectors of these sizes."""
    return CollectionSchema(DenseSchema(dense_size), SparseSchema(), ColbertSchema(colbert_size))


DENSE, SPARSE, COLBERT = DenseSchema(SIZE), SparseSchema(), ColbertSchema(SIZE)

SCHEMA: CollectionSchema = CollectionSchema(DENSE, SPARSE, COLBERT)


def parts(schema: CollectionSchema) -> tuple[DenseSchema, SparseSchema, ColbertSchema]:
    """Return the schemas of all three vectors of a collection."""
    assert schema.dense is not None
    assert schema.sparse is not None
    assert schema.colbert is not None
    return schema.dense, schema.sparse, schema.colbert


WIDE_SIZE = 16
"""Size from which every engine adds the products of float16 rows in float32; below, older ones round each product."""

WIDE: CollectionSchema = schema_for(WIDE_SIZE, WIDE_SIZE)


def unit(array: NDArray[Any]) -> NDArray[np.float32]:
    """Normalise rows to L2 norm 1."""
    result: NDArray[np.float32] = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
    return result


def halved(array: NDArray[Any]) -> NDArray[np.float32]:
    """Round to float16 precision."""
    return array.astype(np.float16).astype(np.float32)


def sample_vectors(
    seed: int, *, rows: int = 4, size: int = SIZE, kinds: Sequence[str] = ("dense", "sparse", "colbert")
) -> Vectors:
    """Create vectors like those of BGE-M3: unit norms, unique ascending indices, positive weights."""
    rng = np.random.default_rng(seed)
    count = int(rng.integers(3, 9))
    indices = np.sort(rng.choice(VOCABULARY, count, replace=False)).astype(np.uint32)
    weights = rng.uniform(0.05, 1.0, count).astype(np.float32)
    dense, colbert = unit(rng.normal(size=size)), unit(rng.normal(size=(rows, size)))
    return Vectors(
        dense=dense if "dense" in kinds else None,
        sparse=SparseVector(indices, weights) if "sparse" in kinds else None,
        colbert=colbert if "colbert" in kinds else None,
    )


def search_by(
    dense: NDArray[np.float32] | None = None,
    sparse: SparseVector | None = None,
    colbert: NDArray[Any] | None = None,
    *,
    schema: CollectionSchema = SCHEMA,
    **options: Any,
) -> Search:
    """Create a search by these vectors without their validation. `options` are those of `SearchOptions`."""
    return Search(Vectors(dense, sparse, colbert), with_branches(SearchOptions(**options), schema), schema)


def draft(index: int, **overrides: Any) -> Draft:
    """Create a valid draft. `id`, `payload` and `vectors` can be overridden."""
    values: dict[str, Any] = {
        "id": index,
        "payload": {"text": f"text {index}", "parity": index % 2, "even": index % 2 == 0},
        "vectors": sample_vectors(index),
    }
    return Draft(index, **{**values, **overrides})


def job(count: int, *, words: int = 5) -> list[Draft]:
    """Create valid drafts with ids from 0, the same in every call. This is much faster than calling `draft`.

    Args:
        count: number of drafts.
        words: number of words per text. Long texts take longer to send.
    """
    rng = np.random.default_rng(count)
    dense = unit(rng.normal(size=(count, SIZE)))
    colbert = unit(rng.normal(size=(count, 4, SIZE)))
    indices = (rng.integers(0, 12, (count, 3)) + np.array([0, 12, 24])).astype(np.uint32)
    weights = rng.uniform(0.05, 1.0, (count, 3)).astype(np.float32)
    return [
        Draft(
            index,
            index,
            {"text": f"{index}" + " word" * words, "even": index % 2 == 0},
            Vectors(dense[index], SparseVector(indices[index], weights[index]), colbert[index]),
        )
        for index in range(count)
    ]


def spoilt(index: int, **fields: Any) -> Draft:
    """Create a draft with some of its vectors replaced, usually by invalid ones."""
    return draft(index, vectors=replace(sample_vectors(index), **fields))


class Reference:
    """Exact search over the vectors of points.

    Args:
        vectors: vectors by point id, as `Vectors` or another object with the three attributes.
        halves: whether ColBERT rows are rounded to float16, those of a query too.
        dense_halves: whether dense vectors are.
        distance: distance function of dense vectors.
    """

    def __init__(
        self,
        vectors: Mapping[PointId, Any],
        *,
        halves: bool = True,
        dense_halves: bool = False,
        distance: Distance = "cosine",
    ) -> None:
        self._vectors = vectors
        self._rounded = halved if halves else np.asarray
        self._dense_rounded = halved if dense_halves else np.asarray
        self._distance = distance

    def dense(self, query: NDArray[Any]) -> dict[PointId, float]:
        """Compute the cosine of every point for vectors of norm 1, the inner product, or the distance."""
        query = self._dense_rounded(query)
        return {
            point_id: _compared(self._dense_rounded(vectors.dense), query, self._distance)
            for point_id, vectors in self._vectors.items()
            if vectors.dense is not None
        }

    def sparse(self, query: SparseVector, *, idf: bool = False) -> dict[PointId, float]:
        """Compute the inner product of every point that shares an index with the query.

        With `idf`, the weight of an index in the query is multiplied by ln(1 + (N - n + 0.5) / (n + 0.5)), for N points
        with weights, of which n have the index.
        """
        weights = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
        if idf:
            stored = [vectors.sparse.indices for vectors in self._vectors.values() if vectors.sparse is not None]
            having = Counter(index for indices in stored for index in indices.tolist())
            weights = {
                index: weight * math.log1p((len(stored) - having[index] + 0.5) / (having[index] + 0.5))
                for index, weight in weights.items()
            }
        scores: dict[PointId, float] = {}
        for point_id, vectors in self._vectors.items():
            if vectors.sparse is None:
                continue
            shared = [
                weights[i] * v
                for i, v in zip(vectors.sparse.indices.tolist(), vectors.sparse.values.tolist(), strict=True)
                if i in weights
            ]
            if shared:
                scores[point_id] = sum(shared)
        return scores

    def colbert(self, query: NDArray[Any]) -> dict[PointId, float]:
        """Compute the MaxSim of every point. With `halves`, query and points are rounded to float16."""
        query_rows = self._rounded(query)
        return {
            point_id: float((query_rows @ self._rounded(vectors.colbert).T).max(axis=1).sum())
            for point_id, vectors in self._vectors.items()
            if vectors.colbert is not None
        }


def _compared(vector: NDArray[Any], query: NDArray[Any], distance: Distance) -> float:
    if distance == "euclid":
        return float(np.linalg.norm(vector - query))
    return float(np.abs(vector - query).sum()) if distance == "manhattan" else float(vector @ query)


def ranked(scores: Mapping[PointId, float], limit: int | None = None, *, ascending: bool = False) -> list[PointId]:
    """Return the ids, best score first: the largest or, with `ascending`, the smallest."""
    sign = 1 if ascending else -1
    return sorted(scores, key=lambda point_id: sign * scores[point_id])[:limit]


def dbsf(branches: Sequence[Mapping[PointId, float]]) -> dict[PointId, float]:
    """Scale scores to the mean ± 3 sample standard deviations of their branch, and sum them over the branches."""
    scores: dict[PointId, float] = {}
    for branch in branches:
        values = np.array(list(branch.values()))
        deviation = np.std(values, ddof=1) if len(values) > 1 else 0.0
        for point_id, score in branch.items():
            low = values.mean() - 3 * deviation
            scaled = (score - low) / (6 * deviation) if deviation else 0.5
            scores[point_id] = scores.get(point_id, 0.0) + float(scaled)
    return scores


def rrf(branches: Sequence[Sequence[PointId]], k: int, weights: Sequence[float]) -> dict[PointId, float]:
    """Sum 1 / (k + rank / weight) over the branches, with ranks from 1."""
    scores: dict[PointId, float] = {}
    for branch, weight in zip(branches, weights, strict=True):
        for rank, point_id in enumerate(branch, start=1):
            scores[point_id] = scores.get(point_id, 0.0) + 1 / (k + rank / weight)
    return scores
