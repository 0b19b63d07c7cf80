"""Replace documents as a whole: the chunks of a new version are stored beside those of the older one, which then go.

    begin     read which chunks of the documents are stored, and choose a version that is greater than theirs
    (write)   store the chunks under ids of their own
    commit    read again; where a greater version is complete, withdraw; otherwise delete the chunks of lower versions

Writers of one document, in one process or in several, need no lock: each of them reads after it has written, so that
at least one of two concurrent writers sees the other complete, and both decide by the same order of versions. So one of
the versions remains whole. The other writer reports an error, or was acknowledged before it was replaced. Every chunk
says how many its version has, so that a writer does not withdraw for one that may never be complete. If a writer is
interrupted before it commits, the older version is still whole, and the next write deletes what the interrupted one has
left.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from embedder.errors import NotFound
from qdrant_sink.documents import Document, DocumentPaths, early_version, new_version
from qdrant_sink.points import PointId
from qdrant_sink.writing.batches import BATCH_MAX_POINTS
from qdrant_sink.writing.stored_chunks import DocumentStore, StoredChunk, StoredChunks, VersionedCollections

T = TypeVar("T")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a replacement.

    Attributes:
        superseded: keys of the documents of which a whole greater version was stored meanwhile; this one is withdrawn.
        missing: ids of chunks that were stored and are gone, because somebody deleted them meanwhile.
        deleted: number of chunks of other versions that were deleted.
    """

    superseded: frozenset[str] = frozenset()
    missing: frozenset[PointId] = frozenset()
    deleted: int = 0


class Replacement:
    """The replacement of documents by one job. Its methods block.

    Args:
        store: store of the collection.
        collection: name of the collection.
        paths: payload paths of the collection's layout.
        documents: the documents.
        versioned: collections that were seen to have no chunks without a version.
        keeps: whether chunks that were stored before are kept (`insert_only`), so that only missing ones are added.
        batch_points: maximum number of points in one request.

    Attributes:
        versions: version of this write by the key of the document, after `begin`.
        kept: ids of chunks that were stored before by key and number of the chunk, if they are kept.

    Every method raises the errors of the store; see the table in `qdrant_sink.store`.
    """

    def __init__(
        self,
        store: DocumentStore,
        collection: str,
        paths: DocumentPaths,
        documents: Sequence[Document],
        versioned: VersionedCollections,
        *,
        keeps: bool = False,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._store = store
        self._collection = collection
        self._paths = paths
        self._chunks = StoredChunks(store, collection, paths, documents, versioned, batch_points=batch_points)
        self._keys = [document.key for document in documents]
        self._keeps = keeps
        self._batch_points = batch_points
        self._before: dict[PointId, StoredChunk] = {}
        self.versions: dict[str, str] = {}
        self.kept: dict[tuple[str, int], PointId] = {}

    def prepare_index(self) -> None:
        """Create the payload index by which the chunks of a document are found. The collection must exist."""
        self._chunks.prepare_index()

    def begin(self) -> None:
        """Read which chunks of the documents are stored, and choose the version of this write."""
        try:
            self.prepare_index()
            stored = [*self._chunks.keyed(), *self._chunks.unversioned()]
        except NotFound:  # the collection will be created with the first batch
            stored = []
        self._before = {chunk.id: chunk for chunk in stored}
        version = new_version(max((chunk.version for chunk in stored), default=""))
        self.versions = dict.fromkeys(self._keys, version)
        if self._keeps:
            self._keep(stored)

    def _keep(self, stored: Iterable[StoredChunk]) -> None:
        """Keep the chunks of the latest version of each document, and complete that version.

        Chunks without a version are kept too, unless a later version has chunks of the same numbers: then a write that
        was to replace them was interrupted. A write that only completes them has an early version, so that it is
        superseded by every write that replaces them: that one deletes them, perhaps while this one reads.
        """
        by_version: dict[str, dict[str, dict[int, PointId]]] = {}
        for chunk in stored:
            by_version.setdefault(chunk.key, {}).setdefault(chunk.version, {})[chunk.number] = chunk.id
        for key, versions in by_version.items():
            latest = max(versions)
            kept = dict(versions[latest])
            self.versions[key] = latest or early_version()
            unversioned = versions.get("", {})
            if kept.keys().isdisjoint(unversioned):
                kept |= unversioned
            self.kept |= {(key, number): point for number, point in kept.items()}

    def commit(
        self,
        written: Mapping[str, Collection[PointId]],
        *,
        whole: Collection[str] = (),
        reduced: Collection[str] = (),
    ) -> Outcome:
        """Make the written chunks the only version of their documents, or withdraw them.

        Args:
            written: ids of the chunks that this job has stored, by the key of their document. Documents of which
                nothing is stored are left as they are.
            whole: keys of the documents of which every chunk is stored or kept. If chunks are kept, those of older
                versions that interrupted writes have left are deleted of these documents only.
            reduced: keys of the documents of which a chunk was rejected after `begin`. They have fewer chunks than
                their payload says, which is corrected, so that other writers see that they are complete.
        """
        written = {key: ids for key, ids in written.items() if ids}
        own = {point for ids in written.values() for point in ids}
        for key in written.keys() & set(reduced):
            kept = sum(owner == key for owner, _ in self.kept)
            self._set_total(list(written[key]), len(written[key]) + kept)
        left = self._left_over(whole) if self._keeps else []
        chunks = list(self._chunks.keyed({*written, *(chunk.key for chunk in left)}))
        superseded = frozenset(key for key, version in _complete(chunks) if version > self.versions[key])
        present = {chunk.id for chunk in chunks}
        missing = frozenset(
            point for key, ids in written.items() if key not in superseded for point in ids if point not in present
        )
        withdrawn = [chunk.id for chunk in chunks if chunk.id in own and chunk.key in superseded]
        stale = [chunk.id for chunk in chunks if chunk.key not in superseded and self._is_stale(chunk, own)]
        if not self._keeps:
            unversioned = [chunk for chunk in self._before.values() if not chunk.version and chunk.id not in present]
            left = [chunk for chunk in unversioned if chunk.key in written]
        stale += [chunk.id for chunk in left if chunk.key not in superseded]
        self._delete(withdrawn)
        self._delete(stale)
        if stale:
            log.info("deleted %d chunks of other versions", len(stale))
        return Outcome(superseded, missing, len(stale))

    def delete(self) -> int:
        """Delete all chunks of the documents, and return their number. `begin` need not have been called."""
        self.prepare_index()
        ids = [chunk.id for chunk in (*self._chunks.keyed(), *self._chunks.unversioned())]
        return self._delete(ids)

    def _is_stale(self, chunk: StoredChunk, own: Collection[PointId]) -> bool:
        if chunk.id in own or chunk.version > self.versions[chunk.key]:  # its writer has yet to commit
            return False
        if self._keeps:  # only what other jobs have inserted since `begin`
            return chunk.id not in self._before and chunk.version < self.versions[chunk.key]
        return True

    def _left_over(self, whole: Collection[str]) -> list[StoredChunk]:
        """Return the chunks of these documents that were stored before and are not kept."""
        kept = set(self.kept.values())
        return [chunk for chunk in self._before.values() if chunk.key in whole and chunk.id not in kept]

    def _set_total(self, ids: Sequence[PointId], total: int) -> None:
        for some in _parts(ids, self._batch_points):
            self._store.set_payload(self._collection, some, self._paths.total, total)

    def _delete(self, ids: Sequence[PointId]) -> int:
        return sum(self._store.delete(self._collection, ids=some) for some in _parts(ids, self._batch_points))


def _complete(chunks: Iterable[StoredChunk]) -> Iterator[tuple[str, str]]:
    """Yield the key and the version of each document of which all chunks of a version are stored."""
    versions: dict[tuple[str, str], list[StoredChunk]] = {}
    for chunk in chunks:
        versions.setdefault((chunk.key, chunk.version), []).append(chunk)
    for version, stored in versions.items():
        if len(stored) >= min(chunk.total for chunk in stored):
            yield version


def _parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = list(values)
    return (remaining[first : first + size] for first in range(0, len(remaining), size))
