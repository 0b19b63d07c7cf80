"""Chunks of an earlier version of a document, beyond the last chunk that it has now."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from qdrant_sink.points import PointId, chunk_id
from qdrant_sink.writing.batches import BATCH_MAX_POINTS
from qdrant_sink.writing.existing import Existing, existing_ids

log = logging.getLogger(__name__)

PROBES: Final = 8192
"""Ids beyond the last chunks of all documents of a job that are looked for together."""

GAP_MIN_CHUNKS: Final = 16
GAP_MAX_CHUNKS: Final = BATCH_MAX_POINTS + 24
"""Ids beyond the last chunk of one document that are looked for together, at least and at most: so many chunks in a row
can be missing of an earlier version, which was refused in part or cut short. A job of a few documents looks behind a
whole batch that did not arrive: 2 ms in Qdrant Edge."""


class Chunks(Existing, Protocol):
    """The part of a store that finds and deletes points; see `Store`."""

    def delete(self, collection: str, /, *, ids: Sequence[PointId] = ()) -> int:
        """Delete by ids; returns how many points existed."""
        ...


def delete_stale_chunks(
    store: Chunks,
    collection: str,
    documents: Mapping[PointId, int],
    scope: str,
    *,
    batch_points: int = BATCH_MAX_POINTS,
) -> int:
    """Delete the chunks that documents had beyond the last one that they have now; returns how many. Blocks.

    They are found by their ids, which tell documents of different `scope` apart, as their payloads do not. Nobody else
    may write these documents meanwhile; see `DocumentLocks`.

    Args:
        store: that has the collection.
        collection: its name.
        documents: by document id, the number of its chunks now, all of them stored.
        scope: what derived ids belong to, as in `chunk_id`.
        batch_points: maximum number of ids in a request.

    Raises:
        WorkerError: see the table of `qdrant_sink.store`. Running the same job again completes the deletion.
    """
    stale: list[PointId] = []
    chunks = dict(documents)
    while chunks:
        gap = max(GAP_MIN_CHUNKS, min(GAP_MAX_CHUNKS, PROBES // len(chunks)))
        probes: dict[PointId, PointId] = {
            chunk_id(document, first + number, scope): document
            for document, first in chunks.items()
            for number in range(gap)
        }
        existing = existing_ids(store, collection, list(probes), batch_points=batch_points)
        stale += [chunk for chunk in probes if chunk in existing]
        longer = {probes[chunk] for chunk in existing}
        chunks = {document: first + gap for document, first in chunks.items() if document in longer}
    # From the last on: a deletion that is cut short leaves the next run its beginning to find.
    for end in range(len(stale), 0, -batch_points):
        store.delete(collection, ids=stale[max(0, end - batch_points) : end])
    if stale:
        log.info("deleted %d chunks of earlier versions", len(stale))
    return len(stale)
