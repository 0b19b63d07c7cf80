"""A new version of a document replaces all chunks of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Point, PointId, chunk_id
from qdrant_sink.store import Store
from qdrant_sink.writing import delete_stale_chunks
from qdrant_sink.writing.stale import LOOKAHEAD_MAX_CHUNKS, LOOKAHEAD_MIN_CHUNKS
from tests.sink.samples import SCHEMA, sample_vectors

SCOPE = "notes"


def _chunks(document: PointId, numbers: Sequence[int], scope: str = SCOPE) -> list[PointId]:
    return [chunk_id(document, number, scope) for number in numbers]


class Chunks:
    """A store of chunk ids that records lookups and deletions."""

    def __init__(self, ids: Sequence[PointId], *, deletions: int = 10**9) -> None:
        self.ids = set(ids)
        self.asked: list[int] = []
        self.deleted: list[list[PointId]] = []
        self._deletions = deletions

    def existing(self, _collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        self.asked.append(len(ids))
        return self.ids.intersection(ids)

    def delete(self, _collection: str, *, ids: Sequence[PointId] = ()) -> int:
        """See `Store.delete`."""
        if len(self.deleted) == self._deletions:
            raise StoreUnavailable("no answer")
        self.deleted.append(list(ids))
        self.ids.difference_update(ids)
        return len(ids)


def test_only_chunks_beyond_the_last_one_are_deleted(store: Store, collection: str) -> None:
    """Chunks of the current version, of other documents and of other scopes are kept."""
    store.ensure(collection, SCHEMA)
    mine, other, foreign = _chunks(1, range(9)), _chunks(2, range(9)), _chunks(1, range(9), "elsewhere")
    dense = sample_vectors(0).dense
    store.upsert(collection, [Point(point, {}, dense=dense) for point in [*mine, *other, *foreign]])
    assert delete_stale_chunks(store, collection, {1: 4, 3: 1}, SCOPE) == 5
    assert store.existing(collection, [*mine, *other, *foreign]) == {*mine[:4], *other, *foreign}


def test_chunks_after_a_gap_are_deleted() -> None:
    """Chunks after a missing batch of the earlier version are deleted too."""
    after_gap = _chunks(1, [LOOKAHEAD_MAX_CHUNKS + 1, LOOKAHEAD_MAX_CHUNKS + 2])
    chunks = Chunks([*_chunks(1, range(3)), *after_gap])
    assert delete_stale_chunks(chunks, "c", {1: 3}, SCOPE) == 2
    assert chunks.ids == set(_chunks(1, range(3)))


def test_many_documents_share_the_lookups() -> None:
    """A job with many documents looks up a few chunks per document, and more where it finds some."""
    documents: dict[PointId, int] = dict.fromkeys(range(1000), 1)
    chunks = Chunks(_chunks(5, range(1 + LOOKAHEAD_MIN_CHUNKS)))
    assert delete_stale_chunks(chunks, "c", documents, SCOPE) == LOOKAHEAD_MIN_CHUNKS
    assert sum(chunks.asked) == 1000 * LOOKAHEAD_MIN_CHUNKS + LOOKAHEAD_MAX_CHUNKS


def test_a_deletion_that_is_cut_short_is_completed_by_the_next_run() -> None:
    """The last chunks are deleted first, so that the next run finds the remaining ones without a gap."""
    chunks = Chunks(_chunks(1, range(12)), deletions=2)
    with pytest.raises(StoreUnavailable):
        delete_stale_chunks(chunks, "c", {1: 2}, SCOPE, batch_points=3)
    assert chunks.ids == set(_chunks(1, range(6)))
    again = Chunks(list(chunks.ids))
    assert delete_stale_chunks(again, "c", {1: 2}, SCOPE, batch_points=3) == 4
    assert again.ids == set(_chunks(1, range(2)))


def test_a_job_without_documents_calls_nothing() -> None:
    """Without documents the store is not called."""
    chunks = Chunks([])
    assert delete_stale_chunks(chunks, "c", {}, SCOPE) == 0
    assert chunks.asked == []
