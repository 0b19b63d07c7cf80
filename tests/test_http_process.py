"""`python -m service.http`: the program, from its start to its end."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from qdrant_sink.edge import EdgeStore
from service.http import listening
from tests.loopback import Worker
from tests.sink.samples import schema_for

ROOT = Path(__file__).parents[1]
SETTINGS = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "512"}
PATIENCE = 60.0
"""Seconds after which a worker counts as hanging. Nothing is measured by it."""


def program(port: int, **more: str) -> Worker:
    """The door on this port."""
    return Worker(None, cwd=ROOT, script="-m", args=["service.http"], env={**SETTINGS, "PORT": str(port), **more})


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def status(client: httpx.Client, path: str = "/ping") -> int:
    """Of an answer; 0 while the port is closed."""
    try:
        return client.get(path).status_code
    except httpx.TransportError:
        return 0


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for another process."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.002)


@pytest.fixture
def port() -> int:
    """For one program."""
    return free_port()


@pytest.fixture
def client(port: int) -> Iterator[httpx.Client]:
    """Of the program on that port."""
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as opened:
        yield opened


def test_the_port_answers_while_the_model_loads(port: int, client: httpx.Client) -> None:
    """The probe reads 204 from the first moment, then 200, and never anything else; an end while loading is clean."""
    with program(port) as worker:
        seen = []
        until(lambda: seen.append(status(client)) or seen[-1] == 200, "ready")  # type: ignore[func-returns-value]
        assert [code for code, before in zip(seen, [None, *seen], strict=False) if code != before] in (
            [0, 204, 200],
            [204, 200],
        )
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    with program(port) as worker:
        until(lambda: status(client) == 204, "loading")
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
        assert "Traceback" not in worker.output


def test_an_answer_is_sent_at_once(port: int) -> None:
    """No part of an answer waits for the client to acknowledge another."""
    with listening(port) as listener, socket.create_connection(("127.0.0.1", port)):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_no_request_is_lost_under_load_beside_a_bulk_job(port: int, client: httpx.Client, tmp_path: Path) -> None:
    """Queries are answered while a bulk job runs, and SIGTERM in the middle loses nothing that was taken."""
    codes: list[int] = []
    bulk: list[Any] = []
    lost: list[str] = []
    query = {"texts": ["a query"], "vectors": ["dense"]}

    def load() -> None:
        texts = [f"passage {n} " + "of some words " * 20 for n in range(80)]
        bulk.append(client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}}))

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE, trust_env=False) as own:
            while True:
                try:  # on a connection of its own: an idle one may be closed, which would look like a lost request
                    code = own.post("/embed", json=query, headers={"Connection": "close"}).status_code
                except httpx.ConnectError:
                    return  # the port is closed: everything before was answered
                except httpx.TransportError as error:
                    lost.append(repr(error))
                    return
                codes.append(code)
                if code == 503:
                    return

    with program(port, QDRANT_PATH=str(tmp_path / "store"), LOG_FORMAT="json") as worker:
        until(lambda: status(client) == 200, "ready")
        threads = [threading.Thread(target=load), *(threading.Thread(target=ask) for _ in range(4))]
        for thread in threads:
            thread.start()
        until(lambda: len(codes) > 20, "twenty answers")
        worker.terminate()
        for thread in threads:
            thread.join(PATIENCE)
        assert worker.wait(PATIENCE) == 0
        lines = [json.loads(line) for line in worker.output.splitlines()]
    assert not lost
    assert set(codes) <= {200, 503}
    assert bulk[0].status_code == 200
    assert bulk[0].json()["upsert"]["stored"] == 80
    assert {"time", "level", "logger", "message"} <= set(lines[0])
    assert any("request_id" in line for line in lines)


@pytest.mark.slow
def test_queries_are_answered_beside_bulk_jobs(port: int, client: httpx.Client, tmp_path: Path) -> None:
    """Hundreds of queries of four clients while one bulk job follows another: none is lost."""
    done = threading.Event()
    answered: list[int] = []
    stored: list[int] = []
    texts = [f"passage {n} " + "of some words " * 60 for n in range(200)]

    def load() -> None:
        while not done.is_set():
            answer = client.post("/points", json={"texts": texts, "qdrant": {"collection": "notes"}}).json()
            stored.append(answer["upsert"]["stored"])

    def ask() -> None:
        with httpx.Client(base_url=client.base_url, timeout=PATIENCE, trust_env=False) as own:
            body = {"texts": ["a query"], "vectors": ["dense"]}
            answered.extend(own.post("/embed", json=body).status_code for _ in range(100))

    with program(port, QDRANT_PATH=str(tmp_path / "store")) as worker:
        until(lambda: status(client) == 200, "ready")
        loader = threading.Thread(target=load)
        askers = [threading.Thread(target=ask) for _ in range(4)]
        for thread in (loader, *askers):
            thread.start()
        for thread in askers:
            thread.join(PATIENCE)
        done.set()
        loader.join(PATIENCE)
        worker.terminate()
        assert worker.wait(PATIENCE) == 0
    assert answered == [200] * 400
    assert set(stored) == {200}


def test_settings_that_cannot_work_refuse_to_start(port: int) -> None:
    """The program ends with status 2 and a line that names the setting; also where the port is taken."""
    with (
        socket.create_server(("", port)),
        program(port) as taken,
        program(free_port(), GPU_DEVICE="cuda:7") as device,
        program(free_port(), LOG_FORMAT="yaml") as form,
    ):
        for worker, named in ((taken, f"PORT={port}"), (device, "GPU_DEVICE"), (form, "LOG_FORMAT")):
            assert worker.wait(PATIENCE) == 2
            (line,) = [one for one in worker.output.splitlines() if one.startswith("refusing to start: ")]
            assert named in line
            assert "Traceback" not in worker.output


def test_a_worker_that_is_unfit_is_never_ready(port: int, client: httpx.Client, tmp_path: Path) -> None:
    """A collection of another model ends the program with status 1, and the probe has never read 200."""
    other = EdgeStore(tmp_path)
    other.ensure("notes", schema_for(8, 8))
    other.close()
    seen = set()
    with program(port, QDRANT_PATH=str(tmp_path), QDRANT_COLLECTION="notes") as worker:
        until(lambda: seen.add(status(client)) or "unfit" in worker.output, "the end")  # type: ignore[func-returns-value]
        assert worker.wait(PATIENCE) == 1
        assert "unfit to serve: " in worker.output
        assert "192" in worker.output
        assert "Traceback" not in worker.output
    assert 200 not in seen


LOST = """
import sys
from service.http import serve
from service.operations import Operations
from service.settings import Settings

class Lost(Operations):
    def when_lost(self, callback):
        callback()

sys.exit(serve(Settings.from_environment(), Lost.build))
"""
BROKEN = """
import sys
from service.http import serve
from service.settings import Settings

def build(settings):
    raise LookupError("the private words of a user")

sys.exit(serve(Settings.from_environment(), build))
"""


def test_a_worker_that_can_serve_nothing_ends_with_status_1(port: int) -> None:
    """The platform starts another when the last device is lost, or when loading fails for no fault of the settings."""
    more = {**SETTINGS, "PORT": str(port)}
    with Worker(None, cwd=ROOT, script="-c", args=[LOST], env=more) as worker:
        assert worker.wait(PATIENCE) == 1
        assert "Traceback" not in worker.output
    with Worker(None, cwd=ROOT, script="-c", args=[BROKEN], env=more) as worker:
        assert worker.wait(PATIENCE) == 1
        assert "LookupError in build" in worker.output
        assert "private words" not in worker.output


LOADING = """
import sys, torch
from service.http import serve
from service.settings import Settings

def build(settings):
    matrix = torch.ones(256, 256)
    print("inside", file=sys.stderr, flush=True)
    while True:
        torch.mm(matrix, matrix)

sys.exit(serve(Settings.from_environment(), build))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_a_worker_that_is_told_to_stop_while_it_loads_ends_well(number: signal.Signals) -> None:
    """The status is 0 and nothing aborts, although the thread that loads is in the middle of a library."""
    more = {**SETTINGS, "LOG_FORMAT": "json"}
    with ExitStack() as stack:
        for delay in (0.0, 0.01, 0.05):
            env = {**more, "PORT": str(free_port())}
            worker = stack.enter_context(Worker(None, cwd=ROOT, script="-c", args=[LOADING], env=env))
            until(lambda worker=worker: "inside" in worker.output, "loading")  # type: ignore[misc]
            time.sleep(delay)
            os.kill(worker.pid, number)
            assert worker.wait(PATIENCE) == 0, worker.output
            told = [one for one in worker.output.splitlines() if one != "inside"]
            assert json.loads(told[-1])["message"] == "told to stop; finishing what runs"


STUCK = """
import asyncio, os, sys
from service.http import serve
from service.operations import Operations
from service.settings import Settings

class Stuck(Operations):
    def when_lost(self, callback):
        self.lose = callback

    async def answer(self, request, report=None):
        if "LOST" in os.environ:
            self.lose()
        print("stuck", file=sys.stderr, flush=True)
        await asyncio.Event().wait()

sys.exit(serve(Settings.from_environment(), Stuck.build))
"""


@pytest.mark.parametrize(("lost", "exit_status"), [({}, 0), ({"LOST": "1"}, 1)], ids=["draining", "lost"])
@pytest.mark.slow
def test_a_second_request_to_end_is_obeyed_at_once(
    port: int, client: httpx.Client, lost: dict[str, str], exit_status: int
) -> None:
    """An operator does not wait for a request that hangs, whatever the reason for which the worker is closing."""
    more = {**SETTINGS, "PORT": str(port), **lost}
    with Worker(None, cwd=ROOT, script="-c", args=[STUCK], env=more) as worker:
        until(lambda: status(client) == 200, "ready")
        asking = threading.Thread(target=status, args=(client, "/v1/models"))
        asking.start()
        until(lambda: "stuck" in worker.output, "a request that hangs")
        if not lost:
            worker.terminate()
            until(lambda: status(client) == 503, "the end of admission")
        worker.terminate()
        assert worker.wait(PATIENCE) == exit_status
        asking.join(PATIENCE)
    assert "Traceback" not in worker.output


HASTY = """
import sys
from service.http import serve
from service.operations import Operations
from service.settings import Settings

sys.exit(serve(Settings.from_environment(), Operations.build, farewell=1))
"""


@pytest.mark.slow
def test_a_client_that_reads_no_answer_holds_no_worker(port: int, client: httpx.Client) -> None:
    """Told to stop, the process ends although an answer larger than all buffers was never read."""
    more = {**SETTINGS, "PORT": str(port), "MAX_RESPONSE_MB": "30"}
    body = json.dumps({"texts": ["word " * 3_000_000], "returnVectors": False}).encode()
    head = f"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    with Worker(None, cwd=ROOT, script="-c", args=[HASTY], env=more) as worker:
        until(lambda: status(client) == 200, "ready")
        with socket.create_connection(("127.0.0.1", port), PATIENCE) as raw:
            raw.sendall(head.encode() + body)
            until(lambda: "/embed 200" in worker.output, "answer")
            worker.terminate()
            assert worker.wait(PATIENCE) == 0
            assert "Traceback" not in worker.output
