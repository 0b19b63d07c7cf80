"""A serverless endpoint and its workers in the tests of loads: on bad days, and with the platform's own package."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, redirect_stderr
from functools import partial
from typing import Any

from bge_m3_qdrant_client import AsyncClient
from loopback_endpoint import ENDPOINT, KEY, Handler, RunPodEndpoint
from loopback_server import Answer, Request

from embedder import Embedder
from embedder.checkpoint import MINI
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from service.bulk import BulkLoad, LoadReport
from service.bulk.endpoint import Endpoint
from service.bulk.line import Line
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import PASSAGE_MAX_TOKENS, load_options
from service.transports.cli.finish import finished
from service.wire.codec import Codec
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.contract.engine import StubEngine
from tests.loopback import JobQueue, Worker
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.test_bulk_together import opened
from tests.sink.grpc_double import GrpcDouble

COUNT = 30

CLOSED = Answer(b"")
"""A connection that ends without an answer."""


class Worked:
    """A worker behind an endpoint, whose answers a test may lose.

    Args:
        port: port of the store.
        allowed: whether the operator allows loads.
    """

    def __init__(self, port: int, *, allowed: bool = True) -> None:
        tokenizer = Tokenizer(MINI)
        engine = StubEngine(tokenizer)
        pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=100_000)
        settings = Settings.from_environment({**ENVIRONMENT, "ALLOW_LOADS": str(allowed)})
        self.core = Operations(settings, Embedder(tokenizer, [engine], pool), opened(port))
        self._codec = Codec(self.core)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.fate: Callable[[Any], Any] = lambda _raw: None
        self.running = self.most = 0
        self.steps: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, raw: Any, _report: object) -> Any:
        """Answer a job, unless its fate is another answer."""
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
            if "action" in raw:
                self.steps.append(raw["action"])
        try:
            return self.fate(raw) or asyncio.run_coroutine_threadsafe(self._codec.job(raw), self._loop).result(PATIENCE)
        finally:
            with self._lock:
                self.running -= 1

    def close(self) -> None:
        """Release the store."""
        self.core.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads fulfil, with a timeout."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def lines(count: int = COUNT) -> list[Line]:
    """Lines with and without ids."""
    return [Line(number, f"text {number}", number if number % 2 else None, None) for number in range(1, count + 1)]


class Platform(RunPodEndpoint):
    """The endpoint on a bad day.

    Args:
        handler: answers the input of a job.
        losing: ends a job without an answer, and says whether it did; `EXPIRED` forgets it.
        failing: an answer of the platform in the place of its own, or None for its own; `CLOSED` ends the connection.
    """

    def __init__(
        self,
        handler: Handler,
        losing: Callable[[dict[str, Any], Any], bool],
        failing: Callable[[Request], Answer | None],
    ) -> None:
        super().__init__(handler)
        self._losing = losing
        self._failing = failing

    def _respond(self, request: Request) -> Answer | None:
        fault = self._failing(request)
        if fault is not None:
            return None if fault is CLOSED else fault
        return super()._respond(request)

    def _work(self, identity: str, raw: Any) -> None:
        if not self._losing(self.jobs[identity], raw):
            try:
                super()._work(identity, raw)
            except ProcessLookupError:  # the worker died
                self.jobs[identity]["status"] = "FAILED"
        elif self.jobs[identity]["status"] == "EXPIRED":
            del self.jobs[identity]


def run(
    handler: Handler,
    given_lines: list[Line],
    *options: str,
    said: list[str] | None = None,
    losing: Callable[[dict[str, Any], Any], bool] = lambda _job, _raw: False,
    failing: Callable[[Request], Answer | None] = lambda _request: None,
    during: Callable[[BulkLoad, Endpoint, RunPodEndpoint], None] | None = None,
) -> LoadReport:
    """Load lines into `notes` over an endpoint of the worker, four lines in a job.

    Args:
        handler: the worker.
        given_lines: the lines.
        options: of the command line.
        said: takes the messages.
        losing: see `Platform`.
        failing: see `Platform`.
        during: called in a thread while the load runs.
    """
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse", *options)
    kept: list[str] = [] if said is None else said
    with ExitStack() as stack:
        served = stack.enter_context(Platform(handler, losing, failing))
        remote = stack.enter_context(closing(remote_of(served)))
        load = BulkLoad(
            remote,
            load_options(chosen, Limits(max_texts=500, max_length=PASSAGE_MAX_TOKENS)),
            None,
            kept.append,
            batch_texts=4,
            concurrent_batches=3,
            overloaded_pause_s=0.02,
        )
        if during is not None:
            thread = threading.Thread(target=during, args=(load, remote, served))
            thread.start()
            stack.callback(thread.join, PATIENCE)
        return load.run(given_lines)


def finish(handler: Callable[[Any, Any], Any], said: list[str]) -> LoadReport:
    """Finish `notes` over an endpoint of the worker, as `--finish` does."""
    with (
        RunPodEndpoint(handler) as served,
        closing(remote_of(served)) as remote,
        redirect_stderr(io.StringIO()) as printed,
    ):
        report = finished(remote.finish, "notes", "live", [])
    said += printed.getvalue().splitlines()
    return report


def remote_of(served: RunPodEndpoint) -> Endpoint:
    """The operations of a load on an endpoint."""
    make = partial(AsyncClient.runpod, ENDPOINT, api_key=KEY, base_url=served.base_url, retries=3)
    return Endpoint(lambda timeout_s: make(timeout=min(timeout_s, PATIENCE)))


def of_workers(queue: JobQueue, processes: Mapping[str, Worker], seconds: float = 60.0) -> Handler:
    """Answer jobs by workers of the platform's own package; a job of a worker that was killed fails, as there.

    Args:
        queue: the queue of the workers.
        processes: the workers by their pods.
        seconds: maximum time of a job.
    """

    def handler(raw: Any, _report: object) -> Any:
        job = queue.submit(raw)
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            try:
                posted = queue.result(job, timeout=0.1)
            except TimeoutError:
                taken = next((record.pod for record in queue.taken if record.id == job), None)
                if taken is not None and processes[taken].has_ended:
                    raise ProcessLookupError from None
            else:
                failure = {"error": posted["error"]} if posted.get("error") else {}
                return {**(posted.get("output") or {}), **failure}
        raise TimeoutError(f"job {job} was not answered")

    return handler


def environment(double: GrpcDouble) -> dict[str, str]:
    """The settings of a worker process."""
    return {
        "MODEL_ID": "mini",
        "GPU_DEVICE": "cpu",
        "DTYPE": "float32",
        "TOKEN_BUDGET": "4096",
        "ALLOW_LOADS": "true",
        "QDRANT_URL": "http://127.0.0.1:9",
        "QDRANT_GRPC_PORT": str(double.port),
        "QDRANT_TRANSPORT": "grpc",
    }
