"""Replace documents as a whole: the chunks of a new version are stored beside those of the older one, which then go.

    begin     read which chunks of the documents are stored, and choose a version that is greater than theirs
    (write)   store the chunks under ids of their own
    commit    read again; where a greater version has appeared, withdraw; otherwise delete all other chunks

Writers of one document, in one process or in several, need no lock: each of them reads after it has written, so that
at least one of two concurrent writers sees the other, and both decide by the same order of versions. So one of the
versions remains whole, and the other writer reports an error. If a writer is interrupted before it commits, the older
version is still whole, and the next write deletes what the interrupted one has left.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from embedder.errors import NotFound
from qdrant_sink.documents import Document, DocumentPaths, early_version, is_version, new_version, unversioned_chunk_id
from qdrant_sink.errors import IndexRequired, LimitExceeded
from qdrant_sink.filters import Filter
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.points import PayloadKeys, PointId, Stored
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.writing.batches import BATCH_MAX_POINTS

T = TypeVar("T")

log = logging.getLogger(__name__)

VERSIONED_MAX_AGE_S: Final = 600.0
"""Time for which a collection is taken to have no chunks without a version. Workers of an earlier release may write
some while they are replaced by new ones."""

LOOKUP_MAX_VALUES: Final = 1024
"""Maximum number of keys or ids of documents in the filter of one request."""


class DocumentStore(Protocol):
    """The part of `Store` that a replacement uses."""

    def ensure_index(self, collection: str, key: str, index: PayloadIndex, /) -> None:
        """Create a payload index unless the collection has one on this key."""
        ...

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: PayloadKeys,
        /,
        *,
        limit: int,
        after: PointId | None = None,
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids, and the id at which the next page begins."""
        ...

    def delete(self, collection: str, /, *, ids: Sequence[PointId] = ()) -> int:
        """Delete points by ids, and return how many of them existed."""
        ...


@dataclass(frozen=True, slots=True)
class StoredChunk:
    """A chunk in the store.

    Attributes:
        id: id of its point.
        key: key of its document.
        version: version of the write that stored it; empty for a chunk without a valid version.
        number: number of the chunk in the document; -1 if the payload has none.
    """

    id: PointId
    key: str
    version: str
    number: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """Outcome of a replacement.

    Attributes:
        superseded: keys of the documents of which a greater version was stored meanwhile; this one is withdrawn.
        missing: ids of chunks that were stored and are gone, because somebody deleted them meanwhile.
        deleted: number of chunks of other versions that were deleted.
    """

    superseded: frozenset[str] = frozenset()
    missing: frozenset[PointId] = frozenset()
    deleted: int = 0


class VersionedCollections:
    """Collections that were seen to have no chunks without a version, so that not every job looks for them.

    The store compares all points for that if the collection has no index on the number of the chunk. Thread-safe.

    Args:
        clock: monotonic clock in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen_at: dict[str, float] = {}

    def add(self, collection: str) -> None:
        """Record that a collection has no chunks without a version now."""
        self._seen_at[collection] = self._clock()

    def __contains__(self, collection: str) -> bool:
        """Whether the collection was recorded in the last `VERSIONED_MAX_AGE_S` seconds."""
        return self._clock() - self._seen_at.get(collection, float("-inf")) < VERSIONED_MAX_AGE_S


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
        self._documents = {document.key: document for document in documents}
        self._versioned = versioned
        self._keeps = keeps
        self._batch_points = batch_points
        self._before: dict[PointId, StoredChunk] = {}
        self._values_max = LOOKUP_MAX_VALUES
        self.versions: dict[str, str] = {}
        self.kept: dict[tuple[str, int], PointId] = {}

    def prepare_index(self) -> None:
        """Create the payload index by which the chunks of a document are found. The collection must exist."""
        self._store.ensure_index(self._collection, self._paths.key, PayloadIndex("keyword"))

    def begin(self) -> None:
        """Read which chunks of the documents are stored, and choose the version of this write."""
        try:
            self.prepare_index()
            stored = [*self._chunks(), *self._unversioned_chunks()]
        except NotFound:  # the collection will be created with the first batch
            stored = []
        self._before = {chunk.id: chunk for chunk in stored}
        version = new_version(max((chunk.version for chunk in stored), default=""))
        self.versions = dict.fromkeys(self._documents, version)
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

    def commit(self, written: Mapping[str, Collection[PointId]], *, whole: Collection[str] = ()) -> Outcome:
        """Make the written chunks the only version of their documents, or withdraw them.

        Args:
            written: ids of the chunks that this job has stored, by the key of their document. Documents of which
                nothing is stored are left as they are.
            whole: keys of the documents of which every chunk is stored or kept. If chunks are kept, those of older
                versions that interrupted writes have left are deleted of these documents only.
        """
        written = {key: ids for key, ids in written.items() if ids}
        own = {point for ids in written.values() for point in ids}
        left = self._left_over(whole) if self._keeps else []
        chunks = list(self._chunks({*written, *(chunk.key for chunk in left)}))
        superseded = frozenset(chunk.key for chunk in chunks if chunk.version > self.versions[chunk.key])
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
        ids = [chunk.id for chunk in (*self._chunks(), *self._unversioned_chunks())]
        return self._delete(ids)

    def _is_stale(self, chunk: StoredChunk, own: Collection[PointId]) -> bool:
        if chunk.id in own:
            return False
        if self._keeps:  # only what other jobs have inserted since `begin`
            return chunk.id not in self._before and chunk.version < self.versions[chunk.key]
        return True

    def _left_over(self, whole: Collection[str]) -> list[StoredChunk]:
        """Return the chunks of these documents that were stored before and are not kept."""
        kept = set(self.kept.values())
        return [chunk for chunk in self._before.values() if chunk.key in whole and chunk.id not in kept]

    def _chunks(self, keys: Iterable[str] | None = None) -> Iterator[StoredChunk]:
        """Yield the chunks that have a key, of these documents or of all."""
        paths = self._paths
        selected = (paths.key, paths.version, paths.chunk)
        for point, payload in self._scan_any(paths.key, self._documents if keys is None else keys, selected):
            version, number = (
                PayloadPath.parse(paths.version).value_in(payload),
                PayloadPath.parse(paths.chunk).value_in(payload),
            )
            yield StoredChunk(
                point,
                str(PayloadPath.parse(paths.key).value_in(payload)),
                str(version) if is_version(version) else "",
                number if isinstance(number, int) else -1,
            )

    def _unversioned_chunks(self) -> Iterator[StoredChunk]:
        """Yield the chunks of the documents that were stored before chunks had keys.

        Their payload names the id of the document, but not its scope, so that the id of the point decides.
        """
        paths = self._paths
        unkeyed: list[Filter] = [{"is_empty": {"key": paths.key}}, {"key": paths.chunk, "range": {"gte": 0}}]
        if self._collection in self._versioned:
            return
        if not self._any({"must": unkeyed}):
            self._versioned.add(self._collection)
            return
        by_payload_id: dict[int | str, list[Document]] = {}
        for document in self._documents.values():
            for value in document.payload_ids:
                by_payload_id.setdefault(value, []).append(document)
        for point, payload in self._scan_payload_ids(by_payload_id, unkeyed):
            number = PayloadPath.parse(paths.chunk).value_in(payload)
            for document in by_payload_id.get(PayloadPath.parse(paths.document).value_in(payload), ()):
                if isinstance(number, int) and point == unversioned_chunk_id(document.id, number, document.scope):
                    yield StoredChunk(point, document.key, "", number)

    def _scan_payload_ids(
        self, payload_ids: Iterable[int | str], unkeyed: Sequence[Filter]
    ) -> Iterator[tuple[PointId, Mapping[str, Any]]]:
        """Yield the chunks without a key of documents with these ids, and perhaps those of others.

        Without an index on the id, a server in strict mode does not filter by it. An index has one type and ids may
        have two, so that none is created and all chunks without a key are read.
        """
        paths = self._paths
        selected = (paths.document, paths.chunk)
        values = list(payload_ids)
        try:
            for kind in (int, str):  # a condition has values of one type
                some = [value for value in values if type(value) is kind]
                yield from self._scan_any(paths.document, some, selected, also=unkeyed)
        except IndexRequired:
            yield from self._scan({"must": unkeyed}, selected)

    def _any(self, where: Filter) -> bool:
        """Whether a point matches. An index on the number of chunks is created if the store demands it."""
        paths = self._paths
        try:
            points, _ = self._store.scroll(self._collection, where, PayloadKeys((paths.chunk,)), limit=1)
        except IndexRequired:
            self._store.ensure_index(self._collection, paths.chunk, PayloadIndex("integer"))
            points, _ = self._store.scroll(self._collection, where, PayloadKeys((paths.chunk,)), limit=1)
        return bool(points)

    def _scan_any(
        self, path: str, values: Iterable[int | str], keys: tuple[str, ...], *, also: Sequence[Filter] = ()
    ) -> Iterator[tuple[PointId, Mapping[str, Any]]]:
        """Yield all points with one of these values at a path that meet further conditions.

        A server in strict mode can limit the number of values in a condition.
        """
        remaining = list(values)
        while remaining:
            some = remaining[: self._values_max]
            where = {"must": [*also, {"key": path, "match": {"any": some}}]}
            try:
                yield from self._scan(where, keys)
            except LimitExceeded as error:
                if error.field != "condition size" or not 1 <= error.maximum < len(some):
                    raise
                self._values_max = int(error.maximum)
                continue
            remaining = remaining[len(some) :]

    def _scan(self, where: Filter, keys: tuple[str, ...]) -> Iterator[tuple[PointId, Mapping[str, Any]]]:
        """Yield all matching points. A server in strict mode can limit the number of points in a page."""
        after: PointId | None = None
        limit = self._batch_points
        while True:
            try:
                points, after = self._store.scroll(self._collection, where, PayloadKeys(keys), limit=limit, after=after)
            except LimitExceeded as error:
                if error.field != "limit" or not 1 <= error.maximum < limit:
                    raise
                limit = int(error.maximum)
                continue
            for point, stored in points.items():
                yield point, stored.payload or {}
            if after is None:
                return

    def _delete(self, ids: Sequence[PointId]) -> int:
        return sum(self._store.delete(self._collection, ids=some) for some in _parts(ids, self._batch_points))


def _parts(values: Iterable[T], size: int) -> Iterator[list[T]]:
    remaining = list(values)
    return (remaining[first : first + size] for first in range(0, len(remaining), size))
