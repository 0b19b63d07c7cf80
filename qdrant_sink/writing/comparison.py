"""Compare points that are kept with what would have been written in their place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, Protocol

from embedder.vectors import Kind
from qdrant_sink.points import PointId, Stored, WithPayload

COMPARED_MAX_POINTS: Final = 100
"""Maximum number of points whose payloads are read for a comparison in one request."""

COMPARED_MAX_BYTES: Final = 8_000_000
"""Maximum size of the payloads of one such request in bytes, if what is stored is as large as what it is compared with.
A larger payload is read alone."""


class PayloadStore(Protocol):
    """The part of `Store` that reads payloads."""

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        *,
        patient: bool = False,
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id. Missing points are left out."""
        ...


def differing_points(
    store: PayloadStore,
    collection: str,
    wanted: Mapping[PointId, Mapping[str, Any]],
    *,
    ignored: Sequence[str] = (),
) -> set[PointId]:
    """Return the points that are stored with another payload than the wanted one. The call blocks.

    Vectors are not compared, and points that are missing are not returned.

    Args:
        store: store of the collection.
        collection: name of the collection.
        wanted: payload (plain JSON, with the text) that each point should have.
        ignored: paths of keys that may differ, each a key or an object and its key.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    differing: set[PointId] = set()
    for ids in _portions(wanted):
        for point, stored in store.fetch(collection, ids, with_payload=True, with_vectors=(), patient=True).items():
            if _canonical(stored.payload or {}, ignored) != _canonical(wanted[point], ignored):
                differing.add(point)
    return differing


def _portions(wanted: Mapping[PointId, Mapping[str, Any]]) -> Iterator[list[PointId]]:
    """Yield the ids in portions of bounded number and size."""
    portion: list[PointId] = []
    size = 0
    for point, payload in wanted.items():
        added = len(json.dumps(payload))
        if portion and (len(portion) == COMPARED_MAX_POINTS or size + added > COMPARED_MAX_BYTES):
            yield portion
            portion, size = [], 0
        portion.append(point)
        size += added
    if portion:
        yield portion


def _canonical(payload: Mapping[str, Any], ignored: Sequence[str]) -> str:
    """A text that is equal for payloads with the same values, whatever the order of their keys."""
    kept = dict(payload)
    for path in ignored:
        parent, _, key = path.rpartition(".")
        if not parent:
            kept.pop(key, None)
        elif isinstance(kept.get(parent), Mapping):
            kept[parent] = {name: value for name, value in kept[parent].items() if name != key}
    return json.dumps(kept, sort_keys=True)
