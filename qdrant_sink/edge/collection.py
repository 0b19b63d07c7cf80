"""One collection of Qdrant Edge: its shard, and the lock that serialises all calls.

The shard is opened on first use. It may be closed between calls, and the next call opens it again.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from embedder.vectors import Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.edge.added_vectors import create_vectors, set_vectors
from qdrant_sink.edge.directories import collection_in
from qdrant_sink.edge.disk_space import (
    OPERATION_MAX_BYTES,
    OPTIMIZE_FACTOR,
    OPTIMIZE_MIN_BYTES,
    WRITE_FACTOR,
    DiskSpace,
    allocated_bytes,
)
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filter_rates import FilterRates
from qdrant_sink.edge.models import edge_id, edge_vectors, sink_id
from qdrant_sink.edge.optimization import Optimization, Optimizer
from qdrant_sink.edge.payload_size import PayloadSize
from qdrant_sink.edge.schema import collection_description, create_index, payload_indexes
from qdrant_sink.edge.segments import clear_unfinished, count_unindexed
from qdrant_sink.edge.settings import limit_threads, read_metadata, read_model, recover_config, update_metadata
from qdrant_sink.edge.work import CALL_S, PairRate
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import CollectionSchema, PayloadIndex
from qdrant_sink.schema_diff import CollectionDescription

FLUSH_LOCK_TIMEOUT_S: Final = 1.0
"""Maximum time that a flush waits for a collection in use, so that it does not delay the other collections."""

PAUSED_MIN_S: Final = CALL_S / 2
"""Minimum time in seconds of a use after which the collection pauses."""

PAUSE_SHARE: Final = 0.05
"""Duration of the pause as a share of the time of the use."""


def open_shard(directory: Path) -> edge.EdgeShard:
    """Open a collection, and clean up after a process that was killed."""
    with mapped(f"opening of collection {collection_in(directory)!r}"):
        recover_config(directory)
        limit_threads(directory)
        shard = edge.EdgeShard.load(str(directory))
        clear_unfinished(directory)
    return shard


def count_unindexed_points(shard: edge.EdgeShard, directory: Path, vector: str) -> int:
    """Count the points of a flushed shard that should be in a graph and are not. The result is normally 0."""
    condition = edge.Filter(must=[edge.HasVectorCondition(vector)])
    return count_unindexed(directory, vector, shard.count(edge.CountRequest(exact=True, filter=condition)))


class EdgeCollection:
    """An existing collection. It is thread-safe.

    Args:
        directory: directory of the collection.
        optimizer: optimizer that starts the process of an optimisation.
        space: free space of the disk, without which nothing is written.

    Attributes:
        pair_rate: the time of comparing ColBERT rows of the collection.
        filter_rates: the times of comparing its points with filters.
        payload_size: the sizes of its largest payloads.
    """

    def __init__(self, directory: Path, optimizer: Optimizer, space: DiskSpace) -> None:
        self.pair_rate = PairRate()
        self.filter_rates = FilterRates()
        self.payload_size = PayloadSize(directory)
        self._directory = directory
        self._optimizer = optimizer
        self._space = space
        self._optimization: Optimization | None = None
        self._lock = threading.Lock()
        self._metadata_lock = threading.Lock()  # of its own, because an optimisation holds the other for hours
        self._shard: edge.EdgeShard | None = None
        self._unflushed = False
        self._closed = False

    @contextmanager
    def opened(self) -> Iterator[edge.EdgeShard]:
        """Open the shard for exclusive use within the block, to read.

        A call of the engine holds the interpreter lock. After a long one there is a pause, without which the next one
        would begin as soon as another thread has done a single step of what waits.
        """
        with self._lock:
            began = time.perf_counter()
            yield self._open_shard()
            taken_s = time.perf_counter() - began
            if taken_s > PAUSED_MIN_S:
                time.sleep(PAUSE_SHARE * taken_s)

    @contextmanager
    def opened_to_write(self, *, size: int = 0, rewritten: int = 0) -> Iterator[edge.EdgeShard]:
        """Open the shard for exclusive use within the block. The next `flush` makes writes durable.

        Args:
            size: size of the new points or vectors in bytes.
            rewritten: number of existing points that are changed, which the engine stores anew.

        Raises:
            StoreUnavailable: the disk has too little space.
        """
        with self._lock:
            shard = self._open_shard()
            with self._space.write(self._directory, "write", self._write_bytes(shard, size, rewritten)):
                self._unflushed = True
                yield shard

    def upsert(self, points: Sequence[Point], operation: edge.UpdateOperation) -> None:
        """Store points.

        Args:
            points: the points.
            operation: operation of the engine that stores them.
        """
        size = sum(point.nbytes for point in points)
        payloads = {edge_id(point.id): point.payload_nbytes for point in points}
        with self.opened_to_write(size=size) as shard, mapped("points"):
            self.payload_size.record(payloads)
            self.filter_rates.wrote(payloads)
            shard.update(operation)

    def set_payload(self, ids: Sequence[PointId], values: dict[str, Any], parent: str | None) -> None:
        """Set values in the payload of points, whose sum must be small.

        Args:
            ids: the points.
            values: the values by their keys.
            parent: path of the object that has the keys; None for the payload itself.
        """
        with self.opened_to_write(rewritten=len(ids)) as shard, mapped("payload"):
            self.filter_rates.wrote(map(edge_id, ids))
            shard.update(edge.UpdateOperation.set_payload(list(ids), values, parent))

    def _write_bytes(self, shard: edge.EdgeShard, size: int, rewritten: int) -> int:
        """The bytes that a write allocates at most."""
        growth = OPERATION_MAX_BYTES + WRITE_FACTOR * size
        if not rewritten:
            return growth
        points = max(1, shard.info().points_count)
        return growth + allocated_bytes(self._directory) * min(rewritten, points) // points

    def metadata(self) -> dict[str, Any]:
        """Read the metadata of the collection. It does not wait for an optimisation."""
        with self._metadata_lock:
            return read_metadata(self._directory)

    def update_metadata(self, changes: Mapping[str, Any]) -> None:
        """Set keys of the metadata, and remove those whose value is None. It does not wait for an optimisation."""
        with self._metadata_lock, mapped("metadata"):
            update_metadata(self._directory, changes)

    def add_index(self, key: str, index: PayloadIndex) -> None:
        """Create a payload index on a key that has none."""
        with self._lock:
            shard = self._open_shard()
            payloads = allocated_bytes(self._directory, "segments/*/payload_storage/**/*")
            size = OPERATION_MAX_BYTES + WRITE_FACTOR * payloads
            with self._space.write(self._directory, "payload index", size), mapped(f"payload index on {key!r}"):
                create_index(shard, key, index)
                self.filter_rates.forget()
                shard.flush()

    def describe(self) -> CollectionDescription:
        """Describe the current state of the collection, including its payload indexes."""
        with self.opened() as shard, mapped("description of a collection"):
            return replace(collection_description(self._directory), payload_indexes=payload_indexes(shard))

    def state(self) -> CollectionState:
        """Describe the current state of the collection, which is grey if points of a dense vector lack a graph."""
        description = self.describe()
        with self.opened() as shard, mapped("state of a collection"):
            if self._unflushed:  # segments are counted on disk
                shard.flush()
                self._unflushed = False
            info = shard.info()
            unindexed = any(
                count_unindexed_points(shard, self._directory, name)
                for name, vector in description.vectors.items()
                if vector.kind == "dense"
            )
            return CollectionState(
                description,
                info.points_count,
                info.indexed_vectors_count,
                "grey" if unindexed else "green",
                read_model(self._directory),
            )

    def add_vectors(self, name: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> None:
        """Add the vectors of these kinds that the collection lacks; see `Store.add_vectors`.

        Args:
            name: name of the collection for errors.
            schema: schema of the vectors.
            kinds: kinds of the vectors.
        """
        with self._lock, mapped("vectors"):
            shard = self._open_shard()
            with self._space.write(self._directory, "creation of vectors", OPERATION_MAX_BYTES):
                without_rows = create_vectors(shard, self._directory, name, schema, kinds)
                if without_rows:
                    self._close_shard()
                    set_vectors(self._directory, schema, without_rows)

    def update_vectors(self, points: Sequence[Point]) -> set[PointId]:
        """Set the vectors of existing points, and return the ids that do not exist."""
        size = sum(point.nbytes for point in points)
        with self.opened_to_write(size=size, rewritten=len(points)) as shard, mapped("vectors"):
            ids = {point.id for point in points}
            records = shard.retrieve(list(ids), with_payload=False, with_vector=False)
            existing = {sink_id(record.id) for record in records}
            # The engine refuses a request with an id that does not exist, after it has stored a part of it.
            rows = [edge_vectors(point) for point in points if point.id in existing]
            if rows:
                shard.update(edge.UpdateOperation.update_vectors(rows))
            return ids - existing

    def flush(self) -> None:
        """Synchronise the files with recent writes. A collection that is in use for long is skipped."""
        if not self._unflushed or not self._lock.acquire(timeout=FLUSH_LOCK_TIMEOUT_S):
            return
        try:
            if self._unflushed and self._shard is not None:
                with mapped("flush"):
                    self._shard.flush()
                self._unflushed = False
        finally:
            self._lock.release()

    def optimize(self, vector: str) -> tuple[bool, int]:
        """Merge segments and build the graph of a vector in a separate process. Other calls wait for its end.

        If the collection lacks the vector, segments are merged only.

        Returns:
            Whether the collection was changed, and the number of points that should be in a graph and are not, which
            is normally 0.
        """
        with self._lock:
            self._check_open()
            size = OPTIMIZE_MIN_BYTES + int(OPTIMIZE_FACTOR * allocated_bytes(self._directory))
            # Space is checked while the shard is open: on a full disk in memory it could not be opened again.
            with self._space.write(self._directory, "optimisation", size):
                with mapped("flush"):
                    self._close_shard()
                changed = self._run_optimization(vector)
            shard = self._open_shard()
            with mapped("optimisation"):
                return changed, count_unindexed_points(shard, self._directory, vector)

    @property
    def is_open(self) -> bool:
        """Whether the shard is open and holds threads, memory maps and a descriptor."""
        return self._shard is not None

    def close_if_idle(self) -> bool:
        """Flush and close the shard until the next call, and forget the times of filters.

        Returns False, without closing, if the shard is in use.
        """
        if not self._lock.acquire(blocking=False):
            return False
        try:
            with mapped("flush"):
                self._close_shard()
            self.filter_rates.forget()
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Flush and close the collection permanently, and stop a running optimisation."""
        self._closed = True
        optimization = self._optimization
        if optimization is not None:
            optimization.stop()
        with self._lock, mapped("flush"):
            self._close_shard()

    def _run_optimization(self, vector: str) -> bool:
        optimization = self._optimization = self._optimizer.start(self._directory, vector)
        try:
            if self._closed:  # `close` was called before the process was assigned
                optimization.stop()
            return optimization.wait()
        except StoreUnavailable:
            self._check_open()
            raise
        finally:
            self._optimization = None

    def _check_open(self) -> None:
        if self._closed:
            raise StoreUnavailable("the store is closed")

    def _open_shard(self) -> edge.EdgeShard:
        self._check_open()
        if self._shard is None:
            with mapped("opening of a collection"):
                self._space.check_open(self._directory)
            self._shard = open_shard(self._directory)
        return self._shard

    def _close_shard(self) -> None:
        shard = self._shard
        if shard is not None:
            shard.flush()
            self._unflushed = False
            self._shard = None
            shard.close()
