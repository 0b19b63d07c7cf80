"""Look up which ids are stored, in requests of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qdrant_sink.points import PointId
from qdrant_sink.writing.batches import BATCH_MAX_POINTS


class Existing(Protocol):
    """The part of `Store` that looks up which points exist."""

    def existing(self, collection: str, ids: Sequence[PointId], /) -> set[PointId]:
        """Return the subset of these ids that is stored."""
        ...


def existing_ids(
    store: Existing, collection: str, ids: Sequence[PointId], *, batch_points: int = BATCH_MAX_POINTS
) -> set[PointId]:
    """Return the subset of these ids that is stored, looked up in batches of `batch_points`. The call blocks.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`.
    """
    stored: set[PointId] = set()
    for first in range(0, len(ids), batch_points):
        stored |= store.existing(collection, ids[first : first + batch_points])
    return stored
