"""The metrics of a worker: counts and timings are consistent, and contain no user data."""

from __future__ import annotations

import asyncio
import re
import threading
from pathlib import Path

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from prometheus_client.parser import text_string_to_metric_families

from embedder import NotFound, Timings, timed
from qdrant_sink import StoreUnavailable
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.operations.metered_store import outcome_of
from service.wire.errors import ERRORS
from tests.service.client import Client, until
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, RaisingStore, Watched
from tests.sink.grpc_double import GrpcDouble

PRIVATE = "the private words of a user"


def value(worker: Client, name: str, **labels: str) -> float:
    """The value of a sample of the worker's metrics, by default 0."""
    for family in text_string_to_metric_families(worker.operations.metrics.exposed().decode()):
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return 0.0


def test_requests_are_counted_by_operation_and_code(serve: Serve) -> None:
    """Requests are counted by operation and error code."""
    worker = serve()
    worker.good({"texts": ["a", "b"]})
    worker.error({"texts": []}, "invalid_request")
    worker.error({"operation": "count", "collection": "absent"}, "not_found")
    worker.error({"operation": PRIVATE}, "invalid_request")
    worker.error(PRIVATE, "invalid_request")
    assert value(worker, "bge_m3_requests_total", operation="embed", code="ok") == 1
    assert value(worker, "bge_m3_requests_total", operation="embed", code="invalid_request") == 1
    assert value(worker, "bge_m3_requests_total", operation="count", code="not_found") == 1
    assert value(worker, "bge_m3_requests_total", operation="unknown", code="invalid_request") == 2
    assert value(worker, "bge_m3_request_seconds_count", operation="embed") == 2


def test_tokens_and_batches_are_counted(serve: Serve) -> None:
    """The tokens of the answers equal those of the batches, and the fill is their share of the budget."""
    worker = serve()
    used = worker.good({"texts": ["some words", "and more of them"]})["usage"]["tokens"]
    assert value(worker, "bge_m3_tokens_total", operation="embed") == used
    assert value(worker, "bge_m3_batch_tokens_total") == used
    batches = value(worker, "bge_m3_batch_fill_count")
    assert 1 <= batches <= 2
    assert value(worker, "bge_m3_batch_fill_sum") == pytest.approx(used / 4096)
    assert value(worker, "bge_m3_batch_seconds_count") == batches
    assert value(worker, "bge_m3_queue_tokens") == 0


def test_the_depth_of_the_queue_is_the_tokens_that_wait(serve: Serve, watched: Watched) -> None:
    """A gauge shows the tokens that wait for the model."""
    worker = Client(Operations(serve().operations.settings, watched.embedder))

    async def measured() -> float:
        watched.engine.gate.clear()
        watched.engine.batches.clear()
        first = asyncio.create_task(worker.answer({"texts": ["one"]}))
        await until(lambda: bool(watched.engine.batches))
        second = asyncio.create_task(worker.answer({"texts": ["two"], "isPassage": True}))
        await until(lambda: watched.pool.waiting_tokens > 0)
        depth = value(worker, "bge_m3_queue_tokens")
        watched.engine.gate.set()
        await asyncio.gather(first, second)
        return depth

    assert asyncio.run(measured()) == 3
    assert value(worker, "bge_m3_queue_tokens") == 0


def test_stages_are_timed(serve: Serve) -> None:
    """Each stage is observed once per request."""
    worker = serve()
    worker.good({"texts": ["one"], "isPassage": True, "qdrant": {"collection": "notes"}})
    worker.good({"operation": "search", "collection": "notes", "queries": ["one"]})
    observed = {
        name: value(worker, "bge_m3_stage_seconds_count", stage=name)
        for name in ("tokenize", "embed", "store", "ingest")
    }
    assert observed == {"tokenize": 2, "embed": 1, "store": 2, "ingest": 1}


def test_rejected_points_are_counted_by_reason(serve: Serve, store: EdgeStore) -> None:
    """Invalid points and points that the store did not accept are counted by error code."""
    worker = serve()
    target = {"collection": "notes", "ids": [1, 1], "payloads": [{"n": 1}, {"n": 2}]}
    worker.good({"texts": ["a", "b"], "isPassage": True, "qdrant": target})
    assert value(worker, "bge_m3_rejected_points_total", code="duplicate_id") == 1
    failing = serve(store=FailingStore(store, 0))
    failing.error({"texts": ["a", "b"], "isPassage": True, "qdrant": {"collection": "notes"}}, "store_unavailable")
    assert value(failing, "bge_m3_rejected_points_total", code="store_unavailable") == 2


def test_no_label_contains_user_data(serve: Serve) -> None:
    """Labels have values of fixed sets."""
    worker = serve()
    worker({"texts": [PRIVATE], "qdrant": {"collection": "private-collection"}})
    worker({"operation": PRIVATE})
    exposed = worker.operations.metrics.exposed().decode()
    assert PRIVATE not in exposed
    assert "private-collection" not in exposed


def test_timings_are_in_the_answer_on_request(serve: Serve) -> None:
    """`timings` adds the seconds of each stage to the answer of any operation."""
    worker = serve()
    stored = worker.good({"texts": ["one"], "timings": True, "qdrant": {"collection": "notes"}})["timings"]
    assert set(stored) == {"tokenize", "check", "store", "ingest", "total"}
    search = {"operation": "search", "collection": "notes", "queries": ["one"]}
    searched = worker.good({**search, "timings": True})["timings"]
    assert set(searched) == {"tokenize", "check", "embed", "store", "total"}
    assert all(0 <= searched[name] <= searched["total"] for name in searched)
    again = worker.good({**search, "timings": True})["timings"]
    assert set(again) == {"tokenize", "embed", "store", "total"}  # the collection is checked once
    assert set(worker.good({"operation": "count", "collection": "notes", "timings": True})["timings"]) == {
        "store",
        "total",
    }
    for quiet in (search, {**search, "timings": False}, {**search, "timings": None}):
        assert "timings" not in worker.good(quiet)


@pytest.mark.parametrize("wrong", ["true", 1, []])
def test_timings_is_a_boolean(worker: Client, wrong: object) -> None:
    """The type of `timings` is strict."""
    answer = worker.error({"texts": ["a"], "timings": wrong}, "invalid_request")
    assert answer["error"].startswith("timings must be a boolean, got ")


def test_timings_never_make_an_answer_too_large(serve: Serve) -> None:
    """An answer that fits only without its timings is sent without them."""
    request = {"texts": ["a"], "vectors": ["sparse"], "timings": True}
    sizes = [serve(MAX_RESPONSE_MB=str(size / 1e6)).good(request) for size in (250, 100_000)]
    assert ["timings" in answer for answer in sizes] == [False, True]


def test_repeated_stages_are_summed_and_failures_counted_in() -> None:
    """Repeated stages of a request are summed, and failed ones count."""
    ticks = iter(range(100))
    timings = Timings(clock=lambda: float(next(ticks)))
    with timings.current():
        with timed("embed"):
            pass
        with pytest.raises(ValueError, match="x"), timed("embed"):
            raise ValueError("x")
    with timed("embed"):  # outside of a request
        pass
    assert timings.seconds == {"embed": 2.0}


def test_a_thread_of_another_request_does_not_add_to_this_one() -> None:
    """Concurrent requests have separate timings."""
    mine, other = Timings(), Timings()

    def run() -> None:
        with other.current(), timed("store"):
            pass

    with mine.current():
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
    assert (set(mine.seconds), set(other.seconds)) == (set(), {"store"})


def test_calls_to_the_store_that_are_repeated_are_counted(serve: Serve, tmp_path: Path) -> None:
    """Retried calls to the store are counted."""
    worker = serve()
    double = GrpcDouble(tmp_path)
    store = ServerStore(
        "http://127.0.0.1:9", grpc_port=double.port, pause_s=0.001, retried=worker.operations.metrics.retried
    )
    double.fail("Count", grpc.StatusCode.UNAVAILABLE, times=2)
    with pytest.raises(NotFound):
        store.count("absent")
    store.close()
    double.stop()
    assert value(worker, "bge_m3_store_retries_total") == 2


def test_calls_to_the_store_are_counted_and_timed(serve: Serve, store: EdgeStore) -> None:
    """Each call counts once, by operation and outcome, so that an operator sees which calls fail or are slow."""
    worker = serve()
    worker.good({"texts": ["one"], "isPassage": True, "qdrant": {"collection": "notes"}})
    worker.good({"operation": "count", "collection": "notes"})
    worker.error({"operation": "count", "collection": "absent"}, "not_found")
    assert value(worker, "bge_m3_store_calls_total", operation="upsert", code="ok") == 1
    assert value(worker, "bge_m3_store_calls_total", operation="count", code="ok") == 1
    failed = value(worker, "bge_m3_store_calls_total", operation="count", code="not_found")
    assert value(worker, "bge_m3_store_seconds_count", operation="count") == 1 + failed
    failing = serve(store=RaisingStore(store, count=StoreUnavailable(PRIVATE), delete=RuntimeError(PRIVATE)))
    failing.error({"operation": "count", "collection": "notes"}, "store_unavailable")
    failing.error({"operation": "delete", "collection": "notes", "ids": [1]}, "internal")
    assert value(failing, "bge_m3_store_calls_total", operation="count", code="store_unavailable") == 1
    assert value(failing, "bge_m3_store_calls_total", operation="delete", code="internal") == 1


def test_an_outcome_of_the_store_has_the_code_of_its_error() -> None:
    """The labels are those of `error_code`, where an error has a code of its own."""
    own = {kind: error.code for kind, error in ERRORS.items() if kind.__module__ == "qdrant_sink.errors"}
    assert len(own) >= 4
    assert {kind: outcome_of(kind) for kind in own} == own


def test_the_page_lists_every_metric(worker: Client) -> None:
    """docs/running.md names all metrics that are exposed, the process's too, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "running.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?`) \|", page.partition("| metric | meaning |")[2].partition("\n\n")[0], re.MULTILINE)
    listed = re.findall(r"`(\w+)`", " ".join(rows))
    exposed = text_string_to_metric_families(worker.operations.metrics.exposed().decode())
    assert sorted(listed) == sorted(family.name for family in exposed)


def test_the_process_is_measured(worker: Client) -> None:
    """Memory, CPU time and open files of the process are there, without any other collector beside the worker."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("these metrics need /proc")
    assert value(worker, "process_resident_memory_bytes") > 10_000_000
    assert value(worker, "process_cpu_seconds_total") > 0
    assert 0 < value(worker, "process_open_fds") <= value(worker, "process_max_fds")
