"""One collection of Qdrant Edge: its shard, and the lock that everything asked of it takes.

The shard is opened when it is first needed and may be closed in between; whoever has the collection opens it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import qdrant_edge as edge

from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.optimization import Optimization, Optimizer
from qdrant_sink.edge.schema import collection_description, payload_indexes
from qdrant_sink.edge.segments import clear_unfinished, without_graph
from qdrant_sink.edge.settings import limit_threads, recover_config
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.schema_diff import CollectionDescription

FLUSH_PATIENCE_S: Final = 1.0
"""Time that a flush waits for a collection in use, so that the other collections are flushed meanwhile."""


def open_shard(directory: Path) -> edge.EdgeShard:
    """Open a collection, whatever a process that was killed has left in its directory."""
    with mapped(f"opening of collection {directory.name!r}"):
        recover_config(directory)
        limit_threads(directory)
        shard = edge.EdgeShard.load(str(directory))
        clear_unfinished(directory)
    return shard


def points_without_graph(shard: edge.EdgeShard, directory: Path, vector: str) -> int:
    """How many points of a shard, just flushed, have no graph that should have one: 0, if all is well."""
    carriers = edge.Filter(must=[edge.HasVectorCondition(vector)])
    return without_graph(directory, vector, shard.count(edge.CountRequest(exact=True, filter=carriers)))


class EdgeCollection:
    """An existing collection. Thread-safe.

    Args:
        directory: directory of the collection.
        optimizer: starts the process of an optimisation.
    """

    def __init__(self, directory: Path, optimizer: Optimizer) -> None:
        self._directory = directory
        self._optimizer = optimizer
        self._optimization: Optimization | None = None
        self._lock = threading.Lock()
        self._shard: edge.EdgeShard | None = None
        self._unflushed = False
        self._ended = False

    @contextmanager
    def opened(self, *, to_write: bool = False) -> Iterator[edge.EdgeShard]:
        """The shard, for this caller alone; what is written is flushed by the next `flush`."""
        with self._lock:
            shard = self._open()
            self._unflushed |= to_write
            yield shard

    def described(self) -> CollectionDescription:
        """The collection as it is now, including its payload indexes."""
        with self.opened() as shard, mapped("description of a collection"):
            return replace(collection_description(self._directory), payload_indexes=payload_indexes(shard))

    def flush(self) -> None:
        """Synchronise the files with what was written since the last flush, unless the collection is in use long."""
        if not self._unflushed or not self._lock.acquire(timeout=FLUSH_PATIENCE_S):
            return
        try:
            if self._unflushed and self._shard is not None:
                with mapped("flush"):
                    self._shard.flush()
                self._unflushed = False
        finally:
            self._lock.release()

    def optimize(self, vector: str) -> tuple[bool, int]:
        """Have a process merge segments and build the graph of a vector; calls for the collection wait for its end.

        Returns:
            Whether anything was done, and how many points have no graph that should have one: 0, if all is well.
        """
        with self._lock:
            self._check_open()
            with mapped("flush"):
                self._close()
            changed = self._optimized(vector)
            shard = self._open()
            with mapped("optimisation"):
                return changed, points_without_graph(shard, self._directory, vector)

    @property
    def is_open(self) -> bool:
        """Whether it holds threads, memory maps and a descriptor."""
        return self._shard is not None

    def rest(self) -> bool:
        """Flush and close until it is asked for again; false if it is in use just now."""
        if not self._lock.acquire(blocking=False):
            return False
        try:
            with mapped("flush"):
                self._close()
        finally:
            self._lock.release()
        return True

    def end(self) -> None:
        """Flush and close for good; an optimisation is broken off."""
        self._ended = True
        optimization = self._optimization
        if optimization is not None:
            optimization.stop()
        with self._lock, mapped("flush"):
            self._close()

    def _optimized(self, vector: str) -> bool:
        optimization = self._optimization = self._optimizer.start(self._directory, vector)
        try:
            if self._ended:  # `end` came before there was anything to stop
                optimization.stop()
            return optimization.wait()
        except StoreUnavailable:
            self._check_open()
            raise
        finally:
            self._optimization = None

    def _check_open(self) -> None:
        if self._ended:
            raise StoreUnavailable("the store is closed")

    def _open(self) -> edge.EdgeShard:
        self._check_open()
        if self._shard is None:
            self._shard = open_shard(self._directory)
        return self._shard

    def _close(self) -> None:
        shard = self._shard
        if shard is not None:
            shard.flush()
            self._unflushed = False
            self._shard = None
            shard.close()
