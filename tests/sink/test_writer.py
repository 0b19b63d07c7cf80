"""Every point of a job is accounted for, whatever happens."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event, Lock
from time import sleep
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest

from embedder.errors import Cancelled, Internal, ModelFailure, NotFound, WorkerError
from qdrant_sink.errors import AccessDenied, StoreRejected, StoreUnavailable
from qdrant_sink.points import Draft, Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from qdrant_sink.writing import (
    BATCH_MAX_BYTES,
    IN_FLIGHT_MAX,
    Destination,
    Rejection,
    Writer,
    WriteReport,
    existing_ids,
)
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft, sample_vectors, schema_for, spoilt
from tests.sink.writing import causes, write

NAN = np.full(8, np.nan, dtype=np.float32)
PATIENCE_S = 30.0
"""A test that hangs fails after so long."""

Item = Draft | Rejection


class Memory:
    """A destination in a dictionary that refuses, or ceases to answer, as told."""

    def __init__(
        self, *, refuse: Sequence[PointId] = (), answers: int = 10**9, error: BaseException | None = None
    ) -> None:
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


class Held(Memory):
    """A destination whose upserts wait until they are let go."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**how)
        self.arrived: SimpleQueue[int] = SimpleQueue()
        self.go = Event()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Say how many points came, and wait."""
        self.arrived.put(len(points))
        assert self.go.wait(PATIENCE_S)
        super().upsert(collection, points, insert_only=insert_only)


class Feed:
    """The portions of a job, from another thread: what is not there yet is waited for, as a stream does.

    Attributes:
        taken: portions that the writer has come back from.
    """

    def __init__(self) -> None:
        self._portions: SimpleQueue[Sequence[Item] | None] = SimpleQueue()
        self.taken = 0

    def give(self, *items: Item) -> None:
        """One portion more."""
        self._portions.put(items)

    def wake(self) -> None:
        """Whoever waits for a portion gets an empty one."""
        self._portions.put(())

    def end(self) -> None:
        """No portion more."""
        self._portions.put(None)

    def __iter__(self) -> Iterator[Sequence[Item]]:
        while (portion := self._portions.get(timeout=PATIENCE_S)) is not None:
            yield portion
            self.taken += 1


@contextmanager
def writing(
    store: Destination, schema: CollectionSchema = SCHEMA, **how: Any
) -> Iterator[tuple[Writer, Feed, Future[WriteReport]]]:
    """A writer that pulls from a feed in a thread of its own; it has ended after the block."""
    feed = Feed()
    with ThreadPoolExecutor(8) as senders, ThreadPoolExecutor(1) as thread:
        writer = Writer(store, "c", schema, senders, wake=feed.wake, **how)
        report = thread.submit(writer.write, feed)
        yield writer, feed, report
        feed.end()
        report.result(PATIENCE_S)


def pulled(store: Destination, portions: Iterable[Sequence[Item]], **how: Any) -> WriteReport:
    """What becomes of these portions."""
    with ThreadPoolExecutor(8) as senders:
        return Writer(store, "c", SCHEMA, senders, **how).write(portions)


def test_good_points_are_stored_beside_bad_ones(store: Store, collection: str) -> None:
    """Each refusal names its own point by index and reason; all others are in the collection."""
    store.ensure(collection, SCHEMA)
    drafts = [draft(0), spoilt(1, dense=NAN), draft(2, payload={"a": float("inf")}), draft(3)]
    report = write(store, collection, drafts, SCHEMA)
    assert (report.submitted, report.stored, report.indices) == (4, 2, (0, 3))
    assert causes(report) == [(1, "invalid_vector"), (2, "invalid_payload")]
    assert store.existing(collection, [0, 1, 2, 3]) == {0, 3}


def test_insert_only_leaves_what_was_there(store: Store, collection: str) -> None:
    """A second run of a job can ask what is there, however much, and overwrites nothing of it."""
    store.ensure(collection, SCHEMA)
    first = [draft(i) for i in range(3)]
    assert write(store, collection, first, SCHEMA, insert_only=True, batch_points=2).stored == 3
    assert existing_ids(store, collection, range(5), batch_points=2) == {0, 1, 2}
    again = [draft(i, payload={"again": True}) for i in range(5)]
    assert write(store, collection, again, SCHEMA, insert_only=True, batch_points=2).stored == 5
    assert store.count(collection, {"must": [{"key": "again", "match": {"value": True}}]}) == 2


def test_a_refused_batch_is_split_down_to_the_point_at_fault() -> None:
    """One point that a store will not have costs its neighbours nothing."""
    memory = Memory(refuse=[3, 11])
    report = write(memory, "c", [draft(i) for i in range(16)], SCHEMA)
    assert causes(report) == [(3, "StoreRejected"), (11, "StoreRejected")]
    assert {rejection.message for rejection in report.rejected} == {"refused"}
    assert set(memory.points) == set(range(16)) - {3, 11}
    assert len(memory.batches) <= 2 * 2 * 5


def test_merged_points_share_the_fate_of_their_owner() -> None:
    """What merged into a refused point is refused too, each under its own index."""
    merged = {0: (0, 2), 1: (1, 3)}
    report = write(Memory(refuse=[0]), "c", [draft(0), draft(1)], SCHEMA, merged=merged)
    assert (report.submitted, report.indices, causes(report)) == (
        4,
        (1, 3),
        [(0, "StoreRejected"), (2, "StoreRejected")],
    )


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), AccessDenied("not for you")])
@pytest.mark.parametrize("answers", [0, 1, 2])
def test_what_was_not_acknowledged_is_reported(error: WorkerError, answers: int) -> None:
    """When the store ceases to answer, every point is either stored or named as not stored."""
    size = 1024
    drafts = [draft(i, vectors=sample_vectors(i, rows=300, size=size)) for i in range(12)]
    memory = Memory(answers=answers, error=error)
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == len(memory.points) == 3 * answers
    assert report.stored + len(report.rejected) == report.submitted == 12
    assert {rejection.cause for rejection in report.rejected} == {error}
    assert report.failure is error
    assert len(memory.batches) <= answers + IN_FLIGHT_MAX


def test_batches_are_bounded_by_bytes() -> None:
    """ColBERT rows make points of a megabyte: a batch holds few, alone if it must."""
    size = 1024
    rows = [300] * 6 + [1023] * 2
    drafts = [draft(i, vectors=sample_vectors(i, rows=count, size=size)) for i, count in enumerate(rows)]
    memory = Memory()
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == 8
    assert sorted(memory.batches) == [1, 1, 3, 3]
    assert sum(memory.points[i].nbytes for i in range(3)) <= BATCH_MAX_BYTES


def test_nothing_submitted_is_nothing_done() -> None:
    """An empty job asks the store nothing, and makes no collection."""
    memory = Memory()
    made: list[None] = []
    assert pulled(memory, [], ensure=lambda: made.append(None)) == WriteReport((), ())
    assert (memory.batches, made) == ([], [])


def test_a_point_that_the_server_refuses_stands_alone(server_store: ServerStore, double: GrpcDouble) -> None:
    """Over gRPC too: the neighbours are stored, and the server's words are not passed on."""
    server_store.ensure("docs", SCHEMA)
    double.refused_ids.add(4)
    report = write(server_store, "docs", [draft(i) for i in range(9)], SCHEMA)
    assert report.stored == 8
    assert causes(report) == [(4, "StoreRejected")]
    assert report.rejected[0].message == "Qdrant refused the request: INVALID_ARGUMENT"
    assert server_store.count("docs") == 8


def test_a_server_that_goes_away_is_accounted_for(double: GrpcDouble) -> None:
    """The report is exact when the server is lost in the middle of a job."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=0.5, pause_s=0.05)
    size = 256
    schema = schema_for(size, size)
    store.ensure("docs", schema)
    drafts = [draft(i, vectors=sample_vectors(i, rows=1500, size=size)) for i in range(6)]
    double.before["Upsert"] = lambda: double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)
    report = write(store, "docs", drafts, schema)
    assert report.stored + len(report.rejected) == 6
    assert {type(rejection.cause) for rejection in report.rejected} == {StoreUnavailable}
    double.failures.clear()
    assert store.count("docs") == report.stored
    store.close()


def test_an_idle_store_gets_what_there_is_and_a_busy_one_gets_batches() -> None:
    """A point does not wait for a batch to fill while nothing is being sent; behind it, points gather."""
    held = Held()
    with writing(held) as (_, feed, report):
        feed.give(draft(0))
        assert held.arrived.get(timeout=PATIENCE_S) == 1
        for index in range(1, 50):
            feed.give(draft(index))
        while feed.taken < 49:
            sleep(0.001)
        assert held.arrived.empty(), "the others gather until the store is idle, or the job at its end"
        held.go.set()
        feed.end()
        assert report.result(PATIENCE_S).stored == 50
    assert sorted(held.points) == list(range(50))
    assert len(held.batches) <= 1 + IN_FLIGHT_MAX


def test_several_batches_are_under_way_and_no_more() -> None:
    """The network never idles while there is something to send, and what is in flight is bounded."""
    held = Held()
    with writing(held, batch_points=10) as (_, feed, report):
        for index in range(2 * IN_FLIGHT_MAX):
            feed.give(*(draft(10 * index + i) for i in range(10)))
        for _ in range(IN_FLIGHT_MAX):
            assert held.arrived.get(timeout=PATIENCE_S) == 10
        with pytest.raises(Empty):
            held.arrived.get(timeout=0.05)
        assert feed.taken == IN_FLIGHT_MAX, "the portion that finds no room is not given back"
        held.go.set()
        feed.end()
        assert report.result(PATIENCE_S).stored == 20 * IN_FLIGHT_MAX


def test_what_is_neither_stored_nor_rejected_is_not_released() -> None:
    """While a server is slow its points count as held, so that the model does not fill the memory with others."""
    released: list[int] = []
    held = Held(refuse=[2])
    with writing(held, merged={0: (0, 6)}, release=released.extend) as (_, feed, report):
        feed.give(draft(0))
        held.arrived.get(timeout=PATIENCE_S)
        feed.give(spoilt(1, dense=NAN), draft(2), draft(3), Rejection(4, ModelFailure("no vector")))
        while len(released) < 2:
            sleep(0.001)
        assert sorted(released) == [1, 4], "the one under way and those that gather are held"
        held.go.set()
        feed.give(draft(5))
        feed.end()
        report.result(PATIENCE_S)
    assert sorted(released) == list(range(6)), "each once, by its own index"


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), NotFound("no collection"), AccessDenied("no")])
def test_whatever_ends_a_job_releases_all_that_it_took(error: WorkerError) -> None:
    """A job that failed holds no room for vectors."""
    released: list[int] = []
    portions = [[draft(index), draft(index + 1)] for index in range(0, 20, 2)]
    report = pulled(Memory(answers=3, error=error), portions, batch_points=1, release=released.extend)
    assert sorted(released) == sorted([*report.indices, *(rejection.index for rejection in report.rejected)])


def test_a_writer_that_waits_for_results_takes_note_of_what_comes_back() -> None:
    """While the model computes, points that gathered are sent as soon as the store is idle, and progress is told."""
    done: list[int] = []
    held = Held()
    with writing(held, observer=done.append) as (_, feed, _report):
        feed.give(draft(0))
        assert held.arrived.get(timeout=PATIENCE_S) == 1
        feed.give(draft(1), draft(2))
        while feed.taken < 1:
            sleep(0.001)
        held.go.set()
        assert held.arrived.get(timeout=PATIENCE_S) == 2, "without a further portion"
        while done[-1:] != [3]:
            sleep(0.001)


def test_a_store_that_gives_out_ends_a_job_that_waits_for_results() -> None:
    """The model does not go on computing for a job that can store nothing."""
    with writing(Memory(answers=0)) as (_, feed, report):
        feed.give(draft(0))
        assert isinstance(report.result(PATIENCE_S).failure, StoreUnavailable), "without a further portion"


@pytest.mark.parametrize("error", [StoreRejected("refused"), StoreUnavailable("no answer"), NotFound("gone")])
def test_a_report_does_not_keep_vectors(error: WorkerError) -> None:
    """A report of a job that failed, which a caller may hold for long, is as small as one that went well."""
    kept: list[weakref.ref[np.ndarray]] = []

    def portions() -> Iterator[Sequence[Item]]:
        for index in range(3):
            one = draft(index)
            assert one.vectors.dense is not None
            one = replace(one, vectors=replace(one.vectors, dense=one.vectors.dense.copy()))
            assert one.vectors.dense is not None
            kept.append(weakref.ref(one.vectors.dense))
            yield [one]
            del one

    gc.disable()  # nothing may depend on the collector of cycles
    try:
        report = pulled(Memory(answers=0, error=error), portions())
        assert report.rejected
        assert kept
        assert [reference for reference in kept if reference() is not None] == []
    finally:
        gc.enable()


def test_what_is_acknowledged_before_a_collection_was_made_again_is_sent_again() -> None:
    """A collection vanishes behind a batch whose acknowledgement is still on its way: its points are not lost."""
    memory = Memory()
    held, first_in = Event(), Event()

    class Vanishing:
        """Stores the first batch and answers late; the second one finds the collection gone, once."""

        def __init__(self) -> None:
            self.calls = 0

        def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
            """See `Store.upsert`."""
            self.calls += 1
            if self.calls == 1:
                memory.upsert(collection, points, insert_only=insert_only)
                first_in.set()
                assert held.wait(PATIENCE_S)
                return
            if self.calls == 2:
                assert first_in.wait(PATIENCE_S)
                memory.points.clear()
                raise NotFound("gone")
            memory.upsert(collection, points, insert_only=insert_only)
            held.set()

    made: list[int] = []
    with writing(Vanishing(), batch_points=1, ensure=lambda: made.append(1)) as (_, feed, report):
        feed.give(draft(0), draft(1))
        feed.end()
        assert report.result(PATIENCE_S).stored == 2
    assert len(made) == 2
    assert sorted(memory.points) == [0, 1]


def test_progress_counts_what_is_acknowledged_or_rejected() -> None:
    """Whoever watches a job is told a growing number that ends at all of its points, and nothing before it is so."""
    done: list[int] = []
    held = Held(refuse=[2])
    with writing(held, merged={0: (0, 5)}, observer=done.append) as (_, feed, report):
        feed.give(draft(0))
        held.arrived.get(timeout=PATIENCE_S)
        assert done == []
        feed.give(spoilt(1, dense=NAN), draft(2), draft(3), Rejection(4, ModelFailure("no vector")))
        while not done:
            sleep(0.001)
        assert done == [2]
        held.go.set()
        feed.end()
        final = report.result(PATIENCE_S)
    assert done == sorted(set(done))
    assert done[-1] == final.submitted == 6
    assert final.indices == (0, 3, 5)
    assert causes(final) == [(1, "invalid_vector"), (2, "StoreRejected"), (4, "ModelFailure")]


def test_a_store_that_gives_out_ends_the_job() -> None:
    """No further portion is asked for, and what belongs to the portion at hand is not tried."""
    memory = Memory(answers=0)
    portions = iter([[draft(0)], [draft(1), draft(2)], [draft(3)]])
    report = pulled(memory, portions)
    left = sum(len(portion) for portion in portions)
    assert memory.batches == [1]
    assert isinstance(report.failure, StoreUnavailable)
    assert causes(report) == [(index, "StoreUnavailable") for index in range(4 - left)]
    whole = report.completed(4)
    assert causes(whole) == [(index, "StoreUnavailable") for index in range(4)]


def test_a_generator_stays_its_owners_to_close() -> None:
    """A writer that ends early leaves the generator open: whoever made it knows what is to be cancelled with it."""
    closed: list[str] = []

    def portions() -> Generator[Sequence[Item]]:
        try:
            for index in range(5):
                yield [draft(index)]
        finally:
            closed.append("closed")

    generator = portions()
    assert isinstance(pulled(Memory(answers=0), generator).failure, StoreUnavailable)
    assert closed == []
    generator.close()
    assert closed == ["closed"]


@pytest.mark.parametrize(
    ("error", "cause"), [(ModelFailure("the device is gone"), ModelFailure), (KeyError("secret"), Internal)]
)
def test_results_that_break_off_are_accounted_for(error: Exception, cause: type[WorkerError]) -> None:
    """Whatever the iterable raises, points under way are stored, and the reason ends the job."""

    def portions() -> Iterator[Sequence[Item]]:
        yield [draft(0), draft(1)]
        raise error

    report = pulled(Memory(), portions())
    assert (report.indices, report.rejected, type(report.failure)) == ((0, 1), (), cause)
    assert "secret" not in str(report.failure)
    assert causes(report.completed(3)) == [(2, cause.__name__)]


class Vanishing(Memory):
    """A destination whose collection can be deleted by someone else; `make` makes it."""

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
    report = pulled(memory, [[draft(0)]], ensure=lambda: memory.make() if memory.made else setattr(memory, "made", 1))
    assert memory.made == 2
    assert sorted(memory.points) == [0]
    assert report == WriteReport((0,), ())


def test_a_collection_is_not_made_a_third_time() -> None:
    """One that vanishes again and again ends the job."""
    memory = Vanishing()
    made: list[None] = []
    report = pulled(memory, [[draft(0)]], ensure=lambda: made.append(None))
    assert len(made) == 2
    assert causes(report) == [(0, "NotFound")]


def test_points_that_vanish_with_their_collection_are_not_called_stored() -> None:
    """A collection that is deleted in the middle of a job ends it, and nothing is reported as stored."""
    memory = Vanishing()

    def portions() -> Iterator[Sequence[Item]]:
        yield [draft(0)]
        while not memory.points:
            sleep(0.001)
        memory.there = False
        yield [draft(1)]

    report = pulled(memory, portions(), ensure=memory.make)
    assert memory.made == 1
    assert causes(report) == [(0, "NotFound"), (1, "NotFound")]
    assert report.completed(4, skipped=[2, 3]).stored == 0, "what was there before has gone with it"


def test_what_is_acknowledged_late_is_gone_with_the_collection_too() -> None:
    """A batch whose answer comes after another has found the collection gone is not reported as stored."""
    arrived, gone = Event(), Event()

    class Gone(Memory):
        def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
            if points[0].id:
                gone.set()
                raise NotFound("collection 'c' does not exist")
            arrived.set()
            assert gone.wait(PATIENCE_S)
            assert not ended.wait(0.05)  # the other batch is accounted for meanwhile

    ended = Event()

    def portions() -> Iterator[Sequence[Item]]:
        yield [draft(0)]
        assert arrived.wait(PATIENCE_S)
        yield [draft(1), draft(2)]

    report = pulled(Gone(), portions(), batch_points=2)
    assert causes(report) == [(0, "NotFound"), (1, "NotFound"), (2, "NotFound")]


def test_a_writer_that_is_not_let_in_does_not_try_each_point() -> None:
    """Refused credentials end the job at the first batch: no point is at fault."""
    memory = Memory(answers=0, error=AccessDenied("check the key"))
    report = write(memory, "c", [draft(i) for i in range(100)], SCHEMA)
    assert len(memory.batches) <= IN_FLIGHT_MAX
    assert len(report.rejected) == 100


def test_a_cancelled_job_sends_nothing_more() -> None:
    """What is being sent is accounted for, what waits is not sent, and the writer ends with its iterable."""
    held = Held()
    with writing(held) as (writer, feed, report):
        feed.give(draft(0))
        held.arrived.get(timeout=PATIENCE_S)
        for index in range(1, 10):
            feed.give(draft(index))
        while feed.taken < 9:
            sleep(0.001)
        writer.cancel(Cancelled("nobody waits"))
        held.go.set()
        feed.end()
        final = report.result(PATIENCE_S)
    assert final.indices == (0,)
    assert causes(final.completed(12)) == [(index, "Cancelled") for index in range(1, 12)]
    assert sorted(held.points) == [0]


class Splitting(Memory):
    """A destination that refuses every batch, after some only when it is let go, and that gives out beside them.

    Args:
        free: batches that are refused without waiting.
        gone_from: the id of the first point that the store does not answer for any more, once another one waits.
    """

    def __init__(self, free: int, gone_from: int = 10**9) -> None:
        super().__init__()
        self._free = free
        self._gone_from = gone_from
        self.waits = Event()
        self.go = Event()

    def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Destination.upsert`."""
        if any(point.id >= self._gone_from for point in points if isinstance(point.id, int)):
            assert self.waits.wait(PATIENCE_S)
            raise StoreUnavailable("no answer")
        with self._lock:
            self.batches.append(len(points))
            late = len(self.batches) > self._free
        if late:
            self.waits.set()
            assert self.go.wait(PATIENCE_S)
        raise StoreRejected("refused")


def test_a_batch_that_is_being_split_is_left_when_the_job_is_cancelled() -> None:
    """Its other halves are not sent, and each of them is reported once as what the job ended by."""
    store = Splitting(free=12)
    with writing(store) as (writer, feed, report):
        feed.give(*(draft(index) for index in range(500)))
        assert store.waits.wait(PATIENCE_S)
        writer.cancel(Cancelled("nobody waits"))
        store.go.set()
        feed.end()
        final = report.result(PATIENCE_S)
    assert len(store.batches) <= 12 + IN_FLIGHT_MAX
    names = dict(causes(final))
    assert sorted(names) == list(range(500))
    assert set(names.values()) <= {"StoreRejected", "Cancelled"}
    assert sum(name == "Cancelled" for name in names.values()) > 450


def test_a_batch_that_is_being_split_is_left_when_the_store_gives_out() -> None:
    """One batch finds the store gone; another, which is being split, is not tried point by point."""
    store = Splitting(free=5, gone_from=150)
    done: list[int] = []

    def observe(points: int) -> None:
        done.append(points)
        store.go.set()

    with ThreadPoolExecutor(8) as senders:
        drafts = [draft(index) for index in range(400)]
        report = Writer(store, "c", SCHEMA, senders, batch_points=100, observer=observe).write([drafts])
    assert len(store.batches) <= 5 + IN_FLIGHT_MAX
    names = dict(causes(report))
    assert sorted(names) == list(range(400))
    assert sum(name == "StoreUnavailable" for name in names.values()) > 350


class Defective(Mapping[str, Any]):
    """A payload that cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise MemoryError("secret")

    def __iter__(self) -> Iterator[str]:
        raise MemoryError("secret")

    def __len__(self) -> int:
        return 1


def test_a_point_that_cannot_even_be_proven_costs_no_other() -> None:
    """A defect while a point is proven is that point's `Internal`, and the job goes on."""
    memory = Memory()
    report = write(memory, "c", [draft(0), draft(1, payload=Defective()), draft(2)], SCHEMA)
    assert sorted(memory.points) == [0, 2]
    assert causes(report) == [(1, "Internal")]
    assert report.failure is None
    assert "secret" not in report.rejected[0].message


def _raises(error: Exception) -> Callable[[], object]:
    def ensure() -> None:
        raise error

    return ensure


def test_a_collection_whose_making_breaks_is_the_end_too() -> None:
    """An error that no store should raise is reported like any other, and the writer ends."""
    report = pulled(Memory(), [[draft(0)]], ensure=_raises(KeyError("secret")))
    assert causes(report) == [(0, "Internal")]


def test_a_collection_that_cannot_be_made_is_the_end() -> None:
    """What `ensure` raises is the reason given for every point."""
    memory = Memory()
    report = pulled(memory, [[draft(0), draft(1)]], ensure=_raises(StoreRejected("no room for another collection")))
    assert memory.batches == []
    assert [(one.index, one.message) for one in report.rejected] == [
        (0, "no room for another collection"),
        (1, "no room for another collection"),
    ]


def test_a_store_that_breaks_its_promise_loses_nothing() -> None:
    """An error that no store should raise is reported for each point, and its words stay in the log."""
    memory = Memory(answers=0, error=KeyError("secret host"))
    report = write(memory, "c", [draft(0), draft(1)], SCHEMA)
    assert causes(report) == [(0, "Internal"), (1, "Internal")]
    assert "secret" not in report.rejected[0].message


def test_senders_that_have_ended_lose_nothing() -> None:
    """A batch that no thread takes any more is reported, as the worker shuts down."""
    senders = ThreadPoolExecutor(1)
    senders.shutdown()
    report = Writer(Memory(), "c", SCHEMA, senders).write([[draft(0)]])
    assert causes(report) == [(0, "Internal")]


def test_rows_are_pooled_only_where_that_is_asked_for() -> None:
    """A point with too many ColBERT rows is refused, or stored with as many as fit."""
    long = draft(0, vectors=sample_vectors(0, rows=1100, size=1024))
    schema = schema_for(1024, 1024)
    memory = Memory()
    with ThreadPoolExecutor(1) as senders:
        assert causes(Writer(memory, "c", schema, senders).write([[long]])) == [(0, "colbert_too_long")]
        assert Writer(memory, "c", schema, senders, pools=True).write([[long]]).stored == 1
    colbert = memory.points[0].colbert
    assert colbert is not None
    assert colbert.shape == (1023, 1024)
