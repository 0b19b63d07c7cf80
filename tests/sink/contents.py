"""What a collection holds, whichever store keeps it: read through the seam, by one exact search for everything."""

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
"""What float16 storage of ColBERT rows and the engine's own scaling to norm 1 leave of a component at least."""


@dataclass(frozen=True, slots=True)
class Held:
    """A stored point.

    Attributes:
        payload: as stored.
        dense: the floats of the vector.
        sparse: weights by index.
        colbert: the floats of its rows, one after the other.
    """

    payload: Mapping[str, Any]
    dense: tuple[float, ...]
    sparse: Mapping[int, float]
    colbert: tuple[float, ...]


def contents(store: Store, collection: str) -> dict[PointId, Held]:
    """All points by id. Each has all three vectors, and none is there twice."""
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
    found = {}
    for hit in hits:
        assert hit.payload is not None
        assert hit.vectors is not None
        vectors = hit.vectors
        assert vectors.dense is not None
        assert vectors.sparse is not None
        assert vectors.colbert is not None
        weights = dict(zip(vectors.sparse.indices.tolist(), vectors.sparse.values.tolist(), strict=True))
        found[hit.id] = Held(
            hit.payload, tuple(vectors.dense.tolist()), weights, tuple(vectors.colbert.ravel().tolist())
        )
    assert len(hits) == len(found) == count
    return found


def assert_holds(store: Store, collection: str, drafts: Sequence[Draft]) -> None:
    """The collection is exactly these drafts: each once, nothing else, payload and vectors as they were."""
    found = contents(store, collection)
    assert set(found) == {draft.id for draft in drafts}
    held = [found[draft.id] for draft in drafts]
    assert [dict(one.payload) for one in held] == [dict(draft.payload) for draft in drafts]
    given = [draft.vectors for draft in drafts]
    _close([one.dense for one in held], [one.dense for one in given])
    _close([one.colbert for one in held], [one.colbert for one in given])
    for one, vectors in zip(held, given, strict=True):
        assert vectors.sparse is not None
        sparse = vectors.sparse
        assert one.sparse == dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def _close(held: Sequence[tuple[float, ...]], given: Sequence[NDArray[Any] | None]) -> None:
    wanted = [one.ravel() for one in given if one is not None]
    np.testing.assert_allclose(np.array(held), np.array(wanted), atol=TOLERANCE)
