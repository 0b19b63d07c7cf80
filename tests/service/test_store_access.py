"""A store that does not answer makes reads fail early, and no read outlives its caller."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from threading import Event
from typing import Any

import pytest

from embedder import NotFound
from qdrant_sink import Store, StoreUnavailable
from service.operations.breaker import Breaker
from service.operations.collections import Collections, CountRequest
from service.operations.store_access import CALLS_MAX, StoreAccess
from service.operations.store_wait import StoreWait
from service.settings import Settings
from tests.service.client import PATIENCE, until
from tests.sink.faults import Silent
from tests.sink.samples import SCHEMA

FAILURES_MAX = 3
INTERVAL_S = 5.0


class Clock:
    """A clock that a test sets."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the time in seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    """A clock that stands still."""
    return Clock()


def _open_breaker(clock: Clock) -> Breaker:
    breaker = Breaker(FAILURES_MAX, INTERVAL_S, clock)
    for _ in range(FAILURES_MAX):
        assert breaker.refusal_s() is None
        breaker.failed()
    return breaker


def test_calls_are_refused_after_consecutive_failures_only(clock: Clock) -> None:
    """A store that answers now and then is asked by everybody; one that answers nobody is not."""
    breaker = Breaker(FAILURES_MAX, INTERVAL_S, clock)
    for _ in range(10):
        breaker.failed()
        breaker.failed()
        breaker.answered()
        assert breaker.refusal_s() is None
    assert _open_breaker(clock).refusal_s() == INTERVAL_S


def test_one_call_per_interval_tries_whether_the_store_answers_again(clock: Clock) -> None:
    """While one call tries, the others are refused with the time after which the next one may try."""
    breaker = _open_breaker(clock)
    for _ in range(3):
        clock.now += INTERVAL_S - 1
        assert breaker.refusal_s() == 1
        clock.now += 1
        assert breaker.refusal_s() is None
        assert breaker.refusal_s() == INTERVAL_S
        breaker.failed()
    clock.now += INTERVAL_S
    assert breaker.refusal_s() is None
    breaker.answered()
    assert [breaker.refusal_s() for _ in range(5)] == [None] * 5


def test_an_answer_prolongs_a_wait(clock: Clock) -> None:
    """A search in many portions may take long, as long as the store answers each in time."""
    wait = StoreWait(10.0, clock)
    for _ in range(5):
        clock.now += 9
        assert wait.remaining_s == 1
        wait.answered()
    clock.now += 11
    assert wait.remaining_s == 0
    assert StoreWait(None, clock).remaining_s is None


@pytest.fixture
def silent() -> Iterator[Silent]:
    """A server that accepts connections and does not answer."""
    server = Silent()
    yield server
    server.stop()


def _settings(port: int) -> Settings:
    environment = {"QDRANT_URL": f"http://127.0.0.1:{port}", "QDRANT_GRPC_PORT": str(port)}
    return Settings.from_environment(environment).model_copy(update={"qdrant_timeout_s": 0.2})


def test_a_silent_server_makes_reads_fail_early(silent: Silent) -> None:
    """Three times as many reads as there are threads fail after one limit, later ones without a request."""
    settings = _settings(silent.port)
    access = StoreAccess(settings, None, lambda: None)
    collections = Collections(settings, access, SCHEMA)

    async def count() -> StoreUnavailable:
        with pytest.raises(StoreUnavailable) as caught:
            await collections.count(CountRequest("docs"))
        return caught.value

    async def scenario() -> None:
        errors = await asyncio.gather(*(count() for _ in range(3 * CALLS_MAX)))
        assert all("did not answer within 0.2 s (QDRANT_TIMEOUT_S)" in error.message for error in errors)
        connections = silent.taken.qsize()
        later = [await count() for _ in range(100)]
        assert all(error.retryable and error.retry_after_s for error in later)
        assert silent.taken.qsize() <= connections + 1  # of the probe of the other protocol, which was under way
        assert await access.state() == "unavailable"

    asyncio.run(scenario())
    access.close()


class Gate:
    """A store whose calls wait until the test lets them go on."""

    label = "gate"

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go_on = Event()

    def collection_of(self, name: str, *, patient: bool = False) -> str | None:
        """Wait, and return the name."""
        self.begun.append(name)
        assert self.go_on.wait(PATIENCE)
        return name

    def close(self) -> None:
        """Do nothing."""


@pytest.fixture
def gate() -> Gate:
    """A store whose calls wait."""
    return Gate()


@pytest.fixture
def access(gate: Gate) -> Iterator[StoreAccess]:
    """Access to this store, as to a server with a limit that no test reaches."""
    settings = Settings.from_environment({"QDRANT_URL": "http://127.0.0.1:9", "QDRANT_TIMEOUT_S": "600"})
    store: Any = gate
    access = StoreAccess(settings, store, lambda: None)
    yield access
    gate.go_on.set()
    access.close()


def _resolve(store: Store, *names: str) -> list[str | None]:
    return [store.collection_of(name) for name in names]


def test_a_cancelled_read_that_waits_for_a_thread_never_begins(access: StoreAccess, gate: Gate) -> None:
    """What a client that has gone had queued is dropped; the reads of others are answered."""

    async def scenario() -> None:
        store = access.opened()
        running = [asyncio.create_task(access.call(lambda: _resolve(store, "running"))) for _ in range(CALLS_MAX)]
        await until(lambda: len(gate.begun) == CALLS_MAX)
        queued = [asyncio.create_task(access.call(lambda: _resolve(store, "queued"))) for _ in range(20)]
        kept = asyncio.create_task(access.call(lambda: _resolve(store, "kept")))
        await asyncio.sleep(0)
        for task in queued:
            task.cancel()
        await asyncio.gather(*queued, return_exceptions=True)
        assert all(task.cancelled() for task in queued)
        gate.go_on.set()
        assert await asyncio.gather(*running) == [["running"]] * CALLS_MAX
        assert await kept == ["kept"]

    asyncio.run(scenario())
    assert gate.begun == ["running"] * CALLS_MAX + ["kept"]


def test_a_cancelled_read_sends_no_further_request(access: StoreAccess, gate: Gate) -> None:
    """A read in portions ends with the portion that is under way when its client goes."""

    async def scenario() -> None:
        store = access.opened()
        reading = asyncio.create_task(access.call(lambda: _resolve(store, "first", "second")))
        await until(lambda: gate.begun == ["first"])
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        gate.go_on.set()

    asyncio.run(scenario())
    access.close()
    assert gate.begun == ["first"]


def test_other_errors_of_the_store_are_answers(access: StoreAccess) -> None:
    """A store that refuses requests answers, so that the next request is sent."""

    def missing() -> None:
        raise NotFound("collection 'docs' does not exist")

    async def scenario() -> None:
        for _ in range(5):
            with pytest.raises(NotFound):
                await access.call(missing)

    asyncio.run(scenario())


def test_a_server_that_is_silent_does_not_shorten_an_ingest(silent: Silent) -> None:
    """The limit of reads is not that of ingests, whose patience outlasts the restart of a server."""
    access = StoreAccess(_settings(silent.port), None, lambda: None)
    ended = Event()

    async def scenario() -> None:
        with access.ingest_slot() as slot:
            ingest = asyncio.create_task(slot.run(lambda: ended.wait(PATIENCE), stage="ingest"))
            for _ in range(FAILURES_MAX + 1):
                with pytest.raises(StoreUnavailable):
                    await access.call(lambda: access.opened().count("docs"))
            assert not ingest.done()
            ended.set()
            assert await ingest

    asyncio.run(scenario())
    access.close()
