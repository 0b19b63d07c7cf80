"""Process that loads a job into a store and reports acknowledged ids, until it is killed.

`test_kill` starts it from a fork server that has already imported this module, so that starting it takes only a fork.
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
class Location:
    """Location of a store: a directory of Qdrant Edge, or a server.

    Attributes:
        path: path of the directory; None for a server.
        url: URL of the server; None for Qdrant Edge.
        api_key: API key of the server.
        grpc_port: gRPC port of the server.
    """

    path: Path | None = None
    url: str | None = None
    api_key: str | None = None
    grpc_port: int | None = None

    def open(self) -> Store:
        """Open the store."""
        if self.path is not None:
            return EdgeStore(self.path)
        return ServerStore(self.url or "", self.api_key, grpc_port=self.grpc_port, pause_s=0.01)


class AcknowledgingStore:
    """A destination that sends the acknowledged ids of every upsert as one message of 64-bit integers."""

    def __init__(self, store: Store, connection: Connection) -> None:
        self._store = store
        self._connection = connection
        self._lock = threading.Lock()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Destination.upsert`."""
        self._store.upsert(collection, points, insert_only=insert_only)
        ids = np.array([point.id for point in points], dtype=np.uint64).tobytes()
        with self._lock:
            self._connection.send_bytes(ids)  # small enough for the pipe to write it atomically


def load(location: Location, collection: str, count: int, connection: Connection, *, insert_only: bool) -> None:
    """Load `job(count)`, send an empty message when it is complete, and wait to be killed."""
    store = location.open()
    store.ensure(collection, SCHEMA)
    report = write(
        AcknowledgingStore(store, connection), collection, job(count), SCHEMA, insert_only=insert_only, batch_points=100
    )
    if (report.stored, report.rejected) != (count, ()):
        raise RuntimeError(f"{report.stored} of {count} points are stored")
    connection.send_bytes(b"")
    threading.Event().wait()
