"""The writer reports every point of a job as stored or rejected, whatever happens."""

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
TIMEOUT_S = 30.0
"""A test that hangs fails after so long."""

Item = Draft | Rejection


class Memory:
    """A destination in memory that can refuse points or stop answering."""

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


class Blocking(Memory):
    """A destination whose upserts block until `go` is set."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.arrived: SimpleQueue[int] = SimpleQueue()
        self.go = Event()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Say how many points came, and wait."""
        self.arrived.put(len(points))
        assert self.go.wait(TIMEOUT_S)
        super().upsert(collection, points, insert_only=insert_only)


class Feed:
    """Portions of a job from another thread. Iteration waits for the next portion, as a stream does.

    Attributes:
        taken: number of portions after which the writer has requested the next one.
    """

    def __init__(self) -> None:
        self._portions: SimpleQueue[Sequence[Item] | None] = SimpleQueue()
        self.taken = 0

    def give(self, *items: Item) -> None:
        """Add a portion."""
        self._portions.put(items)

    def wake(self) -> None:
        """Add an empty portion, which wakes the writer."""
        self._portions.put(())

    def end(self) -> None:
        """End the iteration."""
        self._portions.put(None)

    def __iter__(self) -> Iterator[Sequence[Item]]:
        while (portion := self._portions.get(timeout=TIMEOUT_S)) is not None:
            yield portion
            self.taken += 1


@contextmanager
def writing(
    store: Destination, schema: CollectionSchema = SCHEMA, **options: Any
) -> Iterator[tuple[Writer, Feed, Future[WriteReport]]]:
    """Run a writer with a feed in a separate thread. It has ended after the block."""
    feed = Feed()
    with ThreadPoolExecutor(8) as senders, ThreadPoolExecutor(1) as thread:
        writer = Writer(store, "c", schema, senders, wake=feed.wake, **options)
        report = thread.submit(writer.write, feed)
        yield writer, feed, report
        feed.end()
        report.result(TIMEOUT_S)


def pulled(store: Destination, portions: Iterable[Sequence[Item]], **options: Any) -> WriteReport:
    """Write these portions and return the report."""
    with ThreadPoolExecutor(8) as senders:
        return Writer(store, "c", SCHEMA, senders, **options).write(portions)


def test_good_points_are_stored_beside_bad_ones(store: Store, collection: str) -> None:
    """Invalid points are rejected with index and reason, and all others are stored."""
    store.ensure(collection, SCHEMA)
    drafts = [draft(0), spoilt(1, dense=NAN), draft(2, payload={"a": float("inf")}), draft(3)]
    report = write(store, collection, drafts, SCHEMA)
    assert (report.submitted, report.stored, report.indices) == (4, 2, (0, 3))
    assert causes(report) == [(1, "invalid_vector"), (2, "invalid_payload")]
    assert store.existing(collection, [0, 1, 2, 3]) == {0, 3}


def test_insert_only_leaves_what_was_there(store: Store, collection: str) -> None:
    """A second run of a job can look up all existing points, and does not overwrite them."""
    store.ensure(collection, SCHEMA)
    first = [draft(i) for i in range(3)]
    assert write(store, collection, first, SCHEMA, insert_only=True, batch_points=2).stored == 3
    assert existing_ids(store, collection, range(5), batch_points=2) == {0, 1, 2}
    again = [draft(i, payload={"again": True}) for i in range(5)]
    assert write(store, collection, again, SCHEMA, insert_only=True, batch_points=2).stored == 5
    assert store.count(collection, {"must": [{"key": "again", "match": {"value": True}}]}) == 2


def test_a_refused_batch_is_split_until_the_invalid_points_are_found() -> None:
    """Points that the store refuses do not affect the other points of the batch."""
    memory = Memory(refuse=[3, 11])
    report = write(memory, "c", [draft(i) for i in range(16)], SCHEMA)
    assert causes(report) == [(3, "StoreRejected"), (11, "StoreRejected")]
    assert {rejection.message for rejection in report.rejected} == {"refused"}
    assert set(memory.points) == set(range(16)) - {3, 11}
    assert len(memory.batches) <= 2 * 2 * 5


def test_merged_points_share_the_outcome_of_the_first_one() -> None:
    """Points that were merged into a refused point are rejected too, each with its own index."""
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
    """If the store stops answering, every point is either stored or rejected."""
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
    """Points with many ColBERT rows take a megabyte, so that a batch has few of them."""
    size = 1024
    rows = [300] * 6 + [1023] * 2
    drafts = [draft(i, vectors=sample_vectors(i, rows=count, size=size)) for i, count in enumerate(rows)]
    memory = Memory()
    report = write(memory, "c", drafts, schema_for(size, size))
    assert report.stored == 8
    assert sorted(memory.batches) == [1, 1, 3, 3]
    assert sum(memory.points[i].nbytes for i in range(3)) <= BATCH_MAX_BYTES


def test_an_empty_job_does_nothing() -> None:
    """An empty job does not call the store and does not create a collection."""
    memory = Memory()
    created: list[None] = []
    assert pulled(memory, [], ensure=lambda: created.append(None)) == WriteReport((), ())
    assert (memory.batches, created) == ([], [])


def test_a_point_that_the_server_refuses_does_not_affect_the_others(
    server_store: ServerStore, double: GrpcDouble
) -> None:
    """Over gRPC too, the other points are stored, and the server's message is not shown."""
    server_store.ensure("docs", SCHEMA)
    double.refused_ids.add(4)
    report = write(server_store, "docs", [draft(i) for i in range(9)], SCHEMA)
    assert report.stored == 8
    assert causes(report) == [(4, "StoreRejected")]
    assert report.rejected[0].message == "Qdrant refused the request: INVALID_ARGUMENT"
    assert server_store.count("docs") == 8


def test_the_report_is_exact_if_the_server_is_lost(double: GrpcDouble) -> None:
    """If the server is lost during a job, every point is either stored or rejected."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=0.5, pause_s=0.05)
    size = 256
    schema = schema_for(size, size)
    store.ensure("docs", schema)
    drafts = [draft(i, vectors=sample_vectors(i, rows=1500, size=size)) for i in range(6)]
    double.before["Upsert"] = lambda: double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)
    report = write(store, "docs", drafts, schema)
    assert report.stored + len(report.rejected) == 6
    assert {type(rejection.cause) for rejection in report.rejected} == {StoreUnavailable}
    store.close()
    double.failures.clear()
    again = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    assert again.count("docs") == report.stored
    again.close()


def test_points_are_sent_immediately_to_an_idle_store_and_in_batches_to_a_busy_one() -> None:
    """While a batch is in flight, points are collected; otherwise they are sent immediately."""
    blocking = Blocking()
    with writing(blocking) as (_, feed, report):
        feed.give(draft(0))
        assert blocking.arrived.get(timeout=TIMEOUT_S) == 1
        for index in range(1, 50):
            feed.give(draft(index))
        while feed.taken < 49:
            sleep(0.001)
        assert blocking.arrived.empty(), "the others are collected until the store is idle or the job ends"
        blocking.go.set()
        feed.end()
        assert report.result(TIMEOUT_S).stored == 50
    assert sorted(blocking.points) == list(range(50))
    assert len(blocking.batches) <= 1 + IN_FLIGHT_MAX


def test_the_number_of_batches_in_flight_is_limited() -> None:
    """Several batches are sent concurrently, up to the limit."""
    blocking = Blocking()
    with writing(blocking, batch_points=10) as (_, feed, report):
        for index in range(2 * IN_FLIGHT_MAX):
            feed.give(*(draft(10 * index + i) for i in range(10)))
        for _ in range(IN_FLIGHT_MAX):
            assert blocking.arrived.get(timeout=TIMEOUT_S) == 10
        while feed.taken < IN_FLIGHT_MAX:
            sleep(0.001)
        with pytest.raises(Empty):
            blocking.arrived.get(timeout=0.05)
        assert feed.taken == IN_FLIGHT_MAX, "the portion for which there is no room is still being processed"
        blocking.go.set()
        feed.end()
        assert report.result(TIMEOUT_S).stored == 20 * IN_FLIGHT_MAX


def test_only_stored_and_rejected_points_are_released() -> None:
    """While a server is slow its points are not released, so that the model does not fill the memory."""
    released: list[int] = []
    blocking = Blocking(refuse=[2])
    with writing(blocking, merged={0: (0, 6)}, release=released.extend) as (_, feed, report):
        feed.give(draft(0))
        blocking.arrived.get(timeout=TIMEOUT_S)
        feed.give(spoilt(1, dense=NAN), draft(2), draft(3), Rejection(4, ModelFailure("no vector")))
        while len(released) < 2:
            sleep(0.001)
        assert sorted(released) == [1, 4], "points in flight and collected points are held"
        blocking.go.set()
        feed.give(draft(5))
        feed.end()
        report.result(TIMEOUT_S)
    assert sorted(released) == list(range(6)), "each once, by its own index"


@pytest.mark.parametrize("error", [StoreUnavailable("no answer"), NotFound("no collection"), AccessDenied("no")])
def test_a_failed_job_releases_all_points(error: WorkerError) -> None:
    """After a failure no vectors are held."""
    released: list[int] = []
    portions = [[draft(index), draft(index + 1)] for index in range(0, 20, 2)]
    report = pulled(Memory(answers=3, error=error), portions, batch_points=1, release=released.extend)
    assert sorted(released) == sorted([*report.indices, *(rejection.index for rejection in report.rejected)])


def test_a_writer_that_waits_for_a_portion_processes_returned_batches() -> None:
    """While the model computes, collected points are sent as soon as the store is idle."""
    done: list[int] = []
    blocking = Blocking()
    with writing(blocking, observer=done.append) as (_, feed, _report):
        feed.give(draft(0))
        assert blocking.arrived.get(timeout=TIMEOUT_S) == 1
        feed.give(draft(1), draft(2))
        while feed.taken < 1:
            sleep(0.001)
        blocking.go.set()
        assert blocking.arrived.get(timeout=TIMEOUT_S) == 2, "without a further portion"
        while done[-1:] != [3]:
            sleep(0.001)


def test_a_failing_store_ends_a_job_that_waits_for_a_portion() -> None:
    """The model does not continue to compute for a job that cannot store points."""
    with writing(Memory(answers=0)) as (_, feed, report):
        feed.give(draft(0))
        assert isinstance(report.result(TIMEOUT_S).failure, StoreUnavailable), "without a further portion"


@pytest.mark.parametrize("error", [StoreRejected("refused"), StoreUnavailable("no answer"), NotFound("gone")])
def test_a_report_does_not_keep_vectors(error: WorkerError) -> None:
    """The report of a failed job, which a caller may keep for long, does not reference vectors."""
    kept: list[weakref.ref[np.ndarray]] = []

    def portions() -> Iterator[Sequence[Item]]:
        for index in range(3):
            sample = draft(index)
            assert sample.vectors.dense is not None
            sample = replace(sample, vectors=replace(sample.vectors, dense=sample.vectors.dense.copy()))
            assert sample.vectors.dense is not None
            kept.append(weakref.ref(sample.vectors.dense))
            yield [sample]
            del sample

    gc.disable()  # the test must not depend on the garbage collector
    try:
        report = pulled(Memory(answers=0, error=error), portions())
        assert report.rejected
        assert kept
        assert [reference for reference in kept if reference() is not None] == []
    finally:
        gc.enable()


def test_points_acknowledged_before_a_collection_was_created_again_are_sent_again() -> None:
    """If the collection is deleted while an acknowledgement is in transit, its points are not lost."""
    memory = Memory()
    blocking, first_stored = Event(), Event()

    class Vanishing:
        """Stores the first batch and answers late; the second one finds the collection gone, once."""

        def __init__(self) -> None:
            self.calls = 0

        def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
            """See `Store.upsert`."""
            self.calls += 1
            if self.calls == 1:
                memory.upsert(collection, points, insert_only=insert_only)
                first_stored.set()
                assert blocking.wait(TIMEOUT_S)
                return
            if self.calls == 2:
                assert first_stored.wait(TIMEOUT_S)
                memory.points.clear()
                raise NotFound("gone")
            memory.upsert(collection, points, insert_only=insert_only)
            blocking.set()

    created: list[int] = []
    with writing(Vanishing(), batch_points=1, ensure=lambda: created.append(1)) as (_, feed, report):
        feed.give(draft(0), draft(1))
        feed.end()
        assert report.result(TIMEOUT_S).stored == 2
    assert len(created) == 2
    assert sorted(memory.points) == [0, 1]


def test_progress_counts_what_is_acknowledged_or_rejected() -> None:
    """The observer receives a growing number of finished points, which ends at all points."""
    done: list[int] = []
    blocking = Blocking(refuse=[2])
    with writing(blocking, merged={0: (0, 5)}, observer=done.append) as (_, feed, report):
        feed.give(draft(0))
        blocking.arrived.get(timeout=TIMEOUT_S)
        assert done == []
        feed.give(spoilt(1, dense=NAN), draft(2), draft(3), Rejection(4, ModelFailure("no vector")))
        while not done:
            sleep(0.001)
        assert done == [2]
        blocking.go.set()
        feed.end()
        final = report.result(TIMEOUT_S)
    assert done == sorted(set(done))
    assert done[-1] == final.submitted == 6
    assert final.indices == (0, 3, 5)
    assert causes(final) == [(1, "invalid_vector"), (2, "StoreRejected"), (4, "ModelFailure")]


def test_a_failing_store_ends_the_job() -> None:
    """After a failure no further portion is requested, and the rest of the current one is not sent."""
    memory = Memory(answers=0)
    portions = iter([[draft(0)], [draft(1), draft(2)], [draft(3)]])
    report = pulled(memory, portions)
    left = sum(len(portion) for portion in portions)
    assert memory.batches == [1]
    assert isinstance(report.failure, StoreUnavailable)
    assert causes(report) == [(index, "StoreUnavailable") for index in range(4 - left)]
    whole = report.completed(4)
    assert causes(whole) == [(index, "StoreUnavailable") for index in range(4)]


def test_the_caller_closes_the_generator() -> None:
    """A writer that ends early leaves the generator open, because its caller must cancel related work."""
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
def test_an_exception_of_the_iterable_ends_the_job(error: Exception, cause: type[WorkerError]) -> None:
    """If the iterable raises, batches in flight are stored, and the error ends the job."""

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
        """Create the collection, as `ensure` does."""
        self.there = True
        self.made += 1

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Refuse while the collection is gone."""
        if not self.there:
            raise NotFound("collection 'c' does not exist")
        super().upsert(collection, points, insert_only=insert_only)


def test_a_collection_that_is_deleted_before_the_first_point_is_created_again() -> None:
    """If a verified collection was deleted, the worker creates it again, once."""
    memory = Vanishing()
    report = pulled(memory, [[draft(0)]], ensure=lambda: memory.make() if memory.made else setattr(memory, "made", 1))
    assert memory.made == 2
    assert sorted(memory.points) == [0]
    assert report == WriteReport((0,), ())


def test_a_collection_is_not_created_a_third_time() -> None:
    """A collection that is deleted repeatedly ends the job."""
    memory = Vanishing()
    created: list[None] = []
    report = pulled(memory, [[draft(0)]], ensure=lambda: created.append(None))
    assert len(created) == 2
    assert causes(report) == [(0, "NotFound")]


def test_a_collection_that_is_deleted_after_the_first_point_ends_the_job() -> None:
    """It is not created again, since it would lack the points that were acknowledged; see `missing_indices`."""
    memory = Vanishing()

    def portions() -> Iterator[Sequence[Item]]:
        yield [draft(0)]
        while not memory.points:
            sleep(0.001)
        memory.there = False
        yield [draft(1)]

    report = pulled(memory, portions(), ensure=memory.make)
    assert memory.made == 1
    assert causes(report) == [(1, "NotFound")]
    assert isinstance(report.failure, NotFound)


def test_points_acknowledged_after_the_deletion_are_counted() -> None:
    """A batch that is acknowledged after another one raised NotFound may be in a collection that was made again."""
    arrived, gone = Event(), Event()

    class Gone(Memory):
        def upsert(self, _collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
            if points[0].id:
                gone.set()
                raise NotFound("collection 'c' does not exist")
            arrived.set()
            assert gone.wait(TIMEOUT_S)
            assert not ended.wait(0.05)  # the other batch is recorded in the meantime

    ended = Event()

    def portions() -> Iterator[Sequence[Item]]:
        yield [draft(0)]
        assert arrived.wait(TIMEOUT_S)
        yield [draft(1), draft(2)]

    report = pulled(Gone(), portions(), batch_points=2)
    assert causes(report) == [(1, "NotFound"), (2, "NotFound")]


def test_denied_access_ends_the_job_at_the_first_batch() -> None:
    """After refused credentials the batch is not split, because no point is invalid."""
    memory = Memory(answers=0, error=AccessDenied("check the key"))
    report = write(memory, "c", [draft(i) for i in range(100)], SCHEMA)
    assert len(memory.batches) <= IN_FLIGHT_MAX
    assert len(report.rejected) == 100


def test_a_cancelled_job_sends_nothing_more() -> None:
    """After a cancellation, batches in flight are recorded and waiting points are not sent."""
    blocking = Blocking()
    with writing(blocking) as (writer, feed, report):
        feed.give(draft(0))
        blocking.arrived.get(timeout=TIMEOUT_S)
        for index in range(1, 10):
            feed.give(draft(index))
        while feed.taken < 9:
            sleep(0.001)
        writer.cancel(Cancelled("nobody waits"))
        blocking.go.set()
        feed.end()
        final = report.result(TIMEOUT_S)
    assert final.indices == (0,)
    assert causes(final.completed(12)) == [(index, "Cancelled") for index in range(1, 12)]
    assert sorted(blocking.points) == [0]


class Splitting(Memory):
    """A destination that refuses every batch, and that can block or stop answering.

    Args:
        free: number of batches that are refused immediately. Later ones block until `go` is set.
        gone_from: smallest point id for which the store raises StoreUnavailable, as soon as another batch blocks.
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
            assert self.waits.wait(TIMEOUT_S)
            raise StoreUnavailable("no answer")
        with self._lock:
            self.batches.append(len(points))
            late = len(self.batches) > self._free
        if late:
            self.waits.set()
            assert self.go.wait(TIMEOUT_S)
        raise StoreRejected("refused")


def test_splitting_a_batch_stops_when_the_job_is_cancelled() -> None:
    """The other halves are not sent, and each of their points is rejected once."""
    store = Splitting(free=12)
    with writing(store) as (writer, feed, report):
        feed.give(*(draft(index) for index in range(500)))
        assert store.waits.wait(TIMEOUT_S)
        writer.cancel(Cancelled("nobody waits"))
        store.go.set()
        feed.end()
        final = report.result(TIMEOUT_S)
    assert len(store.batches) <= 12 + IN_FLIGHT_MAX
    names = dict(causes(final))
    assert sorted(names) == list(range(500))
    assert set(names.values()) <= {"StoreRejected", "Cancelled"}
    assert sum(name == "Cancelled" for name in names.values()) > 450


def test_splitting_a_batch_stops_when_the_store_fails() -> None:
    """After one batch fails because the store is unavailable, another batch is not split further."""
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


def test_an_exception_during_validation_affects_only_its_point() -> None:
    """If the validation of a point raises, the point is rejected with `Internal`."""
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


def test_an_unexpected_error_of_ensure_ends_the_job() -> None:
    """An unexpected error of `ensure` is reported as `Internal`, and the writer ends."""
    report = pulled(Memory(), [[draft(0)]], ensure=_raises(KeyError("secret")))
    assert causes(report) == [(0, "Internal")]


def test_an_error_of_ensure_ends_the_job() -> None:
    """Every point is rejected with the error of `ensure`."""
    memory = Memory()
    report = pulled(memory, [[draft(0), draft(1)]], ensure=_raises(StoreRejected("no room for another collection")))
    assert memory.batches == []
    assert [(rejection.index, rejection.message) for rejection in report.rejected] == [
        (0, "no room for another collection"),
        (1, "no room for another collection"),
    ]


def test_an_unexpected_error_of_the_store_is_internal() -> None:
    """An unexpected error of the store rejects every point with `Internal`, without its message."""
    memory = Memory(answers=0, error=KeyError("secret host"))
    report = write(memory, "c", [draft(0), draft(1)], SCHEMA)
    assert causes(report) == [(0, "Internal"), (1, "Internal")]
    assert "secret" not in report.rejected[0].message


def test_points_are_rejected_after_the_executor_is_shut_down() -> None:
    """While the worker shuts down, a batch that cannot be sent is reported."""
    senders = ThreadPoolExecutor(1)
    senders.shutdown()
    report = Writer(Memory(), "c", SCHEMA, senders).write([[draft(0)]])
    assert causes(report) == [(0, "Internal")]


def test_rows_are_pooled_only_with_pools() -> None:
    """A point with too many ColBERT rows is refused, or pooled and stored."""
    long = draft(0, vectors=sample_vectors(0, rows=1100, size=1024))
    schema = schema_for(1024, 1024)
    memory = Memory()
    with ThreadPoolExecutor(1) as senders:
        assert causes(Writer(memory, "c", schema, senders).write([[long]])) == [(0, "colbert_too_long")]
        assert Writer(memory, "c", schema, senders, pools=True).write([[long]]).stored == 1
    colbert = memory.points[0].colbert
    assert colbert is not None
    assert colbert.shape == (1023, 1024)
