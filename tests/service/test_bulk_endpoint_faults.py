"""Loads over a serverless endpoint whose jobs are lost, refused or interrupted, and whose processes are killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from bge_m3_qdrant_client import AsyncClient
from loopback_endpoint import ENDPOINT, KEY, RunPodEndpoint
from loopback_server import Answer, Request

from qdrant_sink.loading import records_of
from service.bulk import BulkLoad, LoadReport
from service.bulk.endpoint import Endpoint
from service.bulk.endpoint_calls import LOST_JOBS_MAX
from service.bulk.line import Line
from service.transports.cli.bulk import PASSAGE_MAX_TOKENS, load_options
from service.transports.cli.signals import interrupt_on_signals
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.loopback import POD, JobQueue, Worker
from tests.service.client import PATIENCE
from tests.service.endpoints import (
    CLOSED,
    COUNT,
    Worked,
    environment,
    finish,
    lines,
    of_workers,
    run,
    wait_until,
)
from tests.service.test_bulk_together import opened
from tests.sink.grpc_double import GrpcDouble

ROOT = Path(__file__).parents[2]

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["tests.service.test_bulk_endpoint_faults"])


@pytest.fixture(autouse=True)
def _fast_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are asked for often, and retries wait for no time."""
    monkeypatch.setattr("bge_m3_qdrant_client.runpod_target.POLL_INTERVAL_MIN_S", 0.01)
    monkeypatch.setattr("bge_m3_qdrant_client.exchange.BACK_OFF_MIN_S", 0.001)


@pytest.fixture
def worker(double: GrpcDouble) -> Iterator[Worked]:
    """A worker that allows loads."""
    worker = Worked(double.port)
    yield worker
    worker.close()


@pytest.mark.parametrize("status", ["FAILED", "TIMED_OUT", "EXPIRED"])
def test_a_job_that_the_platform_lost_is_sent_again(worker: Worked, double: GrpcDouble, status: str) -> None:
    """A job whose worker died, that ran too long, or that the platform has forgotten costs a repetition and no line."""
    lost = {"begin", "end", "finish", "texts"}

    def end(job: dict[str, Any], raw: Any) -> bool:
        step = "texts" if raw.get("texts") else raw.get("action")
        if step not in lost:
            return False
        lost.discard(step)
        job["status"] = status
        return True

    report = run(worker, lines(), losing=end)
    assert (report.failure, report.stored, report.points, report.alias) == (None, COUNT, COUNT, True)
    assert (lost, double.aliases) == (set(), {"live": "notes"})


def test_lines_whose_jobs_are_lost_again_and_again_end_the_load(worker: Worked, double: GrpcDouble) -> None:
    """Lines that end every worker are sent a few times, and the alias stays."""
    sent: list[object] = []

    def end(job: dict[str, Any], raw: Any) -> bool:
        if not raw.get("texts"):
            return False
        sent.append(raw)
        job["status"] = "FAILED"
        return True

    report = run(worker, lines(4), losing=end)
    assert "the job ended with FAILED" in str(report.failure)
    assert (len(sent), report.stored, report.status, double.aliases) == (LOST_JOBS_MAX, 0, 2, {})


def test_a_job_that_somebody_cancelled_is_not_sent_again(worker: Worked) -> None:
    """Who empties the queue of an endpoint wants the load to end."""

    def end(job: dict[str, Any], raw: Any) -> bool:
        if raw.get("texts"):
            job["status"] = "CANCELLED"
        return bool(raw.get("texts"))

    report = run(worker, lines(4), losing=end)
    assert "the job ended with CANCELLED" in str(report.failure)


def test_documents_of_jobs_that_ran_twice_are_stored(worker: Worked, double: GrpcDouble) -> None:
    """A lost job may still run, and store a later version of its documents: then they are sent again."""
    superseded = iter([True, True])

    def fate(raw: Any) -> Any:
        if not raw.get("texts") or not next(superseded, False):
            return None
        rejected = [{"index": 1, "chunk": 0, "code": "superseded", "message": "a later version is kept"}]
        results = [{"id": 1, "tokens": 3, "truncated": False, "chunks": 1} for _ in raw["texts"]]
        upsert = {"collection": "notes", "stored": len(results) - 1, "skipped": 0, "rejected": rejected}
        return {"results": results, "usage": {"tokens": 3}, "model": "m", "upsert": upsert}

    worker.fate = fate
    report = run(worker, lines(4), "--chunk-tokens", "32")
    assert (report.failure, report.rejected, report.points, report.alias) == (None, 0, 4, True)


def test_a_line_beyond_the_largest_request_is_rejected_alone(worker: Worked, double: GrpcDouble) -> None:
    """The platform takes 20 MB at most; the other lines of its batch are stored."""
    large = Line(5, "large", 5, {"content": "x" * 20_000_000})
    said: list[str] = []
    report = run(worker, [*lines(4), large], "--allow-rejected", said=said)
    assert (report.failure, report.stored, report.rejected, report.alias) == (None, 4, 1, True)
    assert any("line 5" in text and "more than 20000000" in text for text in said)


def test_an_option_that_the_worker_refuses_ends_the_load(worker: Worked, double: GrpcDouble) -> None:
    """It is an error of all lines, so none is sent alone."""
    report = run(worker, lines(), "--chunk-tokens", "8192", "--vectors", "dense")
    assert "refuses the options of the load: content.chunk.maxTokens" in str(report.failure)
    assert (report.stored, report.status, double.aliases) == (0, 2, {})


def test_a_key_that_is_revoked_ends_the_load(worker: Worked, double: GrpcDouble) -> None:
    """It is no error of a line either."""
    answers = iter(range(100))

    def refusing(request: Request) -> Answer | None:
        return Answer({"error": "unauthorized"}, 401) if next(answers) > 6 else None

    report = run(worker, lines(), failing=refusing)
    assert "the key is missing or wrong (status 401)" in str(report.failure)
    assert (report.status, double.aliases) == (2, {})


def test_faults_of_the_platform_are_outlasted(worker: Worked, double: GrpcDouble) -> None:
    """Limits of its rate, faults of its servers and connections that end without an answer cost no line."""
    busy, down, broken = Answer(b"", 429, {"Retry-After": "0"}), Answer(b"", 503), Answer(b"", 502)
    faults = iter([None, busy, None, CLOSED, None, None, None, broken, None, None, down])
    report = run(worker, lines(), failing=lambda _request: next(faults, None))
    assert next(faults, "none left") == "none left"
    assert (report.failure, report.stored, report.points, report.alias) == (None, COUNT, COUNT, True)
    assert double.aliases == {"live": "notes"}


def test_an_interruption_waits_for_the_jobs_in_flight_and_a_second_one_cancels_them(
    worker: Worked, double: GrpcDouble
) -> None:
    """Then the platform has none of them any more, nothing is said of their lines, and the next run stores them."""
    holding = threading.Event()
    worker.fate = lambda raw: holding.wait(PATIENCE) and None if raw.get("texts") else None
    statuses: list[str] = []

    def interrupt(load: BulkLoad, remote: Endpoint, served: RunPodEndpoint) -> None:
        wait_until(lambda: len({request.path for request in served.requests if "/status/" in request.path}) == 4)
        load.interrupt()
        remote.cancel()
        wait_until(lambda: sum(job["status"] == "CANCELLED" for job in served.jobs.values()) == 3)
        statuses.extend(job["status"] for job in served.jobs.values())
        holding.set()

    said: list[str] = []
    report = run(worker, lines(), said=said, during=interrupt)
    assert "interrupted" in str(report.failure)
    assert (report.lines, report.stored, report.rejected, report.status) == (0, 0, 0, 2)
    assert statuses.count("CANCELLED") == len(statuses) - 1
    assert any("second signal" in text for text in said)
    worker.fate = lambda _raw: None
    again = run(worker, lines(), "--insert-only")
    assert (again.failure, again.points, again.alias, double.aliases) == (None, COUNT, True, {"live": "notes"})


def test_an_interruption_does_not_wait_for_the_graph(worker: Worked, double: GrpcDouble) -> None:
    """The job that finishes the collection is cancelled, as a local load leaves the building to the server."""
    holding = threading.Event()
    worker.fate = lambda raw: holding.wait(PATIENCE) and None if raw.get("action") == "finish" else None

    def interrupt(load: BulkLoad, _remote: Endpoint, _served: RunPodEndpoint) -> None:
        wait_until(lambda: worker.running == 1 and load.report.stored == COUNT and len(worker.steps) == 3)
        load.interrupt()

    report = run(worker, lines(), during=interrupt)
    holding.set()
    assert ("interrupted" in str(report.failure), report.stored) == (True, COUNT)
    worker.fate = lambda _raw: None
    assert finish(worker, []).alias is True
    assert double.aliases == {"live": "notes"}


def send(base_url: str, connection: Connection) -> None:
    """Load many lines over an endpoint, and wait to be killed once some are stored."""
    make = partial(AsyncClient.runpod, ENDPOINT, api_key=KEY, base_url=base_url)
    chosen = bulk_options("--collection", "notes", "--alias", "live", "--vectors", "dense,sparse")
    limits = Limits(max_texts=500, max_length=PASSAGE_MAX_TOKENS)
    reached = threading.Event()

    def progress(report: LoadReport) -> None:
        if report.stored >= 40 and not reached.is_set():
            reached.set()
            connection.send_bytes(b"reached")

    with closing(Endpoint(lambda timeout_s: make(timeout=timeout_s))) as remote:
        load = BulkLoad(
            remote, load_options(chosen, limits), None, lambda _text: None, progress=progress, batch_texts=4
        )
        load.run(lines(400))


@pytest.mark.slow
def test_workers_and_senders_that_are_killed_cost_no_line(double: GrpcDouble) -> None:
    """The unmodified workers of the platform lose their jobs with one of them; the same command goes on."""
    with (
        JobQueue() as queue,
        Worker(queue, cwd=ROOT, env=environment(double), pod="pod-1") as first,
        Worker(queue, cwd=ROOT, env=environment(double), pod="pod-2") as second,
    ):
        for process in (first, second):
            process.wait_for_first_poll(60)
        with RunPodEndpoint(of_workers(queue, {"pod-1": first, "pod-2": second})) as served:
            receiver, sender = _processes.Pipe(duplex=False)
            killed = _processes.Process(target=send, args=(served.base_url, sender))
            killed.start()
            with closing(receiver):
                assert receiver.poll(2 * PATIENCE)
            killed.kill()
            killed.join(PATIENCE)
        assert double.aliases == {}

        def kill_first(load: BulkLoad, _remote: Endpoint, _served: RunPodEndpoint) -> None:
            wait_until(lambda: load.report.lines >= 80)
            os.killpg(first.pid, signal.SIGKILL)

        workers = of_workers(queue, {"pod-1": first, "pod-2": second})
        report = run(workers, lines(400), "--insert-only", during=kill_first)
        assert (report.failure, report.points, report.rejected, report.alias) == (None, 400, 0, True)
        assert report.skipped >= 40
        store = opened(double.port)
        assert (store.count("live"), records_of(store.metadata("notes"))) == (400, {})
        store.close()


@pytest.mark.slow
def test_the_platforms_own_package_carries_a_load(double: GrpcDouble) -> None:
    """The unmodified worker on a queue on loopback embeds and stores a file that is sent to its endpoint."""
    with JobQueue() as queue, Worker(queue, cwd=ROOT, env=environment(double)) as process:
        process.wait_for_first_poll(60)
        report = run(of_workers(queue, {POD: process}), lines())
        assert (report.failure, report.stored, report.alias, double.aliases) == (None, COUNT, True, {"live": "notes"})
        process.terminate()
        process.wait(20)


@pytest.mark.usefixtures("signals")
def test_the_first_signal_stops_the_second_cancels_and_the_third_ends() -> None:
    """Whichever of both signals they are; after them the system's own end is in force again."""
    calls: list[str] = []
    interrupt_on_signals(lambda: calls.append("stop"), lambda: calls.append("cancel"))
    signal.raise_signal(signal.SIGINT)
    assert (calls, callable(signal.getsignal(signal.SIGTERM))) == (["stop"], True)
    signal.raise_signal(signal.SIGTERM)
    assert calls == ["stop", "cancel"]
    assert signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
