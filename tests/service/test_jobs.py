"""Jobs that outlast a proxy: accepted with 202, asked for later, and bounded in number, memory and time."""

from __future__ import annotations

import asyncio
import gc
import json
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import pytest

from embedder import Overloaded
from qdrant_sink.edge import EdgeStore
from service.memory_budget import MemoryBudget
from service.metrics import Metrics
from service.operations import Operations
from service.settings import Settings
from service.transports.http.jobs import RUNNING_MAX, Job, Jobs
from service.transports.http.state import ServerState
from service.wire import Answer, Progress
from service.wire.body import Body
from service.wire.errors import ShuttingDown
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, Watched
from tests.service.served import Served

ASYNC = {"Prefer": "respond-async"}
INGEST: Json = {"texts": ["one", "two"], "qdrant": {"collection": "notes", "ids": [1, 2]}}


def accepted(client: httpx.Client, raw: Json = INGEST) -> str:
    """Send a request as a job, and return the path of the job."""
    response = client.post("/points", json=raw, headers=ASYNC)
    assert response.status_code == 202, response.text
    assert response.headers["location"] == f"/jobs/{response.json()['id']}"
    return response.headers["location"]


def ended(client: httpx.Client, path: str) -> Json:
    """Wait for the end of a job, and return its description."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        response = client.get(path)
        job: Json = response.json()
        assert response.status_code == 200, job
        if job["state"] not in {"queued", "running"}:
            assert "retry-after" not in response.headers
            return job
        assert response.headers["retry-after"] == "1"
        assert job.keys() == {"id", "state", "settled", "points"}
        time.sleep(0.01)
    raise TimeoutError(path)


@contextmanager
def stopped(watched: Watched) -> Iterator[None]:
    """Let no batch of the model end within the block."""
    watched.engine.gate.clear()
    watched.engine.batches.clear()
    try:
        yield
    finally:
        watched.engine.gate.set()


@pytest.fixture
def slow(serve: Serve, watched: Watched, store: EdgeStore) -> Callable[..., Operations]:
    """A function that returns operations over the watched model."""
    return lambda **more: Operations(serve(**more).operations.settings, watched.embedder, store)


def test_a_job_is_accepted_and_has_the_answer_of_the_request(worker: Client) -> None:
    """The answer of 202 says where to ask, and the job then has what the request alone would have answered."""
    with Served(worker.operations) as served, served.client() as client:
        response = client.post("/points", json=INGEST, headers={"Prefer": "handling=lenient, Respond-Async; x=1"})
        assert response.status_code == 202
        assert (response.headers["preference-applied"], response.headers["retry-after"]) == ("respond-async", "1")
        path = response.headers["location"]
        job = ended(client, path)
        at_once = client.post("/points", json=INGEST)
        assert at_once.status_code == 200
        assert (job["state"], job["status"], job["settled"], job["points"]) == ("done", 200, 2, 2)
        assert job["answer"] == at_once.json()
        assert client.head(path).status_code == 200
        assert client.post("/points/count", json={"collection": "notes"}).json() == {"count": 2}
        assert client.delete(path).json()["state"] == "done"
        assert client.get(path).status_code == 404


@pytest.mark.parametrize("prefer", ["", "wait=10", "respond-asynchronously", "handling=respond-async"])
def test_without_the_preference_the_request_is_answered(worker: Client, prefer: str) -> None:
    """Other preferences change nothing, and paths that store nothing have no jobs."""
    with Served(worker.operations) as served, served.client() as client:
        assert client.post("/points", json=INGEST, headers={"Prefer": prefer}).status_code == 200
        assert client.post("/embed", json={"texts": ["a"]}, headers=ASYNC).status_code == 200


def test_what_is_invalid_is_refused_before_it_is_a_job(worker: Client) -> None:
    """A request that cannot work is 400 as without the preference."""
    with Served(worker.operations) as served, served.client() as client:
        for raw in ({"texts": ["a"]}, {**INGEST, "isPassage": "maybe"}, {**INGEST, "qdrant": {"ids": "x"}}):
            assert client.post("/points", json=raw, headers=ASYNC).json() == client.post("/points", json=raw).json()
            assert client.post("/points", json=raw, headers=ASYNC).status_code == 400


def test_a_failed_job_has_its_error(serve: Serve, store: EdgeStore) -> None:
    """The error, its status and the account of the points stand in the job."""
    with Served(serve(store=FailingStore(store, 0)).operations) as served, served.client() as client:
        job = ended(client, accepted(client))
    assert (job["state"], job["status"], job["answer"]["error_code"]) == ("failed", 503, "store_unavailable")
    assert len(job["answer"]["details"]["upsert"]["rejected"]) == 2


def test_a_job_is_cancelled(slow: Callable[..., Operations], watched: Watched) -> None:
    """DELETE ends a running job: its texts leave the queue, and the job is unknown afterwards."""
    with Served(slow()) as served, served.client() as client, stopped(watched):
        first = accepted(client, {"texts": ["first"], "qdrant": {"collection": "notes", "ids": [1]}})
        asyncio.run(until(lambda: bool(watched.engine.batches)))
        path = accepted(client, {"texts": ["second"], "qdrant": {"collection": "notes", "ids": [2]}})
        asyncio.run(until(lambda: watched.pool.waiting_tokens > 0))
        assert client.delete(path).json()["state"] == "cancelled"
        asyncio.run(until(lambda: watched.pool.waiting_tokens == 0))
        assert (client.get(path).status_code, client.delete(path).status_code) == (404, 404)
        watched.engine.gate.set()
        assert ended(client, first)["state"] == "done"
        assert client.post("/points/count", json={"collection": "notes"}).json() == {"count": 1}


def test_a_job_belongs_to_its_key(serve: Serve) -> None:
    """Another key can neither see nor cancel a job, and is told the same as for a job that never was."""
    with (
        Served(serve(API_KEY='{"a": "key-a", "b": "key-b"}').operations) as served,
        served.client(Authorization="Bearer key-a") as owner,
        served.client(Authorization="Bearer key-b") as other,
        served.client() as anyone,
    ):
        path = accepted(owner)
        assert ended(owner, path)["state"] == "done"
        unknown = other.get("/jobs/0")
        assert unknown.status_code == 404
        for response in (other.get(path), other.delete(path)):
            assert (response.status_code, response.json()) == (404, unknown.json())
        assert anyone.get(path).status_code == 401
        assert owner.get(path).status_code == 200


def test_the_number_of_jobs_is_bounded(slow: Callable[..., Operations], watched: Watched) -> None:
    """A job too many is 429 while none has ended; then the oldest that has ended makes room."""
    with Served(slow(JOBS_MAX="2")) as served, served.client() as client:
        with stopped(watched):
            paths = [accepted(client), accepted(client)]
            full = client.post("/points", json=INGEST, headers=ASYNC)
            assert (full.status_code, full.json()["error_code"], full.headers["retry-after"]) == (
                429,
                "overloaded",
                "1",
            )
        for path in paths:
            ended(client, path)
        paths.append(accepted(client))
        assert sorted(client.get(path).status_code for path in paths) == [200, 200, 404]
        ended(client, paths[-1])


def test_the_memory_of_jobs_is_bounded(serve: Serve) -> None:
    """A request beyond it is refused, and the oldest answers go first."""
    raw = {**INGEST, "texts": ["x" * 3000, "y"]}
    with Served(serve(JOBS_MAX_MB="0.007").operations) as served, served.client() as client:
        large = client.post("/points", json={**INGEST, "texts": ["x" * 8000, "y"]}, headers=ASYNC)
        assert large.status_code == 413
        assert "at most 7000 bytes (JOBS_MAX_MB), got 80" in large.json()["error"]
        paths = []
        for _ in range(4):
            paths.append(accepted(client, raw))
            ended(client, paths[-1])
        assert [client.get(path).status_code for path in paths] == [404, 404, 200, 200]


def test_a_job_that_is_refused_costs_no_answer() -> None:
    """Where jobs that have not ended leave no room for a new one, those that have ended keep their answers."""

    async def run() -> None:
        ends = asyncio.Event()

        async def work(_progress: Progress, *, waits: bool) -> Answer:
            if waits:
                await ends.wait()
            return Answer(Body.of({}))

        jobs, metrics = jobs_of(JOBS_MAX="3", JOBS_MAX_MB="0.001"), Metrics(lambda: 0)
        answered = jobs.accept(partial(work, waits=False), 10, metrics, MemoryBudget(1_000_000))
        await end_of(answered)
        running = jobs.accept(partial(work, waits=True), 700, metrics, MemoryBudget(1_000_000))
        with pytest.raises(Overloaded, match="a job of 400 bytes beside the 1 with 700 bytes"):
            jobs.accept(partial(work, waits=False), 400, metrics, MemoryBudget(1_000_000))
        assert jobs.get(answered.id) is answered
        ends.set()
        await end_of(running)
        jobs.accept(partial(work, waits=False), 990, metrics, MemoryBudget(1_000_000))  # now both answers may go

    asyncio.run(run())


@pytest.mark.slow
def test_jobs_that_wait_occupy_what_is_counted(slow: Callable[..., Operations], watched: Watched) -> None:
    """`JOBS_MAX_MB` counts bytes, so a job that waits for its turn holds bytes and not parsed values."""
    raw = {"texts": ["a"], "qdrant": {"collection": "notes", "payloads": [{"values": [{}] * 20_000}]}}
    size = len(json.dumps(raw))

    def occupied() -> int:
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    with Served(slow()) as served, served.client() as client, stopped(watched):
        paths = [accepted(client) for _ in range(RUNNING_MAX)]
        tracemalloc.start()
        try:
            paths += [accepted(client, raw) for _ in range(4)]
            asyncio.run(until(lambda: occupied() < 2 * 4 * size))  # the request itself may end after its answer
        finally:
            tracemalloc.stop()
        watched.engine.gate.set()
        assert [ended(client, path)["state"] for path in paths] == ["done"] * len(paths)


@pytest.mark.slow
def test_an_answer_is_kept_for_a_time(serve: Serve) -> None:
    """After `JOBS_KEEP_S` the job is unknown, and the message says why that can be."""
    with Served(serve(JOBS_KEEP_S="1").operations) as served, served.client() as client:
        path = accepted(client)
        asyncio.run(until(lambda: client.get(path).status_code == 404))
        assert client.post("/points/count", json={"collection": "notes"}).json() == {"count": 2}
        said = client.get(path).json()["error"]
    assert "kept for 1 seconds after its end (JOBS_KEEP_S)" in said
    assert "lost when the worker restarts" in said


def test_a_shutdown_waits_for_jobs_and_shows_them(slow: Callable[..., Operations], watched: Watched) -> None:
    """A job is finished as a running request is, and its progress can be read meanwhile; new jobs are 503."""
    operations = slow()
    with Served(operations) as served, served.client() as client:
        with stopped(watched):
            path = accepted(client)
            asyncio.run(until(lambda: bool(watched.engine.batches)))
            served.do("close")
            assert client.post("/points", json=INGEST, headers=ASYNC).status_code == 503
            assert client.get(path).json()["state"] == "running"
            assert not served.emptied.is_set()
        assert served.emptied.wait(PATIENCE)
        assert client.get(path).json()["state"] == "done"
    assert b'bge_m3_http_jobs{state="done"} 1.0' in operations.metrics.exposed()
    assert b'bge_m3_http_jobs{state="running"} 0.0' in operations.metrics.exposed()


class Text:
    """A text that can be watched."""


def test_a_job_that_comes_during_a_shutdown_costs_no_answer() -> None:
    """A shutdown refuses a new job, and the answers that callers still read stay."""

    async def run() -> None:
        async def work(_progress: Progress) -> Answer:
            return Answer(Body.of({}))

        state = ServerState(Settings.from_environment({**ENVIRONMENT, "JOBS_MAX": "1"}))
        jobs, metrics = Jobs(state), Metrics(lambda: 0)
        answered = jobs.accept(work, 10, metrics, MemoryBudget(1_000_000))
        await end_of(answered)
        state.close()
        with pytest.raises(ShuttingDown):
            jobs.accept(work, 10, metrics, MemoryBudget(1_000_000))
        assert jobs.get(answered.id) is answered

    asyncio.run(run())


def jobs_of(**variables: str) -> Jobs:
    """Jobs without a server."""
    return Jobs(ServerState(Settings.from_environment({**ENVIRONMENT, **variables})))


async def end_of(job: Job) -> None:
    """Wait for the end of a job."""
    while not job.has_ended:  # noqa: ASYNC110 - a job has no event
        await asyncio.sleep(0.001)


def test_a_job_holds_its_texts_until_its_end() -> None:
    """What is kept afterwards is the answer alone."""

    async def run() -> None:
        text = Text()
        watcher = weakref.ref(text)

        async def work(_progress: Progress, text: Text = text) -> Answer:
            await asyncio.sleep(0)
            return Answer(Body.of({"results": []}))

        job = jobs_of().accept(work, 10, Metrics(lambda: 0), MemoryBudget(1_000_000))
        del work, text
        assert watcher() is not None
        await end_of(job)
        await until(lambda: watcher() is None)
        assert job.answer == b'{"results":[]}'

    asyncio.run(run())


@pytest.mark.slow
def test_a_job_waits_while_the_queue_of_the_worker_is_full() -> None:
    """A request would be 429 then, and a job is queued and tried again, since nobody waits to send it again."""

    async def run() -> list[str]:
        states: list[str] = []
        tries = iter([Answer(Body.of({}), 429, "overloaded", 0), Answer(Body.of({}))])

        async def work(_progress: Progress) -> Answer:
            states.append(job.state)
            return next(tries)

        job = jobs_of().accept(work, 10, Metrics(lambda: 0), MemoryBudget(1_000_000))
        states.append(job.state)
        await end_of(job)
        return [*states, job.state]

    assert asyncio.run(run()) == ["queued", "running", "running", "done"]


def test_jobs_take_turns() -> None:
    """At most `RUNNING_MAX` run at the same time; the others wait in their order, and a defect ends only its job."""

    async def run() -> None:
        gate = asyncio.Event()
        begun: list[int] = []

        def work_of(number: int) -> Callable[[Progress], object]:
            async def work(_progress: Progress) -> Answer:
                begun.append(number)
                await gate.wait()
                if number == 1:
                    raise LookupError("a private text")
                return Answer(Body.of({"number": number}))

            return work

        jobs, metrics = jobs_of(), Metrics(lambda: 0)
        accepted = [jobs.accept(work_of(n), 1, metrics, MemoryBudget(1_000_000)) for n in range(RUNNING_MAX + 3)]  # type: ignore[arg-type]
        await until(lambda: len(begun) == RUNNING_MAX)
        for _ in range(20):  # in which another one would begin
            await asyncio.sleep(0)
        assert [job.state for job in accepted].count("running") == len(begun) == RUNNING_MAX
        assert (await jobs.cancel(accepted[-1].id, metrics)).state == "cancelled"
        gate.set()
        for job in accepted[:-1]:
            await end_of(job)
        assert begun == list(range(RUNNING_MAX + 2))
        failed = accepted[1]
        assert (failed.state, failed.status) == ("failed", 500)
        assert b"private" not in (failed.answer or b"")

    asyncio.run(run())
