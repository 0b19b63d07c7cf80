"""The embedded default: Qdrant Edge, the engine of the server in this process, behind the `Store` seam.

One directory per collection, and a symbolic link per alias. Every call of the engine holds the GIL, so
calls of one collection are serialised and nothing is lost by it.

Points are searched exactly until `optimize` builds the HNSW graph, in a process of its own (`edge.optimization`). That
is not done unasked, because calls for the collection wait for it, and it takes all cores. Measured on two busy cores
with 20 000 points of 1024 components: the exact search takes 12 ms (hybrid 24 ms), the run 98 s, the search after it
6 ms (hybrid 2 ms). Call it after a bulk load.

A run that is killed, or whose worker is, loses no point, and what it leaves does not keep the next run from building
the graph: see `edge.segments`. `build_index` raises unless the graph is there.

A write is acknowledged when it is in the write-ahead log: nothing of it is lost when the process ends, however it
ends. Files are synchronised every `FLUSH_INTERVAL_S` seconds, as a server does by default, since that takes the
engine 40 to 200 ms, again with the GIL: a load that did so for every batch took twenty times as long. So a machine
that loses its power can lose what it acknowledged since.

A point that makes the engine panic stays in its write-ahead log, and the collection takes and opens nothing
any more. So only what `conformance` has proven may come here.
"""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import threading
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from embedder.errors import ConfigurationError, InvalidRequest, NotFound, WorkerError
from embedder.vectors import Kind
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.models import edge_point, hit, payload_selector, query_request, sink_id, stored
from qdrant_sink.edge.optimization import OPTIMIZER, Optimizer
from qdrant_sink.edge.schema import create_index, edge_config
from qdrant_sink.edge.settings import CONFIG
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.filters import Filter, matches_all
from qdrant_sink.points import Point, PointId, Stored, WithPayload
from qdrant_sink.schema import NAMES, CollectionSchema, VectorNames
from qdrant_sink.schema_diff import missing_indexes, verify
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.store import COLLECTION_NAME, check_collection

log = logging.getLogger(__name__)

FLUSH_INTERVAL_S: Final = 5.0
"""Qdrant's own `flush_interval_sec`."""

OPEN_COLLECTIONS_MAX: Final = 64
"""Collections that are open concurrently. Each holds two threads, a descriptor and 20 to 60 memory maps, and jobs
choose the names. To open one again takes 10 ms, or a third of a second with 3 000 points of 1024 dimensions."""


class EdgeStore:
    """Collections under one directory of this machine. Thread-safe; one process owns the directory.

    Args:
        path: directory of the collections; made if it is missing.
        names: of the vectors, in every collection.
        open_collections: maximum number of open collections; beyond that the least recently used are closed.
        optimizer: command of the process that optimises a collection.

    Raises:
        ConfigurationError: the directory cannot be written, or another process owns it.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        names: VectorNames = NAMES,
        open_collections: int = OPEN_COLLECTIONS_MAX,
        optimizer: Sequence[str] = OPTIMIZER,
    ) -> None:
        self._root = Path(path)
        self._names = names
        self._guard = threading.Lock()
        self._open_collections = open_collections
        self._collections: dict[str, EdgeCollection] = {}  # the most recently used at the end
        self._lock_file = _own(self._root)
        self._optimizer = Optimizer(self._lock_file, optimizer)
        self._closed = False
        self._ending = threading.Event()
        self._flusher = threading.Thread(target=self._flush_regularly, name="edge-flush", daemon=True)
        self._flusher.start()
        self._clear_half_made()

    @property
    def label(self) -> str:
        """Name of the store for a person."""
        return "Qdrant Edge (embedded)"

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection and its payload indexes, or verify it and add the indexes that it lacks."""
        self._check(collection, schema)
        with self._guard:
            self._check_open()
            name = self._real(collection)
            if not self._exists(name):
                self._collections.pop(name, None)  # its directory was removed from under it
                self._create(name, schema)
            existing = self._at(name)
        actual = existing.described()
        verify(collection, schema, actual)
        for key, index in missing_indexes(schema, actual).items():
            with existing.opened() as shard, mapped(f"payload index on {key!r}"):
                create_index(shard, key, index)
                shard.flush()
            log.info("collection %r had no payload index on %r; created it (%s)", collection, key, index.type)

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """Whether the collection has all that `ensure` would give it; raises SchemaMismatch."""
        self._check(collection, schema)
        with self._guard:
            self._check_open()
            name = self._real(collection)
            if not self._exists(name):
                return False
            existing = self._at(name)
        actual = existing.described()
        verify(collection, schema, actual)
        return not missing_indexes(schema, actual)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Nothing to defer: the graph is built by `build_index` alone."""
        self._collection(collection)
        self._check(collection, schema)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:  # noqa: ARG002
        """As `optimize`, which `timeout_s` does not end; then see that the graph is there."""
        self._check(collection, schema)
        _, waiting = self._collection(collection).optimize(self._names.dense)
        if waiting:
            raise StoreUnavailable(f"collection {collection!r} is not ready: {waiting} points are in no HNSW graph")

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:  # noqa: ARG002 - it is never away
        """See `Store.collection_of`."""
        check_collection(name)
        with self._guard:
            self._check_open()
            real = self._real(name)
            return real if self._exists(real) else None

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, atomically: a symbolic link that is renamed over the previous one."""
        check_collection(alias)
        check_collection(collection)
        with self._guard:
            self._check_open()
            if os.path.lexists(self._root / alias) and self._real(alias) == alias:
                raise InvalidRequest(f"alias: {alias!r} is the name of a collection; choose another")
            if self._real(collection) != collection or not self._exists(collection):
                raise NotFound(f"collection {collection!r} does not exist")
            beside = self._root / f".creating-{uuid.uuid4().hex}"
            with mapped(f"alias {alias!r}"):
                beside.symlink_to(collection)
                beside.replace(self._root / alias)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Store all points; raises NotFound, StoreRejected, StoreUnavailable."""
        check_collection(collection)
        if not points:
            return
        mode = edge.UpdateMode.InsertOnly if insert_only else edge.UpdateMode.Upsert
        with mapped("points"):
            rows = [edge_point(point, self._names) for point in points]
            operation = edge.UpdateOperation.upsert_points(rows, update_mode=mode)
        with self._collection(collection).opened(to_write=True) as shard, mapped("points"):
            shard.update(operation)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """The ids among these that are stored."""
        check_collection(collection)
        if not ids:
            return set()
        with self._collection(collection).opened() as shard, mapped("ids"):
            return {sink_id(r.id) for r in shard.retrieve(list(ids), with_payload=False, with_vector=False)}

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """The hits of each plan, in one batch."""
        check_collection(collection)
        if not plans:
            return []
        requests = [query_request(plan, self._names) for plan in plans]
        with self._collection(collection).opened() as shard, mapped("search"):
            answers = shard.query_batch(edge.QueryBatchRequest(requests))
            return [[hit(point, self._names) for point in hits] for hits in answers]

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """The requested parts of these points, by id."""
        check_collection(collection)
        if not ids:
            return {}
        names = [self._names.of(kind) for kind in with_vectors]
        with self._collection(collection).opened() as shard, mapped("ids"):
            records = shard.retrieve(list(ids), with_payload=payload_selector(with_payload), with_vector=names or False)
            return {sink_id(record.id): stored(record, self._names) for record in records}

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by a filter with at least one condition; returns how many points existed."""
        if bool(ids) == (where is not None):
            raise InvalidRequest("delete: exactly one of ids and filter")
        condition = edge_filter(where)
        if where is not None and matches_all(where):
            raise InvalidRequest("filter: must have at least one condition to delete by, got none")
        with self._collection(collection).opened(to_write=True) as shard, mapped("deletion"):
            if condition is not None:
                existed = shard.count(edge.CountRequest(exact=True, filter=condition))
                shard.update(edge.UpdateOperation.delete_points_by_filter(condition))
            else:
                existed = len(shard.retrieve(list(set(ids)), with_payload=False, with_vector=False))
                shard.update(edge.UpdateOperation.delete_points(list(ids)))
        return existed

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        condition = edge_filter(where)
        with self._collection(collection).opened() as shard, mapped("count"):
            return shard.count(edge.CountRequest(exact=True, filter=condition))

    def optimize(self, collection: str) -> bool:
        """Build the HNSW graph and merge segments; true if anything was done. Only this collection waits for it."""
        changed, _ = self._collection(collection).optimize(self._names.dense)
        return changed

    def close(self) -> None:
        """Flush and release the directory; an optimisation is broken off. Calling it twice is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._ending.set()
            failed: WorkerError | None = None
            try:
                for collection in self._collections.values():
                    try:
                        collection.end()
                    except WorkerError as error:  # the other collections are closed all the same
                        failed = error
                if failed is not None:
                    raise failed
            finally:
                self._collections.clear()
                os.close(self._lock_file)

    def _collection(self, name: str) -> EdgeCollection:
        check_collection(name)
        with self._guard:
            self._check_open()
            real = self._real(name)
            if not self._exists(real):
                raise NotFound(f"collection {name!r} does not exist")
            return self._at(real)

    def _flush_regularly(self) -> None:
        while not self._ending.wait(FLUSH_INTERVAL_S):
            with self._guard:
                collections = list(self._collections.values())
            for collection in collections:
                try:
                    collection.flush()
                except WorkerError as error:  # tried again in a while; the points are in the log
                    log.error("%s", error.message)

    def _check(self, name: str, schema: CollectionSchema) -> None:
        check_collection(name)
        if schema.names != self._names:
            raise ConfigurationError("vectorNames: the store was opened with other names than the schema has")
        if schema.placement.server_only:
            raise ConfigurationError(f"{schema.placement.server_only}: Qdrant Edge is one machine; use a server")

    def _real(self, name: str) -> str:
        """The collection that a name stands for: its own, or the one that it is an alias of.

        A link to anywhere else is the operator's, who keeps a collection on another disk.
        """
        path = self._root / name
        target = str(path.readlink()) if path.is_symlink() else ""
        return target if re.fullmatch(COLLECTION_NAME, target) else name

    def _exists(self, name: str) -> bool:
        return (self._root / name / CONFIG).exists()

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _at(self, name: str) -> EdgeCollection:
        """The collection of an existing directory; the least recently used ones are closed to make room for it."""
        collection = self._collections.pop(name, None) or EdgeCollection(self._root / name, self._optimizer)
        others = [other for other in self._collections.values() if other.is_open]
        self._collections[name] = collection
        excess = len(others) + 1 - self._open_collections
        for other in others:
            if excess <= 0:
                break
            try:
                excess -= other.rest()
            except WorkerError as error:  # it stays open and is tried again; the points are in the log
                log.error("%s", error.message)
        return collection

    def _clear_half_made(self) -> None:
        for leftover in self._root.glob(".creating-*"):
            if leftover.is_symlink():
                leftover.unlink(missing_ok=True)
            else:
                shutil.rmtree(leftover, ignore_errors=True)

    def _create(self, name: str, schema: CollectionSchema) -> None:
        """Create beside and rename, so that a crash leaves no half-made collection."""
        beside = self._root / f".creating-{uuid.uuid4().hex}"
        with mapped(f"creation of collection {name!r}"):
            self._clear_half_made()  # of a try that failed: the same call is made again
            shard = edge.EdgeShard.create(str(beside), edge_config(schema))
            for key, index in schema.indexes.items():
                create_index(shard, key, index)
            shard.flush()
            shard.close()
            beside.rename(self._root / name)


def _own(root: Path) -> int:
    """Make the directory and take its lock for this process; the kernel drops it when the process ends."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        handle = os.open(root / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as exc:
        raise ConfigurationError(f"QDRANT_PATH: the directory cannot be written ({exc.strerror})") from exc
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as exc:
        os.close(handle)
        raise ConfigurationError(
            "QDRANT_PATH: another process owns the directory; stop it, choose another directory, "
            "or share a Qdrant server through QDRANT_URL"
        ) from exc
    except OSError:
        pass  # a file system without locks; the engine's own lock still guards each collection
    return handle
