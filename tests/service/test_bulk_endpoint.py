"""Loads over a serverless endpoint: jobs in flight, lost and throttled jobs, and the steps that a worker must allow."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, redirect_stderr
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bge_m3_qdrant_client import Client
from loopback_endpoint import ENDPOINT, KEY, RunPodEndpoint

from embedder import Embedder
from embedder.checkpoint import MINI
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink.loading import records_of
from service.bulk import BulkLoad, LoadReport
from service.bulk.endpoint import Endpoint
from service.bulk.line import Line
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import load_options
from service.transports.cli.finish import finished
from service.wire.codec import Codec
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.contract.engine import StubEngine
from tests.loopback import JobQueue, Worker
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.test_bulk_together import edges, opened
from tests.sink.grpc_double import GrpcDouble

ROOT = Path(__file__).parents[2]
COUNT = 30


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A server on a loopback port."""
    server = GrpcDouble(tmp_path)
    yield server
    server.stop()


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
        self._lock = threading.Lock()

    def __call__(self, raw: Any, _report: object) -> Any:
        """Answer a job, unless its fate is another answer."""
        with self._lock:
            self.running += 1
            self.most = max(self.most, self.running)
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


@pytest.fixture
def worker(double: GrpcDouble) -> Iterator[Worked]:
    """A worker that allows loads."""
    worker = Worked(double.port)
    yield worker
    worker.close()


def lines(count: int = COUNT) -> list[Line]:
    """Lines with and without ids."""
    return [Line(number, f"text {number}", number if number % 2 else None, None) for number in range(1, count + 1)]


def run(
    handler: Callable[[Any, Any], Any], given_lines: list[Line], *options: str, said: list[str] | None = None
) -> LoadReport:
    """Load lines into `notes` over an endpoint of the worker, four lines in a job."""
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse", *options)
    kept: list[str] = [] if said is None else said
    with RunPodEndpoint(handler) as served, closing(_remote(served)) as remote:
        load = BulkLoad(
            remote,
            load_options(chosen, Limits(max_texts=500, max_length=512)),
            None,
            kept.append,
            batch_texts=4,
            concurrent_batches=3,
            overloaded_pause_s=0.02,
        )
        return load.run(given_lines)


def finish(handler: Callable[[Any, Any], Any], said: list[str]) -> LoadReport:
    """Finish `notes` over an endpoint of the worker, as `--finish` does."""
    with (
        RunPodEndpoint(handler) as served,
        closing(_remote(served)) as remote,
        redirect_stderr(io.StringIO()) as printed,
    ):
        report = finished(remote.finish, "notes", "live", [])
    said += printed.getvalue().splitlines()
    return report


def _remote(served: RunPodEndpoint) -> Endpoint:
    make = partial(Client.runpod, ENDPOINT, api_key=KEY, base_url=served.base_url, retries=3)
    return Endpoint(lambda timeout_s: make(timeout=min(timeout_s, PATIENCE)), 3)


def test_a_load_over_an_endpoint_is_a_load(worker: Worked, double: GrpcDouble) -> None:
    """All lines are stored and counted, the graph is built once, the alias moves, and few jobs are in flight."""
    report = run(worker, lines())
    assert (report.failure, report.stored, report.points, report.rejected) == (None, COUNT, COUNT, 0)
    assert (report.alias, report.status, double.aliases, edges(double)) == (True, 0, {"live": "notes"}, 16)
    assert report.tokens > 0
    assert 1 < worker.most <= 3
    store = worker.core._store.opened()
    assert (store.count("live"), records_of(store.metadata("notes"))) == (COUNT, {})


def test_the_operator_must_allow_loads(double: GrpcDouble) -> None:
    """Without ALLOW_LOADS nothing is created, and the message names the setting."""
    worker = Worked(double.port, allowed=False)
    report = run(worker, lines())
    assert "ALLOW_LOADS=true" in str(report.failure)
    assert (report.status, double.collections) == (2, {})
    worker.close()


def test_a_rejected_line_is_named_and_keeps_the_alias(worker: Worked, double: GrpcDouble) -> None:
    """Of a job with an invalid id only that line is rejected, and the finish says which shard has it."""
    bad = Line(99, "bad id", -1, None)
    said: list[str] = []
    report = run(worker, [*lines(), bad], said=said)
    assert (report.stored, report.rejected, report.alias, report.status) == (COUNT, 1, False, 2)
    assert any("line 99" in text for text in said)
    assert any("1 of shard 1/1" in text for text in said)
    assert double.aliases == {}
    assert run(worker, [*lines(), bad], "--allow-rejected").alias is True


def test_lost_and_throttled_jobs_are_sent_again(worker: Worked, double: GrpcDouble) -> None:
    """A worker that dies with a job, and one that is overloaded, cost repetitions and no line."""
    answers = iter(
        [
            {"error": "busy", "error_code": "overloaded", "retryable": True, "details": {}},
            {"error": "no store", "error_code": "store_unavailable", "retryable": True, "details": {}},
        ]
        * 2
    )
    worker.fate = lambda raw: next(answers, None) if raw.get("texts") else None
    report = run(worker, lines())
    assert (report.failure, report.stored, report.alias) == (None, COUNT, True)
    assert double.aliases == {"live": "notes"}


def test_an_interrupted_load_goes_on(worker: Worked, double: GrpcDouble) -> None:
    """After a failure in the middle the alias has not moved; the same command stores the rest, and all counts once."""
    jobs = iter(range(100))

    def fate(raw: Any) -> Any:
        if raw.get("texts") and next(jobs) >= 3:
            return {
                "error": "the schema is another",
                "error_code": "schema_mismatch",
                "retryable": False,
                "details": {},
            }
        return None

    worker.fate = fate
    first = run(worker, lines())
    assert "the schema is another" in str(first.failure)
    assert first.stored == 12
    assert (first.status, double.aliases) == (2, {})
    worker.fate = lambda _raw: None
    again = run(worker, lines(), "--insert-only", "--allow-differing")
    assert (again.failure, again.alias, again.points) == (None, True, COUNT)
    assert again.skipped > 0
    assert worker.core._store.opened().count("live") == COUNT


def test_shards_over_an_endpoint_are_finished_together(worker: Worked, double: GrpcDouble) -> None:
    """Several machines can feed one endpoint; --finish over it compares them."""
    assert run(worker, lines(), "--shard", "1/2").status == 0
    said: list[str] = []
    assert finish(worker, said).status == 2
    assert any("shard 2/2 never began" in text for text in said)
    assert run(worker, lines(), "--shard", "2/2").status == 0
    assert double.aliases == {}
    assert finish(worker, []).alias is True
    assert double.aliases == {"live": "notes"}


@pytest.mark.slow
def test_the_platforms_own_package_carries_a_load(double: GrpcDouble) -> None:
    """The unmodified worker on a queue on loopback embeds and stores a file that is sent to its endpoint."""
    environment = {
        "MODEL_ID": "mini",
        "GPU_DEVICE": "cpu",
        "DTYPE": "float32",
        "TOKEN_BUDGET": "4096",
        "ALLOW_LOADS": "true",
        "QDRANT_URL": "http://127.0.0.1:9",
        "QDRANT_GRPC_PORT": str(double.port),
        "QDRANT_TRANSPORT": "grpc",
    }
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=environment) as process:
        process.wait_for_first_poll(60)

        def handler(raw: Any, _report: object) -> Any:
            posted = queue.result(queue.submit(raw), timeout=30)
            return posted.get("output") or {"error": posted.get("error")}

        report = run(handler, lines())
        assert (report.failure, report.stored, report.alias, double.aliases) == (None, COUNT, True, {"live": "notes"})
        process.terminate()
        process.wait(20)
