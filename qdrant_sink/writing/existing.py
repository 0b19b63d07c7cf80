"""Which of many ids are stored, asked for in requests of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from qdrant_sink.points import PointId
from qdrant_sink.writing.batches import BATCH_MAX_POINTS


class Existing(Protocol):
    """The part of a store that knows which points exist; see `Store`."""

    def existing(self, collection: str, ids: Sequence[PointId], /) -> set[PointId]:
        """The ids among these that are stored."""
        ...


def existing_ids(
    store: Existing, collection: str, ids: Sequence[PointId], *, batch_points: int = BATCH_MAX_POINTS
) -> set[PointId]:
    """The ids among these that are stored, asked for `batch_points` at a time. Blocks.

    Raises:
        WorkerError: see the table of `qdrant_sink.store`.
    """
    stored: set[PointId] = set()
    for first in range(0, len(ids), batch_points):
        stored |= store.existing(collection, ids[first : first + batch_points])
    return stored
