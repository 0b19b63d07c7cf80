"""`bge-m3-qdrant serve` from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from qdrant_sink.edge import EdgeStore
from service.transports.http.server import listening
from tests.loopback import Worker, free_port
from tests.sink.samples import schema_for

ROOT = Path(__file__).parents[1]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "512"}
WAIT_MAX_S = 60.0
"""Timeout in seconds for a hanging worker. No measurement depends on it."""


def program(port: int, *command: str, **more: str) -> Worker:
    """Return a module and arguments that serve HTTP on this port, by default the command; `more` are variables."""
    environment = {**SETTINGS, "PORT": str(port), **more}
    return Worker(None, cwd=ROOT, script="-m", args=command or ("service", "serve"), env=environment)


def connected(port: int) -> httpx.Client:
    """Yield a client of the program on that port."""
    return httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=WAIT_MAX_S, trust_env=False)


def status(client: httpx.Client) -> int:
    """Return the status of `/ping`, or 0 while the port is closed."""
    try:
        return client.get("/ping").status_code
    except httpx.TransportError:
        return 0


def until(condition: Callable[[], bool], description: str) -> None:
    """Wait until another process fulfils a condition."""
    deadline = time.monotonic() + WAIT_MAX_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(description)
        time.sleep(0.005)


def statuses(client: httpx.Client, over: Callable[[int], bool]) -> list[int]:
    """Return the statuses of `/ping` without repetitions, until `over` accepts one."""
    history = [status(client)]

    def is_over() -> bool:
        if (now := status(client)) != history[-1]:
            history.append(now)
        return over(now)

    until(is_over, "another status")
    return history


@pytest.fixture
def port() -> int:
    """A free port for one program."""
    return free_port()


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    """A client of the program on that port."""
    with connected(port) as opened:
        yield opened


@dataclass(frozen=True)
class Served:
    """A program that is ready to serve.

    Attributes:
        seen: the statuses of `/ping` from its start until it was ready.
    """

    client: httpx.Client
    worker: Worker
    seen: list[int]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A program with a store of its own, which the last test that uses it ends."""
    port, store = free_port(), tmp_path_factory.mktemp("http") / "store"
    with program(port, QDRANT_PATH=str(store), LOG_FORMAT="json") as worker, connected(port) as client:
        yield Served(client, worker, statuses(client, lambda now: now == 200))


@pytest.fixture(scope="module")
def unfit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Worker]]:
    """Programs that end by themselves, started concurrently: most of their time is loading libraries."""
    store = tmp_path_factory.mktemp("other")
    other = EdgeStore(store)
    other.ensure("notes", schema_for(8, 8))
    other.close()
    taken = free_port()
    programs = {
        f"PORT must be a free port, got {taken}": program(taken),
        "GPU_DEVICE": program(free_port(), GPU_DEVICE="cuda:7"),
        "LOG_FORMAT": program(free_port(), LOG_FORMAT="yaml"),
        "other model": program(free_port(), QDRANT_PATH=str(store), QDRANT_COLLECTION="notes"),
        "lost": program(free_port(), "tests.programs.lost_at_start"),
        "broken": program(free_port(), "tests.programs.loading", "broken"),
    }
    with socket.create_server(("", taken)), ExitStack() as stack:
        yield {name: stack.enter_context(worker) for name, worker in programs.items()}


def test_the_port_answers_while_the_model_loads(served: Served) -> None:
    """The probe gets 204 while it asks before the model is ready, then 200, and no other status."""
    assert [status for status in served.seen if status] in ([204, 200], [200])  # which may be the first that it gets


def test_an_answer_is_sent_in_one_piece(port: int) -> None:
    """An answer is sent completely without waiting for the client to acknowledge a part."""
    with listening(port) as listener, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


@pytest.mark.slow
def test_no_request_is_lost_under_load_beside_a_bulk_job(served: Served) -> None:
    """Queries are answered beside a bulk job, and SIGTERM loses no accepted request."""
    client, worker = served.client, served.worker
    codes: list[int] = []
    bulk: list[Any] = []
    lost: list[str] = []
    query = {"texts": ["a query"], "vectors": ["dense"]}

    def load() -> None:
        texts = [f"passage {n} " + "of some words " * 20 for n in range(80)]
        bulk.append(client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}}))

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=WAIT_MAX_S, trust_env=False) as own:
            while True:
                try:  # on a new connection: a closed idle one would look like a lost request
                    code = own.post("/embed", json=query, headers={"Connection": "close"}).status_code
                except httpx.ConnectError:
                    return  # the port is closed: all earlier requests were answered
                except httpx.TransportError as error:
                    lost.append(repr(error))
                    return
                codes.append(code)
                if code == 503:
                    return

    threads = [threading.Thread(target=load), *(threading.Thread(target=ask) for _ in range(4))]
    for thread in threads:
        thread.start()
    until(lambda: len(codes) > 20, "twenty answers")
    worker.terminate()
    for thread in threads:
        thread.join(WAIT_MAX_S)
    assert worker.wait(WAIT_MAX_S) == 0
    lines = [json.loads(line) for line in worker.output.splitlines()]
    assert not lost
    assert set(codes) <= {200, 503}
    assert bulk[0].status_code == 200
    assert bulk[0].json()["upsert"]["stored"] == 80
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert any("request_id" in line for line in lines)


@pytest.mark.slow
def test_queries_are_answered_beside_bulk_jobs(port: int, client: httpx.Client, tmp_path: Path) -> None:
    """Hundreds of queries of four clients are answered beside consecutive bulk jobs."""
    done = threading.Event()
    answered: list[int] = []
    stored: list[int] = []
    texts = [f"passage {n} " + "of some words " * 60 for n in range(200)]

    def load() -> None:
        while not done.is_set():
            answer = client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}}).json()
            stored.append(answer["upsert"]["stored"])

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=WAIT_MAX_S, trust_env=False) as own:
            body = {"texts": ["a query"], "vectors": ["dense"]}
            answered.extend(own.post("/embed", json=body).status_code for _ in range(100))

    with program(port, QDRANT_PATH=str(tmp_path / "store")) as worker:
        until(lambda: status(client) == 200, "ready")
        loader = threading.Thread(target=load)
        askers = [threading.Thread(target=ask) for _ in range(4)]
        for thread in (loader, *askers):
            thread.start()
        for thread in askers:
            thread.join(WAIT_MAX_S)
        done.set()
        loader.join(WAIT_MAX_S)
        worker.terminate()
        assert worker.wait(WAIT_MAX_S) == 0
    assert answered == [200] * 400
    assert set(stored) == {200}


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["PORT", "GPU_DEVICE", "LOG_FORMAT"])
def test_settings_that_cannot_work_refuse_to_start(unfit: dict[str, Worker], setting: str) -> None:
    """Invalid settings or an occupied port end the program with status 2 and a line that names the setting."""
    ((named, worker),) = [(name, worker) for name, worker in unfit.items() if name.startswith(setting)]
    assert worker.wait(WAIT_MAX_S) == 2
    (line,) = [text for text in worker.output.splitlines() if text.startswith("refusing to start: ")]
    assert named in line
    assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_worker_that_is_unfit_is_never_ready(unfit: dict[str, Worker]) -> None:
    """A collection of another model ends the program with status 1 before it is ready."""
    worker = unfit["other model"]
    assert worker.wait(WAIT_MAX_S) == 1
    assert "a readiness check failed: " in worker.output
    assert "192" in worker.output
    assert "serving" not in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.slow
def test_a_worker_that_can_serve_nothing_ends_with_status_1(unfit: dict[str, Worker]) -> None:
    """The program exits with status 1 if the last device is lost or loading fails."""
    assert unfit["lost"].wait(WAIT_MAX_S) == 1
    assert "Traceback" not in unfit["lost"].output
    assert unfit["broken"].wait(WAIT_MAX_S) == 1
    assert "LookupError in broken" in unfit["broken"].output
    assert "private words" not in unfit["broken"].output


@pytest.mark.parametrize(
    ("number", "delay"),
    [
        (signal.SIGTERM, 0.01),
        *(
            pytest.param(number, delay, marks=pytest.mark.slow)
            for number in (signal.SIGTERM, signal.SIGINT)
            for delay in (0.0, 0.05)
        ),
    ],
)
def test_a_worker_that_is_stopped_while_it_loads_exits_with_0(
    port: int, client: httpx.Client, number: signal.Signals, delay: float
) -> None:
    """SIGTERM while the model loads exits with status 0 and no abort."""
    with program(port, "tests.programs.loading", "endless", LOG_FORMAT="json") as worker:
        until(lambda: "inside" in worker.output, "loading")
        assert status(client) == 204
        time.sleep(delay)
        os.kill(worker.pid, number)
        assert worker.wait(WAIT_MAX_S) == 0, worker.output
        lines = [line for line in worker.output.splitlines() if line != "inside"]
        assert json.loads(lines[-1])["message"] == "shutting down: finishing running requests"


@pytest.mark.parametrize(("arguments", "exit_status"), [([], 0), (["lost"], 1)], ids=["draining", "lost"])
@pytest.mark.slow
def test_a_second_signal_ends_the_process_immediately(
    port: int, client: httpx.Client, arguments: list[str], exit_status: int
) -> None:
    """A second signal ends the process immediately, even if a request hangs."""

    def ask() -> None:
        with suppress(httpx.TransportError):
            client.post("/score", json={"pairs": [["a query", "a passage"]]})

    with program(port, "tests.programs.hanging_score", *arguments) as worker:
        until(lambda: status(client) == 200, "ready")
        asking = threading.Thread(target=ask)
        asking.start()
        until(lambda: "stuck" in worker.output, "a request that hangs")
        if not arguments:
            worker.terminate()
            until(lambda: status(client) == 503, "the end of admission")
        worker.terminate()
        assert worker.wait(WAIT_MAX_S) == exit_status
        asking.join(WAIT_MAX_S)
    assert "Traceback" not in worker.output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_does_not_wait_for_a_job_that_stores(
    port: int, client: httpx.Client, tmp_path: Path, number: signal.Signals
) -> None:
    """A second signal ends the process in the middle of a long job, and stored points remain."""
    texts = [f"passage {n} " + "of some words " * 20 for n in range(2000)]

    def load() -> None:
        with suppress(httpx.TransportError):
            answered.append(client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}}))

    answered: list[object] = []
    store = {"QDRANT_PATH": str(tmp_path / "store")}
    with program(port, "tests.programs.slow_store", **store) as worker:
        until(lambda: status(client) == 200, "ready")
        loading = threading.Thread(target=load)
        loading.start()
        until((tmp_path / "store" / "notes").exists, "the first points")
        os.kill(worker.pid, number)
        until(lambda: status(client) == 503, "the end of admission")
        os.kill(worker.pid, number)
        assert worker.wait(WAIT_MAX_S) == 0
        loading.join(WAIT_MAX_S)
        assert not answered
        assert "second signal: ending with unanswered requests" in worker.output
        assert "Traceback" not in worker.output
    with program(port, **store) as worker:
        until(lambda: status(client) == 200, "ready again")
        answer = client.post("/points", json={"texts": texts[:10], "qdrant": {"collection": "notes"}})
        assert answer.json()["upsert"]["stored"] == 10
        worker.terminate()
        assert worker.wait(WAIT_MAX_S) == 0


@pytest.mark.slow
def test_a_client_that_reads_no_answer_holds_no_worker(port: int, client: httpx.Client) -> None:
    """After SIGTERM the process exits although a client never reads its large answer."""
    body = json.dumps({"texts": ["word " * 3_000_000], "returnVectors": False}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with program(port, MAX_RESPONSE_MB="30") as worker:
        until(lambda: status(client) == 200, "ready")
        with socket.create_connection(("127.0.0.1", port), WAIT_MAX_S) as raw:
            raw.sendall(head.encode() + body)
            assert raw.recv(8, socket.MSG_PEEK) == b"HTTP/1.1", "the answer has begun, and is longer than all buffers"
            worker.terminate()
            assert worker.wait(WAIT_MAX_S) == 0
            assert "Traceback" not in worker.output
