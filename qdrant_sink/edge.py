"""The embedded default: Qdrant Edge, the engine of the server in this process, behind the `Store` seam.

One directory per collection, and a symbolic link per alias. Every call of the engine holds the GIL, so
calls of one collection are serialised and nothing is lost by it.

Points are searched exactly until `optimize` builds the HNSW graph. That is not done on its own, because it
holds the GIL for its whole run, during which the worker answers nothing. Measured on two busy cores with
20 000 points of 1024 components: the exact search takes 12 ms (hybrid 24 ms), the run 98 s, the search after
it 6 ms (hybrid 2 ms). Call it after a bulk load, before serving.

A process that is killed within that run loses no point, and what it leaves does not keep the next run from building the
graph: see `edge_segments`. `build_index` raises unless the graph is there.

A write is acknowledged when it is in the write-ahead log: nothing of it is lost when the process ends, however it
ends. The disk is told every `FLUSH_EVERY_S` seconds, as a server does by default, since telling it takes the
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

from embedder.errors import (
    ConfigurationError,
    InvalidRequest,
    NotFound,
    StoreUnavailable,
    WorkerError,
)
from embedder.vectors import Kind
from qdrant_sink.edge_collection import EdgeCollection
from qdrant_sink.edge_faults import mapped
from qdrant_sink.edge_filter import edge_filter
from qdrant_sink.edge_models import edge_point, hit, payload_selector, query_request, sink_id, stored
from qdrant_sink.edge_schema import create_index, edge_config
from qdrant_sink.edge_settings import CONFIG
from qdrant_sink.filters import matches_all
from qdrant_sink.found import missing_indexes, verify
from qdrant_sink.grouping import answer
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import NAMES, CollectionSchema, VectorNames
from qdrant_sink.search import Hit, Plan, Search, Stored, WithPayload
from qdrant_sink.store import COLLECTION_NAME, Filter, check_collection

log = logging.getLogger(__name__)

FLUSH_EVERY_S: Final = 5.0
"""Qdrant's own `flush_interval_sec`."""

OPEN_COLLECTIONS: Final = 64
"""Each holds two threads, a descriptor and 20 to 60 memory maps, and jobs choose the names. To open one again takes
10 ms, or a third of a second with 3 000 points of 1024 dimensions."""


class EdgeStore:
    """Collections under one directory of this machine. Thread-safe; one process owns the directory.

    Args:
        path: of the directory; made if it is not there.
        names: of the vectors, in every collection.
        open_collections: at most; beyond that those are closed that were asked for the longest ago.

    Raises:
        ConfigurationError: the directory cannot be written, or another process owns it.
    """

    def __init__(
        self, path: str | Path, *, names: VectorNames = NAMES, open_collections: int = OPEN_COLLECTIONS
    ) -> None:
        self._root = Path(path)
        self._names = names
        self._guard = threading.Lock()
        self._open_collections = open_collections
        self._known: dict[str, EdgeCollection] = {}  # the last one asked for at the end
        self._lock_file = _own(self._root)
        self._closed = False
        self._ending = threading.Event()
        self._flusher = threading.Thread(target=self._flush_regularly, name="edge-flush", daemon=True)
        self._flusher.start()
        self._clear_half_made()

    @property
    def label(self) -> str:
        """What a person is told about the store."""
        return "Qdrant Edge (embedded)"

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection and its payload indexes, or verify it and add the indexes that it lacks."""
        self._check(collection, schema)
        with self._guard:
            self._check_open()
            name = self._real(collection)
            if not self._exists(name):
                self._known.pop(name, None)  # its directory was removed from under it
                self._create(name, schema)
            there = self._at(name)
        found = there.described()
        verify(collection, schema, found)
        for key, index in missing_indexes(schema, found).items():
            with there.opened() as shard, mapped(f"payload index on {key!r}"):
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
            there = self._at(name)
        found = there.described()
        verify(collection, schema, found)
        return not missing_indexes(schema, found)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Nothing to defer: the graph is built by `build_index` alone."""
        self._found(collection)
        self._check(collection, schema)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:  # noqa: ARG002
        """As `optimize`, which nothing interrupts, whatever `timeout_s`; then see that the graph is there."""
        self._check(collection, schema)
        _, waiting = self._found(collection).optimize(self._names.dense)
        if waiting:
            raise StoreUnavailable(f"collection {collection!r} is not ready: {waiting} points are in no HNSW graph")

    def collection_of(self, name: str) -> str | None:
        """See `Store.collection_of`."""
        check_collection(name)
        with self._guard:
            self._check_open()
            real = self._real(name)
            return real if self._exists(real) else None

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection, in one step: a symbolic link, renamed into its place."""
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
        with self._found(collection).opened(to_write=True) as shard, mapped("points"):
            shard.update(operation)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """Which of these ids are stored."""
        check_collection(collection)
        if not ids:
            return set()
        with self._found(collection).opened() as shard, mapped("ids"):
            return {sink_id(r.id) for r in shard.retrieve(list(ids), with_payload=False, with_vector=False)}

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """Answer all searches, in one batch unless they are large or grouped; hits per search, best first."""
        check_collection(collection)

        def ask(plans: Sequence[Plan]) -> list[list[Hit]]:
            requests = [query_request(one, self._names) for one in plans]
            with self._found(collection).opened() as shard, mapped("search"):
                answers = shard.query_batch(edge.QueryBatchRequest(requests))
                return [[hit(scored, self._names) for scored in hits] for hits in answers]

        return answer(searches, ask, lambda ids, payload, kinds: self.fetch(collection, ids, payload, kinds))

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """What is asked for of these points, by id."""
        check_collection(collection)
        if not ids:
            return {}
        names = [self._names.of(kind) for kind in with_vectors]
        with self._found(collection).opened() as shard, mapped("ids"):
            found = shard.retrieve(list(ids), with_payload=payload_selector(with_payload), with_vector=names or False)
            return {sink_id(record.id): stored(record, self._names) for record in found}

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """Delete by ids or by a filter with at least one condition; returns how many points were there."""
        if bool(ids) == (where is not None):
            raise InvalidRequest("delete: exactly one of ids and filter")
        condition = edge_filter(where)
        if where is not None and matches_all(where):
            raise InvalidRequest("filter: must have at least one condition to delete by, got none")
        with self._found(collection).opened(to_write=True) as shard, mapped("deletion"):
            if condition is not None:
                there = shard.count(edge.CountRequest(exact=True, filter=condition))
                shard.update(edge.UpdateOperation.delete_points_by_filter(condition))
            else:
                there = len(shard.retrieve(list(set(ids)), with_payload=False, with_vector=False))
                shard.update(edge.UpdateOperation.delete_points(list(ids)))
        return there

    def count(self, collection: str, where: Filter | None = None) -> int:
        """The exact number of points that match."""
        condition = edge_filter(where)
        with self._found(collection).opened() as shard, mapped("count"):
            return shard.count(edge.CountRequest(exact=True, filter=condition))

    def optimize(self, collection: str) -> bool:
        """Build the HNSW graph and merge segments; holds the GIL throughout. True if anything was done."""
        changed, _ = self._found(collection).optimize(self._names.dense)
        return changed

    def close(self) -> None:
        """Flush and release the directory; calling it twice is harmless."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            self._ending.set()
            failed: WorkerError | None = None
            try:
                for one in self._known.values():
                    try:
                        one.end()
                    except WorkerError as error:  # the other collections are closed all the same
                        failed = error
                if failed is not None:
                    raise failed
            finally:
                self._known.clear()
                os.close(self._lock_file)

    def _found(self, name: str) -> EdgeCollection:
        check_collection(name)
        with self._guard:
            self._check_open()
            real = self._real(name)
            if not self._exists(real):
                raise NotFound(f"collection {name!r} does not exist")
            return self._at(real)

    def _flush_regularly(self) -> None:
        while not self._ending.wait(FLUSH_EVERY_S):
            with self._guard:
                known = list(self._known.values())
            for one in known:
                try:
                    one.flush()
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
        """The collection of a directory that is there, and room for it to be open."""
        there = self._known.pop(name, None) or EdgeCollection(self._root / name)
        others = [one for one in self._known.values() if one.is_open]
        self._known[name] = there
        excess = len(others) + 1 - self._open_collections
        for one in others:
            if excess <= 0:
                break
            try:
                excess -= one.rest()
            except WorkerError as error:  # it stays open and is tried again; the points are in the log
                log.error("%s", error.message)
        return there

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
