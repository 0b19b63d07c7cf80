"""Read the contents of a collection of any store, with one exact search for all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdrant_sink.points import Draft, PointId
from qdrant_sink.searching import run
from qdrant_sink.store import Store
from tests.sink.samples import SIZE, search_by, unit

TOLERANCE = 1e-3
"""Maximum error of a component after float16 storage of ColBERT rows and the engine's normalisation."""


@dataclass(frozen=True, slots=True)
class Held:
    """A stored point.

    Attributes:
        payload: stored payload.
        dense: components of the dense vector.
        sparse: weights by index.
        colbert: components of all ColBERT rows, concatenated.
    """

    payload: Mapping[str, Any]
    dense: tuple[float, ...]
    sparse: Mapping[int, float]
    colbert: tuple[float, ...]


def contents(store: Store, collection: str) -> dict[PointId, Held]:
    """Return all points by id. Each must have all three vectors and occur only once."""
    count = store.count(collection)
    if not count:
        return {}
    search = search_by(
        dense=unit(np.ones(SIZE)),
        using=("dense",),
        limit=count,
        exact=True,
        with_vectors=("dense", "sparse", "colbert"),
    )
    [hits] = run(store, collection, [search])
    points = {}
    for hit in hits:
        assert hit.payload is not None
        assert hit.vectors is not None
        vectors = hit.vectors
        assert vectors.dense is not None
        assert vectors.sparse is not None
        assert vectors.colbert is not None
        weights = dict(zip(vectors.sparse.indices.tolist(), vectors.sparse.values.tolist(), strict=True))
        points[hit.id] = Held(
            hit.payload, tuple(vectors.dense.tolist()), weights, tuple(vectors.colbert.ravel().tolist())
        )
    assert len(hits) == len(points) == count
    return points


def assert_holds(store: Store, collection: str, drafts: Sequence[Draft]) -> None:
    """Assert that the collection contains exactly these drafts with their payloads and vectors."""
    points = contents(store, collection)
    assert set(points) == {draft.id for draft in drafts}
    held = [points[draft.id] for draft in drafts]
    assert [dict(point.payload) for point in held] == [dict(draft.payload) for draft in drafts]
    expected = [draft.vectors for draft in drafts]
    _close([point.dense for point in held], [point.dense for point in expected])
    _close([point.colbert for point in held], [point.colbert for point in expected])
    for point, vectors in zip(held, expected, strict=True):
        assert vectors.sparse is not None
        sparse = vectors.sparse
        assert point.sparse == dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def _close(held: Sequence[tuple[float, ...]], expected: Sequence[NDArray[Any] | None]) -> None:
    wanted = [vector.ravel() for vector in expected if vector is not None]
    np.testing.assert_allclose(np.array(held), np.array(wanted), atol=TOLERANCE)
