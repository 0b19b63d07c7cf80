"""Find the chunks of documents in a store: by the key of their document or, for chunks without one, by its id."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from qdrant_sink.documents import Document, DocumentPaths, is_version, unversioned_chunk_id
from qdrant_sink.errors import IndexRequired, LimitExceeded
from qdrant_sink.filters import Filter
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.points import PayloadKeys, PointId, Stored
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.writing.batches import BATCH_MAX_POINTS

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

    def set_payload(self, collection: str, ids: Sequence[PointId], path: str, value: Any, /) -> None:
        """Set one value in the payload of these points."""
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
        total: number of chunks of the whole version; 0 if the payload has none.
    """

    id: PointId
    key: str
    version: str
    number: int
    total: int = 0


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


class StoredChunks:
    """The stored chunks of documents. Its methods block, and raise the errors of the store.

    Args:
        store: store of the collection.
        collection: name of the collection.
        paths: payload paths of the collection's layout.
        documents: the documents.
        versioned: collections that were seen to have no chunks without a version.
        batch_points: maximum number of points in one request.
    """

    def __init__(
        self,
        store: DocumentStore,
        collection: str,
        paths: DocumentPaths,
        documents: Sequence[Document],
        versioned: VersionedCollections,
        *,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._store = store
        self._collection = collection
        self._paths = paths
        self._documents = {document.key: document for document in documents}
        self._versioned = versioned
        self._batch_points = batch_points
        self._values_max = LOOKUP_MAX_VALUES

    def prepare_index(self) -> None:
        """Create the payload index by which the chunks of a document are found. The collection must exist."""
        self._store.ensure_index(self._collection, self._paths.key, PayloadIndex("keyword"))

    def keyed(self, keys: Iterable[str] | None = None) -> Iterator[StoredChunk]:
        """Yield the chunks that have a key, of these documents or of all."""
        paths = self._paths
        selected = (paths.key, paths.version, paths.chunk, paths.total)
        for point, payload in self._scan_any(paths.key, self._documents if keys is None else keys, selected):
            key, version, number, total = (PayloadPath.parse(path).value_in(payload) for path in selected)
            yield StoredChunk(
                point,
                str(key),
                str(version) if is_version(version) else "",
                number if isinstance(number, int) else -1,
                total if isinstance(total, int) else 0,
            )

    def unversioned(self) -> Iterator[StoredChunk]:
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
