"""Loads over a serverless endpoint: jobs in flight, the account, shards, and the steps that a worker must allow."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from qdrant_sink.loading import records_of
from service.bulk.line import Line
from tests.service.endpoints import (
    COUNT,
    Worked,
    finish,
    lines,
    run,
)
from tests.service.test_bulk_together import edges
from tests.service.test_bulk_together import run as run_here
from tests.sink.grpc_double import GrpcDouble


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
    """Of a job with an invalid id only that line is rejected; the graph is built, as after every load."""
    bad = Line(99, "bad id", -1, None)
    said: list[str] = []
    report = run(worker, [*lines(), bad], said=said)
    assert (report.stored, report.rejected, report.alias, report.status) == (COUNT, 1, False, 1)
    assert any("line 99" in text for text in said)
    assert any("1 of shard 1/1" in text for text in said)
    assert (double.aliases, edges(double)) == ({}, 16)
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


def test_kept_points_are_compared_as_in_every_load(worker: Worked, double: GrpcDouble) -> None:
    """With --insert-only a line that its kept point differs from is counted, named, and keeps the alias where it is."""
    assert run(worker, lines(), "--load-id", "before").alias is True
    changed = [*lines()[:4], Line(5, "another text", 5, None), *lines()[5:]]
    said: list[str] = []
    report = run(worker, changed, "--insert-only", said=said)
    assert (report.failure, report.skipped, report.differing, report.status) == (None, COUNT, 1, 1)
    assert any("line 5" in text and "is kept" in text for text in said)
    allowed = run(worker, changed, "--insert-only", "--allow-differing")
    assert (allowed.differing, allowed.alias) == (0, True)


@pytest.mark.parametrize(
    "upsert",
    [
        {"stored": 3, "rejected": [{"index": 4, "code": "store_rejected", "message": "wrong"}]},
        {"stored": 3, "rejected": [{"index": -1, "code": "store_rejected", "message": "wrong"}]},
        {"stored": 4, "differing": [9]},
        {"stored": -4},
    ],
)
def test_a_report_that_does_not_fit_its_job_ends_the_load(
    worker: Worked, double: GrpcDouble, upsert: dict[str, Any]
) -> None:
    """No line is counted by an answer that names texts of no job, or fewer than no points."""

    def fate(raw: Any) -> Any:
        if not raw.get("texts"):
            return None
        results = [{"id": 1, "tokens": 1, "truncated": False}] * len(raw["texts"])
        answer = {"collection": "notes", "skipped": 0, "rejected": [], **upsert}
        return {"model": "mini", "results": results, "upsert": answer, "usage": {"tokens": 4}}

    worker.fate = fate
    report = run(worker, lines())
    assert "the report of a job does not fit its texts" in str(report.failure)
    assert (report.stored, report.status, double.aliases) == (0, 2, {})


def test_an_unknown_end_is_a_failure(worker: Worked, double: GrpcDouble) -> None:
    """A worker of another release whose answer says something else does not count as a finished load."""
    answer = {"outcome": "postponed", "aliases": [], "messages": []}
    worker.fate = lambda raw: answer if raw.get("action") == "finish" else None
    report = run(worker, lines())
    assert "says that the load is 'postponed', which this release does not know" in str(report.failure)
    assert (report.status, double.aliases) == (2, {})


def test_another_load_names_one_that_was_lost_over_an_endpoint(worker: Worked, double: GrpcDouble) -> None:
    """It is not said to be in shards, and the ways out are named."""
    lost = {"error": "lost", "error_code": "schema_mismatch", "retryable": False, "details": {}}
    worker.fate = lambda raw: lost if raw.get("texts") else None
    assert run(worker, lines()).status == 2
    said: list[str] = []
    other = run_here(worker.core, lines(), "--load-id", "other", say=said.append)
    assert (other.failure, other.alias, double.aliases) == (None, False, {})
    assert said[-1] == (
        "load 'standard-input' is over an endpoint, so no alias is set until --finish has compared it; "
        "--finish --drop-load standard-input gives its lines up"
    )


def test_shards_over_an_endpoint_have_the_same_options(worker: Worked) -> None:
    """The worker compares them at the begin of a shard, with the length to which it truncates texts."""
    assert run(worker, lines(), "--shard", "1/2", "--text-field", "text").status == 0
    stored = worker.core._store.opened().count("notes")
    for options in (["--text-field", "body"], ["--text-field", "text", "--chunk-tokens", "64", "--insert-only"]):
        refused = run(worker, lines(), "--shard", "2/2", *options)
        assert (refused.status, refused.stored) == (2, 0)
        assert "loadId must be of a load of the same options: shard 1/2 of load" in str(refused.failure)
    assert "PASSAGE_MAX_LENGTH 512 (here none)" in str(refused.failure)
    assert run(worker, lines(), "--shard", "2/2", "--text-field", "text", "--insert-only").status == 0
    assert worker.core._store.opened().count("notes") > stored
    assert finish(worker, []).alias is True


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
