"""Every point of a job is accounted for, whatever happens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from threading import Event, Lock, Thread
from time import monotonic, sleep
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest

from embedder.errors import AccessDenied, Cancelled, NotFound, StoreRejected, StoreUnavailable
from qdrant_sink import writer as writer_module
from qdrant_sink.points import Draft, Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from qdrant_sink.writer import BATCH_BYTES, IN_FLIGHT, Rejection, Writer, present
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft, embedding, schema_for, spoilt
from tests.sink.writing import write

NAN = np.full(8, np.nan, dtype=np.float32)
PATIENCE = 30.0
"""Seconds after which a test that hangs fails."""


class Memory:
    """A store in a dictionary that refuses, or ceases to answer, as told. Only what the writer uses."""

    label = "memory"

    def __init__(self, *, refuse: Sequence[PointId] = (), answers: int = 10**9, error: Any = None) -> None:
        self.points: dict[PointId, Point] = {}
        self.batches: list[int] = []
        self._lock = Lock()
        self._refuse = set(refuse)
        self._answers = answers
        self._error = error or StoreUnavailable("no answer")

    def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Take a batch whole or not at all."""
        with self._lock:
            self.batches.append(len(points))
            self._answers -= 1
            if self._answers < 0:
                raise self._error
            if any(point.id in self._refuse for point in points):
                raise StoreRejected("refused")
            for point in points:
                if not (insert_only and point.id in self.points):
                    self.points[point.id] = point


def _memory(**how: Any) -> Any:
    return Memory(**how)


def test_good_points_are_stored_beside_bad_ones(store: Store, collection: str) -> None:
    """Each refusal names its own point by index and reason; all others are in the collection."""
    store.ensure(collection, SCHEMA)
    drafts = [
        draft(0),
        spoilt(1, dense=NAN),
        draft(2, payload={"a": float("inf")}),
        draft(3),
    ]
    report = write(store, collection, drafts, SCHEMA)
    assert (report.submitted, report.stored) == (4, 2)
    assert [(r.index, r.code) for r in report.rejected] == [(1, "invalid_vector"), (2, "invalid_payload")]
    assert store.existing(collection, [0, 1, 2, 3]) == {0, 3}


def test_insert_only_leaves_what_was_there(store: Store, collection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run of a job can ask what is there, however much, and overwrites nothing of it."""
    store.ensure(collection, SCHEMA)
    monkeypatch.setattr(writer_module, "BATCH_POINTS", 2)
    assert write(store, collection, [draft(i) for i in range(3)], SCHEMA, insert_only=True).stored == 3
    assert present(store, collection, range(5)) == {0, 1, 2}
    again = [draft(i, payload={"again": True}) for i in range(5)]
    assert write(store, collection, again, SCHEMA, insert_only=True).stored == 5
    assert store.count(collection, {"must": [{"key": "again", "match": {"value": True}}]}) == 2


def test_a_refused_batch_is_split_down_to_the_point_at_fault() -> None:
    """One point that a store will not have costs its neighbours nothing."""
    memory = _memory(refuse=[3, 11])
    report = write(memory, "c", [draft(i) for i in range(16)], SCHEMA)
    assert report.rejected == (
        Rejection(3, "store_rejected", "refused"),
        Rejection(11, "store_rejected", "refused"),
    )
    assert set(memory.points) == set(range(16)) - {3, 11}
    assert len(memory.batches) <= 2 * 2 * 5


def test_merged_points_share_the_fate_of_their_owner() -> None:
    """What merged into a refused point is refused too, each under its own index."""
    merged = {0: (0, 2), 1: (1, 3)}
    report = write(_memory(refuse=[0]), "c", [draft(0), draft(1)], SCHEMA, merged=merged)
    assert (report.submitted, report.stored, [r.index for r in report.rejected]) == (4, 2, [0, 2])


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), AccessDenied("not for you")])
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_what_was_not_acknowledged_is_reported(error: Any, answers: int) -> None:
    """When the store ceases to answer, every point is either stored or named as not stored."""
    size = 1024
    drafts = [draft(i, embedding=embedding(i, rows=300, size=size)) for i in range(12)]
    memory = _memory(answers=answers, error=error)
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == len(memory.points) == 3 * answers
    assert report.stored + len(report.rejected) == report.submitted == 12
    assert {(r.code, r.message) for r in report.rejected} == {(error.code, error.message)}
    assert len(memory.batches) <= answers + IN_FLIGHT


def test_a_store_that_fails_while_a_batch_is_split_is_accounted_for() -> None:
    """Halves of a refused batch that were never sent are reported like any other."""
    memory = _memory(refuse=[0], answers=3)
    report = write(memory, "c", [draft(i) for i in range(8)], SCHEMA)
    assert report.stored + len(report.rejected) == 8
    assert report.stored == len(memory.points)
    assert {r.code for r in report.rejected} == {"store_unavailable"}


def test_batches_are_bounded_by_bytes() -> None:
    """ColBERT rows make points of a megabyte: a batch holds few, alone if it must."""
    size = 1024
    drafts = [draft(i, embedding=embedding(i, rows=rows, size=size)) for i, rows in enumerate([300] * 6 + [1023] * 2)]
    memory = _memory()
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == 8
    assert sorted(memory.batches) == [1, 1, 3, 3]
    assert sum(memory.points[i].nbytes for i in range(3)) <= BATCH_BYTES


def test_nothing_submitted_is_nothing_done() -> None:
    """An empty job asks the store nothing."""
    memory = _memory()
    assert write(memory, "c", [], SCHEMA).submitted == 0
    assert memory.batches == []


def test_a_point_that_the_server_refuses_stands_alone(server_store: ServerStore, double: GrpcDouble) -> None:
    """Over gRPC too: the neighbours are stored, and the server's words are not passed on."""
    server_store.ensure("docs", SCHEMA)
    double.refused_ids.add(4)
    report = write(server_store, "docs", [draft(i) for i in range(9)], SCHEMA)
    assert report.stored == 8
    [rejection] = report.rejected
    assert (rejection.index, rejection.code) == (4, "store_rejected")
    assert rejection.message == "Qdrant refused the request: INVALID_ARGUMENT"
    assert server_store.count("docs") == 8


def test_a_server_that_goes_away_is_accounted_for(server_store: ServerStore, double: GrpcDouble) -> None:
    """The report is exact when the server is lost in the middle of a job."""
    size = 256
    schema = schema_for(size, size)
    server_store.ensure("docs", schema)
    drafts = [draft(i, embedding=embedding(i, rows=1500, size=size)) for i in range(6)]
    double.before["Upsert"] = lambda: double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)
    report = write(server_store, "docs", drafts, schema)
    assert report.stored + len(report.rejected) == 6
    assert {r.code for r in report.rejected} == {"store_unavailable"}
    double.failures.clear()
    assert server_store.count("docs") == report.stored


class Held(Memory):
    """A store whose upserts wait until they are let go."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.arrived: SimpleQueue[int] = SimpleQueue()
        self.go = Event()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Say how many points came, and wait."""
        self.arrived.put(len(points))
        assert self.go.wait(PATIENCE)
        super().upsert(collection, points, insert_only=insert_only)


@contextmanager
def running(store: Any, schema: CollectionSchema = SCHEMA, **how: Any) -> Iterator[Writer]:
    """A writer that runs in a thread of its own, and has ended after the block."""
    with ThreadPoolExecutor(8) as senders:
        writer = Writer(store, "c", schema, senders, **how)
        thread = Thread(target=writer.run)
        thread.start()
        yield writer
        writer.end()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_an_idle_store_gets_what_there_is_and_a_busy_one_gets_batches() -> None:
    """A point does not wait for a batch to fill while nothing is being sent; behind it, points gather."""
    held = Held()
    with running(held) as writer:
        writer.offer(draft(0))
        assert held.arrived.get(timeout=PATIENCE) == 1
        for index in range(1, 50):
            writer.offer(draft(index))
        held.go.set()
    assert sorted(held.points) == list(range(50))
    assert len(held.batches) <= 1 + IN_FLIGHT


def test_several_batches_are_under_way_and_no_more() -> None:
    """The network never idles while there is something to send, and what is in flight is bounded."""
    size = 1024
    held = Held()
    with running(held, schema_for(size, size)) as writer:
        for index in range(2 * IN_FLIGHT):
            writer.offer(draft(index, embedding=embedding(index, rows=1000, size=size)))
        for _ in range(IN_FLIGHT):
            held.arrived.get(timeout=PATIENCE)
        with pytest.raises(Empty):
            held.arrived.get(timeout=0.2)
        held.go.set()
    assert len(held.points) == 2 * IN_FLIGHT


def test_vectors_are_let_go_once_their_point_is_settled() -> None:
    """The model is told of every point that is stored or refused, once, and only then."""
    settled: list[int] = []
    held = Held(refuse=[2])
    with running(held, settled=settled.append) as writer:
        writer.offer(draft(0))
        held.arrived.get(timeout=PATIENCE)
        assert settled == []
        for one in (spoilt(1, dense=NAN), draft(2), draft(3), Rejection(4, "model_failure", "no vector")):
            writer.offer(one)
        held.go.set()
    assert sorted(settled) == [0, 1, 2, 3, 4]
    assert sorted(writer.stored) == [0, 3]
    assert sorted(one.index for one in writer.rejected) == [1, 2, 4]


def test_a_store_that_gives_out_ends_the_job_at_once() -> None:
    """The model is told to stop; what comes later is reported as not stored, without another try."""
    told = Event()
    memory = Memory(answers=0)
    with running(memory, gave_up=told.set) as writer:
        writer.offer(draft(0))
        assert told.wait(PATIENCE)
        writer.offer(draft(1))
    assert memory.batches == [1]
    assert isinstance(writer.failure, StoreUnavailable)
    assert [(one.index, one.code) for one in writer.rejected] == [(0, "store_unavailable"), (1, "store_unavailable")]


class Vanishing(Memory):
    """A store whose collection can be deleted by someone else; `make` makes it."""

    def __init__(self) -> None:
        super().__init__()
        self.there = False
        self.made = 0

    def make(self) -> None:
        """As `ensure`."""
        self.there = True
        self.made += 1

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Refuse while the collection is gone."""
        if not self.there:
            raise NotFound("collection 'c' does not exist")
        super().upsert(collection, points, insert_only=insert_only)


def test_a_collection_that_vanishes_before_the_first_point_is_made_again() -> None:
    """A worker that remembers a collection which somebody has deleted since makes it anew, once."""
    memory = Vanishing()
    with running(memory, ensure=lambda: memory.make() if memory.made else setattr(memory, "made", 1)) as writer:
        writer.offer(draft(0))
    assert memory.made == 2
    assert sorted(memory.points) == [0]
    assert writer.rejected == []


def test_points_that_vanish_with_their_collection_are_not_called_stored() -> None:
    """A collection that is deleted in the middle of a job ends it, and nothing is reported as stored."""
    memory = Vanishing()
    with running(memory, ensure=memory.make) as writer:
        writer.offer(draft(0))
        while not writer.stored:
            pass
        memory.there = False
        writer.offer(draft(1))
    assert memory.made == 1
    assert writer.stored == []
    assert sorted((one.index, one.code) for one in writer.rejected) == [(0, "not_found"), (1, "not_found")]


def test_a_writer_that_is_not_let_in_does_not_try_each_point() -> None:
    """Refused credentials end the job at the first batch: no point is at fault."""
    memory = Memory(answers=0, error=AccessDenied("check the key"))
    report = write(memory, "c", [draft(i) for i in range(100)], SCHEMA)  # type: ignore[arg-type]
    assert len(memory.batches) <= IN_FLIGHT
    assert len(report.rejected) == 100


def test_an_abandoned_job_sends_nothing_more() -> None:
    """What is being sent is accounted for, what waits is not sent, and the writer ends."""
    held = Held()
    with running(held) as writer:
        writer.offer(draft(0))
        held.arrived.get(timeout=PATIENCE)
        for index in range(1, 10):
            writer.offer(draft(index))
        writer.abandon(Cancelled("nobody waits"))
        held.go.set()
    assert writer.stored == [0]
    assert sorted(one.index for one in writer.rejected) == list(range(1, 10))
    assert sorted(held.points) == [0]


class Splitting(Memory):
    """A store that refuses every batch, after some only when it is let go, and that gives out beside them.

    Args:
        free: batches that are refused at once.
        gone_from: the id of the first point that the store does not answer for any more, once another one waits.
    """

    def __init__(self, free: int, gone_from: int = 10**9) -> None:
        super().__init__()
        self._free = free
        self._gone_from = gone_from
        self.waits = Event()
        self.go = Event()

    def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        if any(point.id >= self._gone_from for point in points if isinstance(point.id, int)):
            assert self.waits.wait(PATIENCE)
            raise StoreUnavailable("no answer")
        with self._lock:
            self.batches.append(len(points))
            late = len(self.batches) > self._free
        if late:
            self.waits.set()
            assert self.go.wait(PATIENCE)
        raise StoreRejected("refused")


def _given_up(writer: Writer) -> None:
    ends = monotonic() + PATIENCE
    while writer.failure is None:
        assert monotonic() < ends
        sleep(0.001)


def test_a_batch_that_is_being_split_is_left_when_the_job_is_cancelled() -> None:
    """Its other halves are not sent, and each of them is reported once as what the job ended by."""
    store = Splitting(free=12)
    with running(store) as writer:
        for index in range(500):
            writer.offer(draft(index))
        assert store.waits.wait(PATIENCE)
        writer.abandon(Cancelled("nobody waits"))
        _given_up(writer)
        store.go.set()
    assert len(store.batches) <= 12 + IN_FLIGHT
    assert sorted(one.index for one in writer.rejected) == list(range(500))
    assert {one.code for one in writer.rejected} <= {"store_rejected", "cancelled"}
    assert sum(one.code == "cancelled" for one in writer.rejected) > 450


def test_a_batch_that_is_being_split_is_left_when_the_store_gives_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """One batch finds the store gone; another, which is being split, is not tried point by point."""
    monkeypatch.setattr("qdrant_sink.writer.BATCH_POINTS", 100)
    store = Splitting(free=5, gone_from=150)
    with running(store) as writer:
        for index in range(400):
            writer.offer(draft(index))
        writer.end()
        _given_up(writer)
        store.go.set()
    assert len(store.batches) <= 5 + IN_FLIGHT
    assert sorted(one.index for one in writer.rejected) == list(range(400))
    assert sum(one.code == "store_unavailable" for one in writer.rejected) > 350


def test_what_is_acknowledged_late_is_gone_with_the_collection_too() -> None:
    """A batch whose answer comes after another has found the collection gone is not reported as stored."""
    arrived = Event()

    class Gone(Memory):
        def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
            if points[0].id:
                raise NotFound("collection 'c' does not exist")
            arrived.set()
            _given_up(writer)

    with running(Gone()) as writer:
        writer.offer(draft(0))
        assert arrived.wait(PATIENCE)
        writer.offer(draft(1))
    assert writer.stored == []
    assert sorted((one.index, one.code) for one in writer.rejected) == [(0, "not_found"), (1, "not_found")]


def test_a_point_that_cannot_even_be_proven_costs_no_other() -> None:
    """A defect while a point is prepared is that point's `internal`, and the job goes on."""

    def prepare(one: Draft) -> Draft:
        if one.index == 1:
            raise MemoryError("secret")
        return one

    memory = Memory()
    with running(memory, prepare=prepare) as writer:
        for index in range(3):
            writer.offer(draft(index))
    assert sorted(memory.points) == [0, 2]
    assert [(one.index, one.code) for one in writer.rejected] == [(1, "internal")]


def test_a_collection_whose_making_breaks_is_the_end_too() -> None:
    """An error that no store should raise is reported like any other, and the writer ends."""

    def ensure() -> None:
        raise KeyError("secret")

    with running(Memory(), ensure=ensure) as writer:
        writer.offer(draft(0))
    assert [(one.index, one.code) for one in writer.rejected] == [(0, "internal")]


def test_a_collection_that_cannot_be_made_is_the_end() -> None:
    """What `ensure` raises is the reason given for every point."""

    def ensure() -> None:
        raise StoreRejected("no room for another collection")

    memory = Memory()
    with running(memory, ensure=ensure) as writer:
        writer.offer(draft(0))
        writer.offer(draft(1))
    assert memory.batches == []
    assert {(one.index, one.message) for one in writer.rejected} == {
        (0, "no room for another collection"),
        (1, "no room for another collection"),
    }


def test_a_store_that_breaks_its_promise_loses_nothing() -> None:
    """An error that no store should raise is reported for each point, and its words stay in the log."""
    memory = Memory(answers=0, error=KeyError("secret host"))
    report = write(memory, "c", [draft(0), draft(1)], SCHEMA)  # type: ignore[arg-type]
    assert [(one.index, one.code) for one in report.rejected] == [(0, "internal"), (1, "internal")]
    assert "secret" not in report.rejected[0].message
