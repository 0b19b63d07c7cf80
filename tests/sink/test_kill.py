"""After kill -9 at any moment of a load, acknowledged points are stored, and the next run completes the load."""

from __future__ import annotations

import multiprocessing
import random
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import pytest

from qdrant_sink.points import PointId
from qdrant_sink.store import Store
from tests.sink.contents import assert_holds, contents
from tests.sink.faults import PATIENCE_S
from tests.sink.grpc_double import GrpcDouble
from tests.sink.loader import Location, load
from tests.sink.samples import SCHEMA, job
from tests.sink.stores import drop, real_server
from tests.sink.writing import write

KILLS = 20
POINTS = 2000
BATCHES = POINTS // 100
KILL_DELAY_MAX_S = 0.01
"""Maximum delay between an acknowledgement and the kill. A batch takes about half of it."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.sink.loader"])


@dataclass(frozen=True, slots=True)
class _Load:
    """A load that is killed some seconds after a number of acknowledgements."""

    insert_only: bool
    acknowledgements: int
    seconds: float

    def run(self, location: Location, collection: str) -> set[PointId]:
        """Run the load, kill it, and return the acknowledged ids."""
        receiver, sender = _processes.Pipe(duplex=False)
        process = _processes.Process(
            target=load, args=(location, collection, POINTS, sender), kwargs={"insert_only": self.insert_only}
        )
        process.start()
        sender.close()
        with closing(receiver):
            acknowledged = _receive_ids(receiver, self.acknowledgements)
            time.sleep(self.seconds)  # a random delay before the kill
            process.kill()
            process.join(PATIENCE_S)
            acknowledged += _receive_ids(receiver, BATCHES + 1)
        assert process.exitcode == -signal.SIGKILL
        process.close()
        return set(acknowledged)


def _receive_ids(connection: Connection, messages_max: int) -> list[int]:
    """Receive the ids of this many messages, or of all messages until the last one or the end of the process."""
    ids: list[int] = []
    for _ in range(messages_max):
        assert connection.poll(PATIENCE_S)
        try:
            message = connection.recv_bytes()
        except EOFError:
            break
        if not message:
            break
        ids += np.frombuffer(message, dtype=np.uint64).tolist()
    return ids


@pytest.fixture(params=["edge", "double", pytest.param("server", marks=pytest.mark.server)])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Location]:
    """Location of each kind of store, which two processes can open one after the other."""
    match request.param:
        case "edge":
            yield Location(path=tmp_path / "edge")
        case "double":
            double: GrpcDouble = request.getfixturevalue("double")
            yield Location(url="http://127.0.0.1:9", grpc_port=double.port)
        case _:
            url, key = real_server()
            drop("test_killed", "test_calm")
            yield Location(url=url, api_key=key)
            drop("test_killed", "test_calm")


@contextmanager
def _opened(location: Location, open_store: Store | None) -> Iterator[Store]:
    """Yield the open store, or open the store for the block."""
    if open_store is not None:
        yield open_store
    else:
        with closing(location.open()) as store:
            yield store


def _load(store: Store, collection: str, *, insert_only: bool) -> None:
    store.ensure(collection, SCHEMA)
    report = write(store, collection, job(POINTS), SCHEMA, insert_only=insert_only)
    assert (report.stored, report.rejected) == (POINTS, ())


@pytest.mark.slow
def test_twenty_kills_lose_and_duplicate_no_points(location: Location) -> None:
    """After each kill all acknowledged points are stored. After one more run the collection is complete.

    The last run stores only missing points, so that a partly written point would be detected.
    """
    draw = random.Random(20)
    acknowledged: set[PointId] = set()
    midway = 0
    with ExitStack() as stack:
        open_store = None if location.path else stack.enter_context(closing(location.open()))
        for _ in range(KILLS):
            run = _Load(draw.random() < 0.3, draw.randrange(BATCHES), draw.uniform(0, KILL_DELAY_MAX_S))
            stored_ids = run.run(location, "test_killed")
            midway += 0 < len(stored_ids) < POINTS
            acknowledged |= stored_ids
            with _opened(location, open_store) as store:
                if acknowledged:
                    assert store.existing("test_killed", list(acknowledged)) == acknowledged
        assert midway >= KILLS // 2
        with _opened(location, open_store) as store:
            _load(store, "test_killed", insert_only=True)
            assert_holds(store, "test_killed", job(POINTS))
            _load(store, "test_calm", insert_only=False)
            assert contents(store, "test_killed") == contents(store, "test_calm")
