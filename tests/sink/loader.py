"""A process that loads a job into a store and tells what was acknowledged, until somebody kills it.

Started by `test_kill` from a server that has imported this module before: a process costs a fork.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Point
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, job
from tests.sink.writing import write


@dataclass(frozen=True, slots=True)
class Place:
    """Where a collection is: a directory of Qdrant Edge, or a server.

    Attributes:
        path: of the directory; None for a server.
        url: of the server; None for Edge.
        api_key: of the server.
        grpc_port: of the server.
    """

    path: Path | None = None
    url: str | None = None
    api_key: str | None = None
    grpc_port: int = 6334

    def open(self) -> Store:
        """Connect, or take the directory."""
        if self.path is not None:
            return EdgeStore(self.path)
        return ServerStore(self.url or "", self.api_key, grpc_port=self.grpc_port, pause_s=0.01)


class Telling:
    """A destination that tells which ids it has acknowledged: one message of 64-bit integers per upsert."""

    def __init__(self, store: Store, told: Connection) -> None:
        self._store = store
        self._told = told
        self._lock = threading.Lock()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Destination.upsert`."""
        self._store.upsert(collection, points, insert_only=insert_only)
        ids = np.array([point.id for point in points], dtype=np.uint64).tobytes()
        with self._lock:
            self._told.send_bytes(ids)  # less than a pipe takes at once, so a message is whole or not there


def load(place: Place, collection: str, count: int, told: Connection, *, insert_only: bool) -> None:
    """Load `job(count)`; an empty message says that it is done. Then wait for the end."""
    store = place.open()
    store.ensure(collection, SCHEMA)
    report = write(Telling(store, told), collection, job(count), SCHEMA, insert_only=insert_only, batch_points=100)
    if (report.stored, report.rejected) != (count, ()):
        raise RuntimeError(f"{report.stored} of {count} points are stored")
    told.send_bytes(b"")
    threading.Event().wait()
