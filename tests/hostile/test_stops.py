"""A stop of the server, which no client delays and which says what it has cut."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from embedder import Embedder
from service.operations import ScoreRequest
from service.operations.score import Score
from service.transports.http.connections import ConnectionLimits
from tests.hostile.raw_client import UNFINISHED, RawClient, head, post
from tests.loopback import Worker, free_port
from tests.service.client import PATIENCE, Client, until
from tests.service.conftest import Serve
from tests.service.served import Served

ROOT = Path(__file__).parents[2]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "512", "SHUTDOWN_GRACE_S": "3"}
LARGE = post("/embed", {"texts": ["word " * 1000] * 8, "vectors": ["colbert"]})
"""A request whose answer is larger than the buffers of a connection."""

Hold = Callable[[RawClient, Served], None]

SCORE = {"pairs": [["a query", "a passage"]]}


def waiting(client: RawClient, _served: Served) -> None:
    """Hold a connection open."""
    client.send(head())
    assert client.answer().status == 200


def within_head(client: RawClient, served: Served) -> None:
    """Begin a request."""
    client.send(b"GET /liv")
    asyncio.run(until(lambda: served.connections.held_bytes > 0))


def within_body(client: RawClient, served: Served) -> None:
    """Begin a body."""
    client.send(UNFINISHED)
    asyncio.run(until(lambda: served.running == {"/embed": 1}))


def reads_nothing(client: RawClient, _served: Served) -> None:
    """Ask for a large answer, and read none of it."""
    client.send(LARGE)
    assert client.begins_to_answer()


def pipelines(client: RawClient, served: Served) -> None:
    """Send requests and read no answer, until neither side can send more."""
    requests, sent = head("GET", "/docs") * 1000, 0

    def are_unread() -> bool:
        nonlocal sent
        more = client.send_up_to(requests[sent % len(requests) :], 1)
        sent += more
        return not more and any(connection._unread_bytes for connection in list(served.connections._open))  # type: ignore[attr-defined]

    asyncio.run(until(are_unread))
    assert client.begins_to_answer()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hold", "cut"),
    [
        (waiting, {}),
        (within_head, {}),
        (within_body, {"sending": 1}),
        (reads_nothing, {"reading": 1}),
        (pipelines, {"reading": 1}),
    ],
)
def test_no_client_delays_a_stop(
    worker: Client, hold: Callable[[RawClient, Served], None], cut: dict[str, int]
) -> None:
    """Whatever a client does with its connection, a stop closes it before the end of its time, and counts it."""
    limits = ConnectionLimits(stop_progress_s=0.2)
    with ExitStack() as stack:
        with Served(worker.operations, limits=limits) as served:
            client = stack.enter_context(RawClient(served.port, receive_buffer=4096))
            hold(client, served)
        assert not served.is_alive
        assert len(served.connections) == 0
        assert dict(served.connections.cut) == cut


def test_what_is_cut_is_counted_once(worker: Client) -> None:
    """A client that is told that its body came too slowly, and still reads that at the end of the time, is one."""
    limits = ConnectionLimits(stop_progress_s=0.2, linger_s=60)
    with Served(worker.operations, limits=limits) as served, RawClient(served.port) as client:
        within_body(client, served)
        served.stop()
        answer = client.answer()
        assert (answer.status, answer.code) == (408, "invalid_request")
    assert dict(served.connections.cut) == {"sending": 1}


def test_an_answer_that_is_read_is_read_to_its_end(worker: Client) -> None:
    """A stop waits for a client that reads."""
    limits = ConnectionLimits(stop_progress_s=PATIENCE)
    with Served(worker.operations, limits=limits) as served, RawClient(served.port, receive_buffer=4096) as client:
        client.send(LARGE)
        assert client.begins_to_answer()
        served.stop()
        answer = client.answer()
        assert answer.status == 200
        assert answer.body.endswith(b"}")
        assert client.is_closed()
    assert not served.connections.cut


class HangingScore(Score):
    """A score operation that never returns."""

    async def __call__(self, request: ScoreRequest) -> object:  # type: ignore[override]
        """See `Score.__call__`."""
        return await asyncio.Event().wait()


def test_what_still_runs_is_told_that_it_is_cut(serve: Serve, embedder: Embedder) -> None:
    """At the end of its time a stop answers the running requests with `cancelled`, which may be retried elsewhere."""
    operations = serve().operations
    operations.score = HangingScore(embedder, operations.limits, memory=operations.memory)
    with Served(operations) as served, ExitStack() as stack:
        clients = [stack.enter_context(RawClient(served.port)) for _ in range(3)]
        for client in clients:
            client.send(post("/score", SCORE))
        asyncio.run(until(lambda: served.running == {"/score": 3}))
        served.do("close")
        assert not served.emptied.is_set()
        served.do("cut")
        answers = [client.answer() for client in clients]
        assert [(answer.status, answer.code) for answer in answers] == [(503, "cancelled")] * 3
        assert served.emptied.wait(PATIENCE)


@contextmanager
def running(port: int, *program: str, **variables: str) -> Iterator[tuple[Worker, httpx.Client]]:
    """A process of a test program that is ready, and a client of it."""
    environment = {**SETTINGS, "PORT": str(port), **variables}
    worker = Worker(None, cwd=ROOT, script="-m", args=program, env=environment)
    with worker, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client:

        def is_ready() -> bool:
            try:
                return client.get("/ping").status_code == 200
            except httpx.TransportError:
                return False

        asyncio.run(until(is_ready))
        yield worker, client


@pytest.mark.slow
def test_a_stop_names_what_it_has_cut(tmp_path: Path) -> None:
    """A request that never ends is cut and named in the log, and the process ends with status 0."""
    port = free_port()
    with running(port, "tests.programs.hanging_score", SHUTDOWN_GRACE_S="6", QDRANT_PATH=str(tmp_path / "store")) as (
        worker,
        _,
    ):
        with RawClient(port) as hanging, RawClient(port) as sending:
            hanging.send(post("/score", SCORE))
            sending.send(UNFINISHED)
            asyncio.run(until(lambda: "stuck" in worker.output))
            worker.terminate()
            answer = hanging.answer()
            assert (answer.status, answer.code) == (503, "cancelled")
            assert worker.wait(PATIENCE) == 0
        assert "the shutdown has cut requests: /score 1; and connections: sending 1" in worker.output
        assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_stop_ends_although_something_never_closes(tmp_path: Path) -> None:
    """Where the end of the model or the store hangs, the process ends when its time is over."""
    port = free_port()
    with running(port, "tests.programs.hanging_close", QDRANT_PATH=str(tmp_path / "store")) as (worker, _):
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        assert "the shutdown has used its 3 seconds (SHUTDOWN_GRACE_S)" in worker.output


@pytest.mark.slow
def test_an_ingest_that_is_cut_keeps_what_is_acknowledged(tmp_path: Path) -> None:
    """An ingest at the end of the time, also one as a job, ends; the points that were stored are there afterwards."""
    port, store = free_port(), {"QDRANT_PATH": str(tmp_path / "store")}
    body = {"texts": [f"passage {n} " + "of some words " * 20 for n in range(5000)], "qdrant": {"collection": "notes"}}
    with running(port, "tests.programs.slow_store", **store) as (worker, client):
        job = client.post("/points", json=body, headers={"Prefer": "respond-async"}).headers["location"]
        asyncio.run(until(lambda: client.get(job).json()["settled"] > 0))
        with RawClient(port) as ingest:
            ingest.send(post("/points", {**body, "qdrant": {"collection": "others"}}))
            asyncio.run(until((tmp_path / "store" / "others").exists))
            worker.terminate()
            answer = ingest.answer()
            assert (answer.status, answer.code) == (503, "cancelled")
        assert worker.wait(PATIENCE) == 0
        assert "the shutdown has cut requests: /points 1, job 1" in worker.output
        assert "Traceback" not in worker.output
    with running(port, "service", "serve", **store) as (_, client):
        count = client.post("/points/count", json={"collection": "notes"}).json()["count"]
        assert 0 < count < 5000
