"""kill -9 at any moment of a load costs nothing that was acknowledged, and the next run completes it."""

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
from tests.sink.loader import Place, load
from tests.sink.samples import SCHEMA, job
from tests.sink.stores import drop, real_server
from tests.sink.writing import write

KILLS = 20
POINTS = 2000
BATCHES = POINTS // 100
LONGEST_S = 0.01
"""After an acknowledgement; a batch takes about half as long, so that a kill meets any part of one."""

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.sink.loader"])


@dataclass(frozen=True, slots=True)
class _Load:
    """A run that ends by being killed: after so many acknowledgements and so many seconds more."""

    insert_only: bool
    acknowledgements: int
    seconds: float

    def run(self, place: Place, collection: str) -> set[PointId]:
        """The ids that were acknowledged before it died."""
        ours, theirs = _processes.Pipe(duplex=False)
        process = _processes.Process(
            target=load, args=(place, collection, POINTS, theirs), kwargs={"insert_only": self.insert_only}
        )
        process.start()
        theirs.close()
        with closing(ours):
            acknowledged = _told(ours, self.acknowledgements)
            time.sleep(self.seconds)  # the moment, drawn at random; nothing waits for anything here
            process.kill()
            process.join(PATIENCE_S)
            acknowledged += _told(ours, BATCHES + 1)
        assert process.exitcode == -signal.SIGKILL
        process.close()
        return set(acknowledged)


def _told(connection: Connection, most: int) -> list[int]:
    """The ids of so many messages, or up to the one that says that all is done, or to the end of the process."""
    ids: list[int] = []
    for _ in range(most):
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
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Every kind of store in turn, as something that two processes can open one after the other."""
    match request.param:
        case "edge":
            yield Place(path=tmp_path / "edge")
        case "double":
            double: GrpcDouble = request.getfixturevalue("double")
            yield Place(url="http://127.0.0.1:9", grpc_port=double.port)
        case _:
            url, key = real_server()
            drop("test_killed", "test_calm")
            yield Place(url=url, api_key=key)
            drop("test_killed", "test_calm")


@contextmanager
def _opened(place: Place, held: Store | None) -> Iterator[Store]:
    """The store that is held open, or the directory while nobody else has it."""
    if held is not None:
        yield held
    else:
        with closing(place.open()) as store:
            yield store


def _load(store: Store, collection: str, *, insert_only: bool) -> None:
    store.ensure(collection, SCHEMA)
    report = write(store, collection, job(POINTS), SCHEMA, insert_only=insert_only)
    assert (report.stored, report.rejected) == (POINTS, ())


@pytest.mark.slow
def test_twenty_kills_lose_and_double_nothing(place: Place) -> None:
    """After each, all that was acknowledged is there; after one more run all is as if none had happened.

    That last run stores only what is missing, so a point that a kill had left half-written would show.
    """
    draw = random.Random(20)
    acknowledged: set[PointId] = set()
    midway = 0
    with ExitStack() as stack:
        held = None if place.path else stack.enter_context(closing(place.open()))
        for _ in range(KILLS):
            run = _Load(draw.random() < 0.3, draw.randrange(BATCHES), draw.uniform(0, LONGEST_S))
            found = run.run(place, "test_killed")
            midway += 0 < len(found) < POINTS
            acknowledged |= found
            with _opened(place, held) as store:
                if acknowledged:
                    assert store.existing("test_killed", list(acknowledged)) == acknowledged
        assert midway >= KILLS // 2
        with _opened(place, held) as store:
            _load(store, "test_killed", insert_only=True)
            assert_holds(store, "test_killed", job(POINTS))
            _load(store, "test_calm", insert_only=False)
            assert contents(store, "test_killed") == contents(store, "test_calm")
