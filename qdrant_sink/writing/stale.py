"""Delete stale chunks: chunks of an earlier version of a document beyond its current last chunk."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Final, Protocol

from qdrant_sink.points import PointId, chunk_id
from qdrant_sink.writing.batches import BATCH_MAX_POINTS
from qdrant_sink.writing.existing import Existing, existing_ids

log = logging.getLogger(__name__)

LOOKUP_TARGET_IDS: Final = 8192
"""Approximate number of ids that are looked up in one round, for all documents of a job together."""

LOOKAHEAD_MIN_CHUNKS: Final = 16
LOOKAHEAD_MAX_CHUNKS: Final = BATCH_MAX_POINTS + 24
"""Minimum and maximum number of ids that are looked up in one round beyond the last chunk of a document. An earlier
version that was partly refused or interrupted can lack that many consecutive chunks. With the maximum, the search goes
past a whole batch that is missing, which takes 2 ms in Qdrant Edge."""


class Chunks(Existing, Protocol):
    """The part of `Store` that looks up and deletes points."""

    def delete(self, collection: str, /, *, ids: Sequence[PointId] = ()) -> int:
        """Delete points by ids, and return how many of them existed."""
        ...


def delete_stale_chunks(
    store: Chunks,
    collection: str,
    documents: Mapping[PointId, int],
    scope: str,
    *,
    batch_points: int = BATCH_MAX_POINTS,
) -> int:
    """Delete the chunks of these documents beyond their current last chunk, and return their number. The call blocks.

    The chunks are looked up by their ids, because ids distinguish documents of different scopes and payloads do not. No
    other job may write these documents at the same time; see `DocumentLocks`.

    Args:
        store: store of the collection.
        collection: name of the collection.
        documents: current number of chunks by document id. All of these chunks must be stored.
        scope: collection name from which ids are derived, as in `chunk_id`.
        batch_points: maximum number of ids in a request.

    Raises:
        WorkerError: see the table in `qdrant_sink.store`. Running the same job again completes the deletion.
    """
    stale: list[PointId] = []
    chunks = dict(documents)
    while chunks:
        lookahead = max(LOOKAHEAD_MIN_CHUNKS, min(LOOKAHEAD_MAX_CHUNKS, LOOKUP_TARGET_IDS // len(chunks)))
        lookups: dict[PointId, PointId] = {
            chunk_id(document, first + number, scope): document
            for document, first in chunks.items()
            for number in range(lookahead)
        }
        existing = existing_ids(store, collection, list(lookups), batch_points=batch_points)
        stale += [chunk for chunk in lookups if chunk in existing]
        unfinished = {lookups[chunk] for chunk in existing}
        chunks = {document: first + lookahead for document, first in chunks.items() if document in unfinished}
    # The last chunks are deleted first: after an interruption, the next run finds the remaining chunks without a gap.
    for end in range(len(stale), 0, -batch_points):
        store.delete(collection, ids=stale[max(0, end - batch_points) : end])
    if stale:
        log.info("deleted %d chunks of earlier versions", len(stale))
    return len(stale)
