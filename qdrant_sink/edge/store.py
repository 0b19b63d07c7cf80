"""The embedded store: Qdrant Edge, the server's engine in this process, as a `Store`. It is the default.

Every collection has a directory, and every alias is a symbolic link; see `edge.directories`. Calls for one
collection are serialised, which costs no throughput because every call of the engine holds the GIL.

Searches are exact until `optimize` builds the HNSW graph in a separate process (`edge.optimization`). It does not run
automatically, because other calls for the collection wait for it and it uses all cores. Call it after a bulk load. On
two busy cores with 20 000 points of 1024 components, an exact search takes 12 ms (hybrid 24 ms), the optimisation 98 s,
and a search after it 6 ms (hybrid 2 ms).

If the optimisation or its worker is killed, no points are lost, and the next run still builds the graph; see
`edge.segments`. `build_index` raises if the graph is incomplete.

A write is acknowledged when it is in the write-ahead log, so that it survives the end of the process, even a kill. Like
a server, the store synchronises files every `FLUSH_INTERVAL_S` seconds, because a flush holds the GIL for 40 to 200 ms;
a load with a flush after every batch took twenty times as long. If the machine loses power, writes since the last flush
can be lost.

A point that makes the engine panic stays in the write-ahead log, and the collection can then be neither written nor
opened. Therefore only points that `conformance` has validated may be stored.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from embedder.errors import ConfigurationError, InvalidRequest, NotFound, WorkerError
from embedder.vectors import Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.directories import Directories
from qdrant_sink.edge.directory_lock import lock_directory
from qdrant_sink.edge.disk_space import OPERATION_MAX_BYTES, DiskSpace
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.models import edge_id, edge_order, edge_point, payload_selector, sink_id, stored
from qdrant_sink.edge.optimization import OPTIMIZER_COMMAND, Optimizer
from qdrant_sink.edge.schema import create_index, edge_config
from qdrant_sink.edge.searches import search
from qdrant_sink.edge.settings import PAYLOAD_SIZE_BYTES, PayloadBounds, write_model, write_payload_bounds
from qdrant_sink.edge.slices import in_windows, matching_ids, resolved_filter, scrolled
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.filters import Filter, matches_all
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.point_order import PointOrder
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import NAMES, CollectionSchema, PayloadIndex, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, missing_indexes, verify, verify_index
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.store import Metadata, check_collection

log = logging.getLogger(__name__)

DELETED_POINTS: Final = 10_000
"""Number of points that one call deletes, in 12 ms, during which no other thread runs Python."""

FLUSH_INTERVAL_S: Final = 5.0
"""Time between two flushes, equal to the default of Qdrant's `flush_interval_sec`."""

OPEN_COLLECTIONS_MAX: Final = 64
"""Maximum number of open collections. Each of them holds two threads, a descriptor and 20 to 60 memory maps, and jobs
can create any number of them. Opening one again takes 10 ms, or 0.3 s with 3 000 points of 1024 components."""


class EdgeStore:
    """Collections in a directory of this machine, which only one process can use. The store is thread-safe.

    Args:
        path: directory of the collections, which is created if it is missing.
        open_collections: maximum number of open collections. The least recently used ones are closed.
        optimizer: command of the process that optimises a collection.
        space: free space of the disk, without which nothing is written; None for the default reserve.

    Raises:
        ConfigurationError: the directory cannot be written, or another process uses it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        open_collections: int = OPEN_COLLECTIONS_MAX,
        optimizer: Sequence[str] = OPTIMIZER_COMMAND,
        space: DiskSpace | None = None,
    ) -> None:
        self._guard = threading.Lock()
        self._open_collections = open_collections
        self._collections: dict[str, EdgeCollection] = {}  # in the order of use, the most recent last
        root = Path(path)
        self._lock_file = lock_directory(root)
        self._directories = Directories(root)
        self._optimizer = Optimizer(self._lock_file, optimizer)
        self._root = root
        self._space = DiskSpace() if space is None else space
        self._closed = False
        self._stopping = threading.Event()
        self._flusher = threading.Thread(target=self._flush_regularly, name="edge-flush", daemon=True)
        self._flusher.start()
        self._directories.remove_unfinished()

    @property
    def label(self) -> str:
        """Human-readable name of the store."""
        return "Qdrant Edge (embedded)"

    @property
    def is_shared(self) -> bool:
        """False: one process can use the directory at a time."""
        return False

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection and its payload indexes, or verify it and add missing indexes."""
        self._check(collection, schema)
        with self._guard:
            self._check_open()
            name = self._directories.resolve(collection)
            if not self._directories.exists(name):
                self._collections.pop(name, None)  # its directory may have been deleted while it was open
                self._create(name, schema)
            existing = self._cached_collection(name)
        actual = existing.describe()
        verify(collection, schema, actual)
        for key, index in missing_indexes(schema, actual).items():
            _add_index(existing, collection, key, index)

    def ensure_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        """Create a payload index unless the collection has one on this key."""
        existing = self._collection(collection)
        actual = existing.describe().payload_indexes.get(key)
        if actual is None:
            _add_index(existing, collection, key, index)
        else:
            verify_index(collection, key, index, actual)

    def verify(
        self, collection: str, schema: CollectionSchema, description: CollectionDescription | None = None
    ) -> bool:
        """Whether `ensure` would have nothing to create. Raises SchemaMismatch; see `Store.verify`."""
        self._check(collection, schema)
        if description is not None:
            verify(collection, schema, description)
            return not missing_indexes(schema, description)
        with self._guard:
            self._check_open()
            name = self._directories.resolve(collection)
            if not self._directories.exists(name):
                return False
            existing = self._cached_collection(name)
        actual = existing.describe()
        verify(collection, schema, actual)
        return not missing_indexes(schema, actual)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Check the collection and its schema. Only `build_index` builds a graph, so that there is nothing to defer."""
        self._collection(collection)
        self._check(collection, schema)

    def restore_index(self, collection: str, schema: CollectionSchema) -> None:
        """Check the collection and its schema, as `defer_index` does."""
        self.defer_index(collection, schema)

    def metadata(self, collection: str) -> Metadata:
        """Return the metadata of a collection."""
        return self._collection(collection).metadata()

    def update_metadata(self, collection: str, changes: Metadata) -> None:
        """Set keys of the metadata, or remove them; the file is durable on return."""
        self._collection(collection).update_metadata(changes)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:  # noqa: ARG002
        """Call `optimize` and check that the graph is complete. `timeout_s` does not apply."""
        self._check(collection, schema)
        _, unindexed = self._collection(collection).optimize(schema.names.dense)
        if unindexed:
            raise StoreUnavailable(
                f"collection {collection!r} is not ready: {unindexed} points are not in the HNSW graph"
            )

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:  # noqa: ARG002 - always available
        """See `Store.collection_of`."""
        check_collection(name)
        with self._guard:
            self._check_open()
            resolved = self._directories.resolve(name)
            return resolved if self._directories.exists(resolved) else None

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        return [name for name, collection in self._collections_by_name().items() if name == collection]

    def aliases(self) -> dict[str, str]:
        """Return the collections of all aliases by alias."""
        return {name: collection for name, collection in self._collections_by_name().items() if name != collection}

    def describe(self, collection: str) -> CollectionState:
        """Return the state of a collection. It is grey while points wait for `optimize`, and otherwise green."""
        return self._collection(collection).state()

    def description(self, collection: str) -> CollectionDescription:
        """Return the vectors and payload indexes of a collection."""
        return self._collection(collection).describe()

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection atomically, by renaming a new symbolic link over the previous one."""
        check_collection(alias)
        check_collection(collection)
        with self._guard:
            self._check_open()
            self._directories.check_distinct(alias)
            link = self._directories.path(alias)
            if os.path.lexists(link) and self._directories.resolve(alias) == alias:
                raise InvalidRequest(f"alias: {alias!r} is the name of a collection; choose another")
            if self._directories.resolve(collection) != collection or not self._directories.exists(collection):
                raise NotFound(f"collection {collection!r} does not exist")
            temporary = self._directories.temporary()
            with mapped(f"alias {alias!r}"):
                temporary.symlink_to(self._directories.path(collection).name)
                temporary.replace(link)

    def drop(self, collection: str) -> None:
        """Delete a collection with all its points, and the aliases that lead to it."""
        check_collection(collection)
        with self._guard:
            self._check_open()
            if self._directories.resolve(collection) != collection:
                raise InvalidRequest(f"collection: {collection!r} is an alias; name the collection itself")
            if not self._directories.exists(collection):
                raise NotFound(f"collection {collection!r} does not exist")
            opened = self._collections.pop(collection, None)
            if opened is not None:
                opened.close()
            with mapped(f"deletion of collection {collection!r}"):
                self._directories.remove(collection)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points. Raises NotFound, StoreRejected or StoreUnavailable."""
        check_collection(collection)
        if not points:
            return
        mode = edge.UpdateMode.InsertOnly if insert_only else edge.UpdateMode.Upsert
        with mapped("points"):
            rows = [edge_point(point) for point in points]
            operation = edge.UpdateOperation.upsert_points(rows, update_mode=mode)
        self._collection(collection).upsert(points, operation)

    def add_vectors(self, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> None:
        """Add the vectors of these kinds that the collection lacks; see `Store.add_vectors`."""
        self._collection(collection).add_vectors(collection, schema, kinds)

    def update_vectors(self, collection: str, points: Sequence[Point]) -> set[PointId]:
        """Set the vectors of existing points, and return the ids that do not exist."""
        check_collection(collection)
        return self._collection(collection).update_vectors(points) if points else set()

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Return the subset of these ids that is stored."""
        check_collection(collection)
        if not ids:
            return set()
        with self._collection(collection).opened() as shard, mapped("ids"):
            return {sink_id(record.id) for record in shard.retrieve(list(ids), with_payload=False, with_vector=False)}

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """Return the hits of each plan, with one call unless that would take long; see `edge.searches`."""
        check_collection(collection)
        if not plans:
            return []
        existing = self._collection(collection)
        return search(existing, plans, existing.pair_rate)

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        *,
        names: VectorNames = NAMES,
        patient: bool = False,  # noqa: ARG002 - always available
    ) -> dict[PointId, Stored]:
        """Return the requested parts of these points by id."""
        check_collection(collection)
        if not ids:
            return {}
        vectors = [names.of(kind) for kind in with_vectors] or False
        with self._collection(collection).opened() as shard, mapped("ids"):
            records = shard.retrieve(list(ids), with_payload=payload_selector(with_payload), with_vector=vectors)
            return {sink_id(record.id): stored(record, names) for record in records}

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: WithPayload,
        *,
        limit: int,
        after: PointId | None = None,
        interactive: bool = False,  # noqa: ARG002 - always available
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids; see `Store.scroll`."""
        request = partial(edge.ScrollRequest, with_payload=payload_selector(with_payload), with_vector=False)
        records, following = scrolled(self._collection(collection), request, where, limit=limit, after=after)
        page = {sink_id(record.id): Stored(record.payload) for record in records}
        return page, None if following is None else sink_id(following)

    def scroll_ordered(
        self, collection: str, where: Filter, order: PointOrder, *, limit: int
    ) -> list[tuple[PointId, float]]:
        """Return the ids of the first matching points of an order, each with the number that orders it."""
        existing = self._collection(collection)
        condition = resolved_filter(existing, where)
        request = edge.ScrollRequest(
            limit=limit, filter=condition, order_by=edge_order(order), with_payload=False, with_vector=False
        )
        with existing.opened() as shard, mapped("order"):
            records, _ = shard.scroll(request)
            return [(sink_id(record.id), record.order_value) for record in records if record.order_value is not None]

    def set_payload(self, collection: str, ids: Sequence[PointId], path: str, value: Any) -> None:
        """Set one value in the payload of these points."""
        target = PayloadPath.parse(path)
        parent = None if target.parent is None else str(target.parent)
        self._collection(collection).set_payload(ids, {str(target.parts[-1]): value}, parent)

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete points by ids or by a filter with at least one condition, and return how many of them existed."""
        if bool(ids) == (where is not None):
            raise InvalidRequest(f"delete: must have exactly one of ids and filter, got {'both' if ids else 'neither'}")
        if where is not None:
            edge_filter(where)  # what the engine does not support is refused first
            if matches_all(where):
                raise InvalidRequest("filter: must have at least one condition to delete by, got none")
        existing = self._collection(collection)
        if where is None:
            with existing.opened_to_write() as shard, mapped("deletion"):
                existed = len(shard.retrieve(list(set(ids)), with_payload=False, with_vector=False))
                shard.update(edge.UpdateOperation.delete_points(list(ids)))
                existing.filter_rates.deleted(set(map(edge_id, ids)))
            return existed

        def delete(shard: edge.EdgeShard, condition: edge.Filter) -> int:
            matching = matching_ids(shard, condition)  # a deletion by a filter compares each point several times
            for start in range(0, len(matching), DELETED_POINTS):
                shard.update(edge.UpdateOperation.delete_points(matching[start : start + DELETED_POINTS]))
            existing.filter_rates.deleted(set(matching))
            return len(matching)

        return sum(in_windows(existing, where, delete, opened=existing.opened_to_write))

    def count(
        self,
        collection: str,
        where: Filter | None = None,
        *,
        patient: bool = False,  # noqa: ARG002 - always available
    ) -> int:
        """Return the exact number of matching points."""
        existing = self._collection(collection)
        if where is None:
            with existing.opened() as shard, mapped("count"):
                return shard.count(edge.CountRequest(exact=True))
        return sum(in_windows(existing, where, _count))

    def optimize(self, collection: str, vector: str = NAMES.dense) -> bool:
        """Merge segments and build the HNSW graph. Returns whether anything changed. Other collections stay usable.

        `vector` is the name of the dense vector, which the collection may lack.
        """
        changed, _ = self._collection(collection).optimize(vector)
        return changed

    def close(self) -> None:
        """Flush all collections, stop running optimisations and unlock the directory. Closing twice is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._stopping.set()
            failure: WorkerError | None = None
            try:
                for collection in self._collections.values():
                    try:
                        collection.close()
                    except WorkerError as error:  # the other collections must still be closed
                        failure = error
                if failure is not None:
                    raise failure
            finally:
                self._collections.clear()
                os.close(self._lock_file)

    def _collection(self, name: str) -> EdgeCollection:
        check_collection(name)
        with self._guard:
            self._check_open()
            resolved = self._directories.resolve(name)
            if not self._directories.exists(resolved):
                raise NotFound(f"collection {name!r} does not exist")
            return self._cached_collection(resolved)

    def _flush_regularly(self) -> None:
        while not self._stopping.wait(FLUSH_INTERVAL_S):
            with self._guard:
                collections = list(self._collections.values())
            for collection in collections:
                try:
                    collection.flush()
                except WorkerError as error:  # the next flush tries again; the points are in the write-ahead log
                    log.error("%s", error.message)

    def _check(self, name: str, schema: CollectionSchema) -> None:
        check_collection(name)
        if schema.placement.server_only:
            raise ConfigurationError(
                f"{schema.placement.server_only}: Qdrant Edge runs on a single machine; use a Qdrant server"
            )

    def _collections_by_name(self) -> dict[str, str]:
        """Return the collection of every name, which is its own or that of an alias, in alphabetical order."""
        with self._guard, mapped("list of collections"):
            self._check_open()
            return {name: self._directories.resolve(name) for name in sorted(self._directories.names())}

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _cached_collection(self, name: str) -> EdgeCollection:
        """Return the collection of an existing directory, and close the least recently used ones if necessary."""
        collection = self._collections.pop(name, None) or EdgeCollection(
            self._directories.path(name), self._optimizer, self._space
        )
        others = [other for other in self._collections.values() if other.is_open]
        self._collections[name] = collection
        excess = len(others) + 1 - self._open_collections
        for other in others:
            if excess <= 0:
                break
            try:
                excess -= other.close_if_idle()
            except WorkerError as error:  # it stays open until the next try; the points are in the write-ahead log
                log.error("%s", error.message)
        return collection

    def _create(self, name: str, schema: CollectionSchema) -> None:
        """Create the collection under a temporary name and rename it, so that a crash leaves nothing incomplete."""
        self._directories.check_distinct(name)
        temporary = self._directories.temporary()
        creating = self._space.write(self._root, "creation of a collection", OPERATION_MAX_BYTES)
        with mapped(f"creation of collection {name!r}"):
            self._directories.remove_unfinished()  # remove the directory of an attempt that failed
        with creating, mapped(f"creation of collection {name!r}"):
            shard = edge.EdgeShard.create(str(temporary), edge_config(schema))
            for key, index in schema.indexes.items():
                create_index(shard, key, index)
            shard.flush()
            shard.close()
            if schema.model is not None:
                write_model(temporary, schema.model)
            write_payload_bounds(temporary, PayloadBounds(PAYLOAD_SIZE_BYTES, {}))
            temporary.rename(self._directories.path(name))


def _count(shard: edge.EdgeShard, condition: edge.Filter) -> int:
    return shard.count(edge.CountRequest(exact=True, filter=condition))


def _add_index(existing: EdgeCollection, collection: str, key: str, index: PayloadIndex) -> None:
    existing.add_index(key, index)
    log.info("collection %r had no payload index on %r; created it (%s)", collection, key, index.type)
