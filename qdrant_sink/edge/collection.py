"""One collection of Qdrant Edge: its shard, and the lock that everything asked of it takes.

The shard is opened when it is first needed and may be closed in between; whoever has the collection opens it again.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import qdrant_edge as edge

from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.schema import collection_description, payload_indexes
from qdrant_sink.edge.segments import clear_unfinished, without_graph
from qdrant_sink.edge.settings import limit_threads, merging, recover_config
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.schema_diff import CollectionDescription


class EdgeCollection:
    """An existing collection. Thread-safe.

    Args:
        directory: directory of the collection.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
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
        """Synchronise the files with what was written since the last flush."""
        with self._lock, mapped("flush"):
            if self._unflushed and self._shard is not None:
                self._shard.flush()
                self._unflushed = False

    def optimize(self, vector: str) -> tuple[bool, int]:
        """Merge segments and build the graph of a vector.

        Returns:
            Whether anything was done, and how many points have no graph that should have one: 0, if all is well.
        """
        with self.opened() as shard, mapped("optimisation"):
            shard.flush()  # so that a kill within the run leaves one segment that has all, see `edge.segments`
            changed = shard.optimize()
            shard.flush()
            if not self._waiting(shard, vector):
                return changed, 0
            merged = self._merged()
            return changed or merged, self._waiting(self._open(), vector)

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
        """Flush and close for good."""
        with self._lock, mapped("flush"):
            self._ended = True
            self._close()

    def _open(self) -> edge.EdgeShard:
        if self._ended:
            raise StoreUnavailable("the store is closed")
        if self._shard is None:
            with mapped(f"opening of collection {self._directory.name!r}"):
                recover_config(self._directory)
                limit_threads(self._directory)
                self._shard = edge.EdgeShard.load(str(self._directory))
                clear_unfinished(self._directory)
        return self._shard

    def _close(self) -> None:
        shard = self._shard
        if shard is not None:
            shard.flush()
            self._unflushed = False
            self._shard = None
            shard.close()

    def _waiting(self, shard: edge.EdgeShard, vector: str) -> int:
        carriers = edge.Filter(must=[edge.HasVectorCondition(vector)])
        return without_graph(self._directory, vector, shard.count(edge.CountRequest(exact=True, filter=carriers)))

    def _merged(self) -> bool:
        """Optimise such that segments which are too small for a graph are joined; true if anything was done."""
        self._close()
        with merging(self._directory):
            self._shard = edge.EdgeShard.load(str(self._directory))
            try:
                return self._shard.optimize()
            finally:
                self._close()
