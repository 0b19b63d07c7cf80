"""Vectors, drafts, searches and a numpy reference for what a search must find."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.points import Draft, PointId, Vectors
from qdrant_sink.schema import ColbertSchema, CollectionSchema, DenseSchema, SparseSchema
from qdrant_sink.searching import Search, SearchOptions

SIZE = 8
VOCABULARY = 40


def schema_for(dense_size: int, colbert_size: int) -> CollectionSchema:
    """What the sink makes where the operator has set nothing, for heads of these sizes."""
    return CollectionSchema(DenseSchema(dense_size), SparseSchema(), ColbertSchema(colbert_size))


SCHEMA: CollectionSchema = schema_for(SIZE, SIZE)


def unit(array: NDArray[Any]) -> NDArray[np.float32]:
    """Rows of L2 norm 1."""
    result: NDArray[np.float32] = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
    return result


def halved(array: NDArray[Any]) -> NDArray[np.float32]:
    """Rounded to what float16 storage keeps."""
    return array.astype(np.float16).astype(np.float32)


def sample_vectors(
    seed: int, *, rows: int = 4, size: int = SIZE, kinds: Sequence[str] = ("dense", "sparse", "colbert")
) -> Vectors:
    """What BGE-M3 would give: unit norms, unique ascending indices, positive weights."""
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
    quantized: tuple[Kind, ...] = (),
    **options: Any,
) -> Search:
    """A search by these vectors, which nothing has proven; `options` as in `SearchOptions`."""
    return Search(Vectors(dense, sparse, colbert), SearchOptions(**options), quantized)


def draft(index: int, **overrides: Any) -> Draft:
    """A draft that conforms; `id`, `payload` or `vectors` can be replaced."""
    values: dict[str, Any] = {
        "id": index,
        "payload": {"text": f"text {index}", "parity": index % 2, "even": index % 2 == 0},
        "vectors": sample_vectors(index),
    }
    return Draft(index, **{**values, **overrides})


def job(count: int, *, words: int = 5) -> list[Draft]:
    """Drafts that conform, with ids from 0; the same at every call. Quicker by far than one `draft` after another.

    Args:
        count: drafts.
        words: of five letters per text, for texts that take long to send.
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
    """A draft that has these vectors in place of sound ones."""
    return draft(index, vectors=replace(sample_vectors(index), **fields))


class Reference:
    """Exact search over the vectors of points by id.

    Args:
        vectors: of each point: `Vectors`, or what else has the three kinds.
        halves: whether ColBERT rows are rounded as float16 storage does.
    """

    def __init__(self, vectors: Mapping[PointId, Any], *, halves: bool = True) -> None:
        self._vectors = vectors
        self._rounded = halved if halves else np.asarray

    def dense(self, query: NDArray[Any]) -> dict[PointId, float]:
        """Cosine of every point."""
        return {i: float(e.dense @ query) for i, e in self._vectors.items() if e.dense is not None}

    def sparse(self, query: SparseVector) -> dict[PointId, float]:
        """Inner product of every point that shares an index."""
        weights = dict(zip(query.indices.tolist(), query.values.tolist(), strict=True))
        scores: dict[PointId, float] = {}
        for point_id, e in self._vectors.items():
            if e.sparse is None:
                continue
            shared = [
                weights[i] * v
                for i, v in zip(e.sparse.indices.tolist(), e.sparse.values.tolist(), strict=True)
                if i in weights
            ]
            if shared:
                scores[point_id] = sum(shared)
        return scores

    def colbert(self, query: NDArray[Any]) -> dict[PointId, float]:
        """MaxSim of every point: the best row per query row, summed. Float16 storage (`halves`) rounds both sides."""
        asked = self._rounded(query)
        return {
            i: float((asked @ self._rounded(e.colbert).T).max(axis=1).sum())
            for i, e in self._vectors.items()
            if e.colbert is not None
        }


def ranked(scores: Mapping[PointId, float], limit: int | None = None) -> list[PointId]:
    """Ids, best first."""
    return sorted(scores, key=lambda i: -scores[i])[:limit]


def dbsf(branches: Sequence[Mapping[PointId, float]]) -> dict[PointId, float]:
    """Scores scaled to mean ± 3 standard deviations (of a sample) of their branch, summed over the branches."""
    scores: dict[PointId, float] = {}
    for branch in branches:
        found = np.array(list(branch.values()))
        deviation = np.std(found, ddof=1) if len(found) > 1 else 0.0
        for point_id, score in branch.items():
            low = found.mean() - 3 * deviation
            scaled = (score - low) / (6 * deviation) if deviation else 0.5
            scores[point_id] = scores.get(point_id, 0.0) + float(scaled)
    return scores


def rrf(branches: Sequence[Sequence[PointId]], k: int, weights: Sequence[float]) -> dict[PointId, float]:
    """1 / (k + rank / weight), summed over the branches; ranks from 1."""
    scores: dict[PointId, float] = {}
    for branch, weight in zip(branches, weights, strict=True):
        for rank, point_id in enumerate(branch, start=1):
            scores[point_id] = scores.get(point_id, 0.0) + 1 / (k + rank / weight)
    return scores
