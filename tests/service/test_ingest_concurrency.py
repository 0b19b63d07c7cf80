"""Ingests run concurrently with each other, with searches and with changes of aliases."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from threading import Event, Semaphore
from typing import Any

import pytest

from embedder import NotFound, Overloaded
from qdrant_sink import Point
from qdrant_sink.edge import EdgeStore
from service.operations import IngestProgress, IngestRequest, Operations, SearchRequest
from service.operations.ingest_values import IngestFailed
from service.operations.store_access import CALLS_MAX, StoreAccess
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.doubles import Watched


class SlowStore:
    """Qdrant Edge whose upserts and collection lookups wait while their gates are closed."""

    def __init__(self, store: EdgeStore) -> None:
        self._store = store
        self.upserts, self.looks = Event(), Event()
        self.upserts.set()
        self.looks.set()
        self.looking = Semaphore(0)
        self.upserting = Semaphore(0)
        self.dropped: set[str] = set()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        self.upserting.release()
        assert self.upserts.wait(PATIENCE)
        self._store.upsert(collection, points, insert_only=insert_only)

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """See `Store.collection_of`; only ingests call it with `patient`."""
        if patient:
            self.looking.release()
            assert self.looks.wait(PATIENCE)
        collection = self._store.collection_of(name)
        return None if collection in self.dropped else collection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


@pytest.fixture
def slow(store: EdgeStore) -> SlowStore:
    """A store whose calls can be blocked."""
    return SlowStore(store)


@pytest.fixture
def operations(watched: Watched, slow: SlowStore) -> Operations:
    """Operations over a model and a store whose calls can be blocked."""
    return Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, slow)


def request(texts: Sequence[str] = ("one", "two"), collection: str = "notes") -> IngestRequest:
    """An ingest request of passages."""
    return IngestRequest(texts=texts, vectors=("dense", "sparse", "colbert"), collection=collection)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition, with a timeout."""
    async with asyncio.timeout(PATIENCE):
        while not condition():  # noqa: ASYNC110 - other threads fulfil the condition
            await asyncio.sleep(0.005)


def test_a_job_does_not_recreate_a_deleted_collection_behind_an_alias(
    operations: Operations, watched: Watched, slow: SlowStore, store: EdgeStore
) -> None:
    """A collection that is deleted while a job by its alias waits is not created again."""

    async def scenario() -> None:
        await operations.ingest(request(collection="v1"))
        await operations.ingest(request(collection="v2"))
        store.alias("live", "v1")
        watched.engine.gate.clear()
        seen = len(watched.engine.batches)
        try:
            waiting = asyncio.create_task(operations.ingest(request(["three"], collection="live")))
            await until(lambda: len(watched.engine.batches) > seen)
            store.alias("live", "v2")
            slow.dropped.add("v1")
        finally:
            watched.engine.gate.set()
        with pytest.raises(IngestFailed, match="'live' was deleted while the job ran; send the job again") as caught:
            await waiting
        assert isinstance(caught.value.cause, NotFound)
        assert caught.value.report.stored == 0
        assert (await operations.ingest(request(["three"], collection="live"))).report.stored == 1
        assert store.count("v2") == 3

    asyncio.run(scenario())


def test_a_search_by_an_alias_follows_it_immediately(operations: Operations, store: EdgeStore) -> None:
    """After an alias is changed, the next search uses the new collection."""

    async def texts() -> list[object]:
        [hits] = (await operations.search(SearchRequest(queries=["one"], collection="live"))).hits
        return [hit.payload["text"] for hit in hits if hit.payload is not None]

    async def scenario() -> None:
        await operations.ingest(request(["old"], collection="v1"))
        await operations.ingest(request(["new"], collection="v2"))
        store.alias("live", "v1")
        assert await texts() == ["old"]
        store.alias("live", "v2")
        assert await texts() == ["new"]

    asyncio.run(scenario())


def test_searches_do_not_wait_for_ingests_that_wait_for_the_store(operations: Operations, slow: SlowStore) -> None:
    """Searches have threads of their own, however many ingests wait for a slow server."""

    async def scenario() -> None:
        await operations.ingest(request())
        await operations.search(SearchRequest(queries=["one"], collection="notes"))
        while slow.looking.acquire(blocking=False):
            pass
        slow.looks.clear()
        jobs = [asyncio.create_task(operations.ingest(request([f"text {n}"]))) for n in range(2 * CALLS_MAX)]
        try:
            for _ in jobs:
                await until(lambda: slow.looking.acquire(blocking=False))
            async with asyncio.timeout(PATIENCE):
                result = await operations.search(SearchRequest(queries=["one"], collection="notes"))
            assert len(result.hits[0]) == 2
        finally:
            slow.looks.set()
        assert [(await job).report.stored for job in jobs] == [1] * len(jobs)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "texts"), [(24, 10), (8, 30)])
def test_the_model_stays_within_the_window_ahead_of_a_slow_store(
    operations: Operations, watched: Watched, slow: SlowStore, jobs: int, texts: int
) -> None:
    """All jobs into a hanging store together compute no more than the window."""

    async def scenario() -> None:
        seen = len(watched.engine.batches)

        def computed() -> int:
            return sum(map(sum, watched.engine.batches[seen:]))

        slow.upserts.clear()
        text = " ".join(f"word{n}" for n in range(120))
        running = []
        try:
            for job in range(jobs):
                ingest = operations.ingest(request([f"{job} {n} {text}" for n in range(texts)]))
                running.append(asyncio.create_task(ingest))
                await asyncio.sleep(0.03)
            await until(lambda: computed() >= watched.pool.window)
            await asyncio.sleep(0.3)  # time for the model to exceed the window
            assert computed() <= watched.pool.window + 4096
            assert watched.pool.waiting_tokens > 0
        finally:
            slow.upserts.set()
        assert sum([(await job).report.stored for job in running]) == jobs * texts

    asyncio.run(scenario())


def test_a_cancelled_job_keeps_its_slot_until_its_thread_ends(slow: SlowStore) -> None:
    """After a cancellation, the slot is free only when the thread has ended, so that later jobs are rejected."""
    access = StoreAccess(Settings.from_environment(ENVIRONMENT), slow, lambda: None, ingests_max=1)
    begun, go_on = Event(), Event()

    def hang() -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    async def hold() -> None:
        with access.ingest_slot() as slot:
            await slot.run(hang, stage="ingest")

    async def scenario() -> None:
        job = asyncio.create_task(hold())
        await until(begun.is_set)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        with pytest.raises(Overloaded, match="limit 1"):
            await hold()
        go_on.set()

        def admitted() -> bool:
            try:
                with access.ingest_slot():
                    return True
            except Overloaded:
                return False

        await until(admitted)

    asyncio.run(scenario())


def test_a_failing_progress_callback_does_not_fail_the_job(
    operations: Operations, caplog: pytest.LogCaptureFixture
) -> None:
    """The points are stored, and the failure is logged once, without its message."""

    def broken(_progress: IngestProgress) -> None:
        raise RuntimeError("a secret")

    result = asyncio.run(operations.ingest(request([f"text {n}" for n in range(50)]), progress=broken))
    assert result.report.stored == 50
    messages = [record.getMessage() for record in caplog.records if "progress" in record.getMessage()]
    assert len(messages) == 1
    assert "secret" not in messages[0]


def test_a_cancelled_ingest_ends_while_its_batches_hang(operations: Operations, slow: SlowStore) -> None:
    """The caller returns immediately, the thread ends when the store answers, and the next job succeeds."""

    async def scenario() -> None:
        slow.upserts.clear()
        job = asyncio.create_task(operations.ingest(request()))
        await until(lambda: slow.upserting.acquire(blocking=False))
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        slow.upserts.set()
        assert (await operations.ingest(request(["three"]))).report.stored == 1

    asyncio.run(scenario())
