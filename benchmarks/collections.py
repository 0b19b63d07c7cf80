"""Points and queries that look like BGE-M3's, drawn from a seed, for the benchmark of the search."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder import SparseVector
from qdrant_sink import (
    ColbertSchema,
    CollectionSchema,
    DenseSchema,
    Point,
    Search,
    SearchOptions,
    SparseSchema,
    Vectors,
    with_branches,
)

VOCABULARY: Final = 8192
WEIGHTS: Final = 40
"""Sparse weights of a point."""
QUERY_WEIGHTS: Final = 10
QUERY_ROWS: Final = 12
CLUSTERS: Final = 200
TEXT: Final = "Two to four sentences of a passage about nothing, as long as such passages are on the average. " * 3


@dataclass(frozen=True, slots=True)
class Shape:
    """The contents of a collection.

    Attributes:
        points: how many.
        size: components of dense vectors and ColBERT rows.
        rows: of ColBERT per point, on the average: half to one and a half times as many.
    """

    points: int
    size: int
    rows: int

    @property
    def schema(self) -> CollectionSchema:
        """The schema of the collection."""
        return CollectionSchema(DenseSchema(self.size), SparseSchema(), ColbertSchema(self.size))


def points(shape: Shape, *, seed: int = 0) -> Iterator[Point]:
    """The points, one after the other."""
    rng = np.random.default_rng(seed)
    centres = _unit(rng.normal(size=(CLUSTERS, shape.size)))
    for number in range(shape.points):
        cluster = number % CLUSTERS
        rows = int(rng.integers(shape.rows // 2, shape.rows + shape.rows // 2 + 1))
        yield Point(
            uuid.UUID(int=int(rng.integers(2**63)) << 64 | number),
            {"text": TEXT, "doc_id": f"document {number // 4}", "chunk": number % 4},
            dense=_unit(centres[cluster] + rng.normal(scale=0.08, size=shape.size)),
            sparse=_sparse(rng, WEIGHTS),
            colbert=_unit(centres[cluster] + rng.normal(scale=0.08, size=(rows, shape.size))),
        )


def queries(shape: Shape, count: int, *, seed: int = 1, **options: Any) -> list[Search]:
    """Searches with all three vectors near the points of a cluster, and these options (`SearchOptions`)."""
    rng = np.random.default_rng(seed)
    centres = _unit(np.random.default_rng(0).normal(size=(CLUSTERS, shape.size)))
    searches = []
    for _ in range(count):
        centre = centres[int(rng.integers(CLUSTERS))]
        vectors = Vectors(
            dense=_unit(centre + rng.normal(scale=0.08, size=shape.size)),
            sparse=_sparse(rng, QUERY_WEIGHTS),
            colbert=_unit(centre + rng.normal(scale=0.08, size=(QUERY_ROWS, shape.size))),
        )
        schema = shape.schema
        searches.append(Search(vectors, with_branches(SearchOptions(**options), schema), schema))
    return searches


def _sparse(rng: np.random.Generator, count: int) -> SparseVector:
    """Token ids as frequent as words are (Zipf): the few common ones are in most points."""
    drawn = np.unique(np.minimum(rng.zipf(1.3, size=3 * count) - 1, VOCABULARY - 1))
    chosen = np.sort(rng.permutation(drawn)[:count]).astype(np.uint32)
    return SparseVector(chosen, rng.uniform(0.02, 0.4, len(chosen)).astype(np.float32))


def _unit(array: NDArray[Any]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = (array / np.linalg.norm(array, axis=-1, keepdims=True)).astype(np.float32)
    return unit
