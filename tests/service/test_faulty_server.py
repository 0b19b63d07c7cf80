"""Jobs and loads against a server that fails: each account is exact, and nothing but time is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest
from numpy.typing import NDArray

from embedder.embedder import Embedder
from qdrant_sink.server import ServerStore
from service.bulk import Bulk, Total, arguments_of
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Json
from tests.service.conftest import Serve
from tests.sink.faults import Kind, Script
from tests.sink.grpc_double import GrpcDouble

JOBS = 4
TEXTS = 75
"""Of one job. The last has the first one's text and payload under its id, and the one before a payload that is none."""

POINTS = JOBS * (TEXTS - 2)
FAULTS = (Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE, Kind.LOST)
CALLS = ("CollectionExists", "Create", "Get", "Upsert", "Update")
TOLERANCE = 2e-3
"""Batches differ from run to run, and ColBERT rows are kept in float16."""

Connect = Callable[..., ServerStore]


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A server on a loopback port."""
    root = tmp_path / "double"
    root.mkdir()
    server = GrpcDouble(root)
    yield server
    server.stop()


@pytest.fixture
def connect(double: GrpcDouble) -> Iterator[Connect]:
    """Makes stores that are connected to the double; their pauses are short."""
    stores: list[ServerStore] = []

    def connected(deadline_s: float = 20.0) -> ServerStore:
        url = "http://127.0.0.1:9"
        stores.append(ServerStore(url, grpc_port=double.port, timeout_s=5, deadline_s=deadline_s, pause_s=0.01))
        return stores[-1]

    yield connected
    for store in stores:
        store.close()


@pytest.fixture(autouse=True)
def _many_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdrant_sink.writer.BATCH_POINTS", 6)
    monkeypatch.setattr("service.lines.JOB_TEXTS", TEXTS)


def document(number: int) -> tuple[int, str, Json]:
    """Id, text and payload; the same at every call."""
    job, place = divmod(number, TEXTS)
    if place == TEXTS - 1:
        return document(job * TEXTS)
    payload = {"n": 2**63 if place == TEXTS - 2 else number}
    return number, f"note {number} on topic {number % 7}", payload


def job(number: int, *, mode: str = "upsert", collection: str = "notes") -> Json:
    """A job of `TEXTS` texts."""
    ids, texts, payloads = zip(*(document(number * TEXTS + n) for n in range(TEXTS)), strict=True)
    target = {"collection": collection, "ids": list(ids), "payloads": list(payloads), "mode": mode}
    return {"texts": list(texts), "isPassage": True, "includeText": False, "qdrant": target}


def assert_accounted(report: Json, *, stored: int | None = None) -> None:
    """Every point of a job is either stored or rejected, once; `stored`: so many of them are."""
    rejected = [one["index"] for one in report["rejected"]]
    assert rejected == sorted(set(rejected))
    assert report["stored"] + len(rejected) == TEXTS
    assert TEXTS - 2 in rejected
    assert stored is None or report["stored"] == stored


def held(store: ServerStore, collection: str) -> dict[Any, Any]:
    """All points of a collection by id."""
    found = store.fetch(collection, range(JOBS * TEXTS), True, ("dense", "sparse", "colbert"))
    assert len(found) == store.count(collection)
    return dict(found)


def assert_equal(store: ServerStore, collection: str, undisturbed: str) -> None:
    """Both collections have the same points, with the same payloads and vectors."""
    found, wanted = held(store, collection), held(store, undisturbed)
    assert set(found) == set(wanted)
    assert len(found) == POINTS
    for one, other in ((found[point_id], wanted[point_id]) for point_id in found):
        assert one.payload == other.payload
        assert one.vectors.sparse.indices.tolist() == other.vectors.sparse.indices.tolist()
    np.testing.assert_allclose(numbers(found, list(found)), numbers(wanted, list(found)), atol=TOLERANCE)


def numbers(points: dict[Any, Any], ids: list[Any]) -> NDArray[Any]:
    """Every component of every vector of these points, one after the other."""
    vectors = [points[point_id].vectors for point_id in ids]
    return np.concatenate([part.ravel() for one in vectors for part in (one.dense, one.sparse.values, one.colbert)])


def dies_at(double: GrpcDouble, upsert: int) -> None:
    """From its nth upsert on the server answers none of them."""

    def count() -> None:
        if double.calls.count("Upsert") < upsert:
            double.before["Upsert"] = count
        else:
            double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)

    double.calls.clear()
    double.before["Upsert"] = count


class Loader:
    """Loads the documents of all jobs from lines, as `python -m service.bulk` does."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def __call__(self, store: ServerStore, collection: str, *options: str) -> Total:
        """What became of them."""
        operations = Operations(Settings.from_environment(ENVIRONMENT), self._embedder, store)
        fields = [dict(zip(("id", "text", "payload"), document(n), strict=True)) for n in range(JOBS * TEXTS)]
        lines = [json.dumps(one).encode() for one in fields]
        return Bulk(operations, arguments_of(["--collection", collection, *options]), None).load(lines)


@pytest.fixture
def load(embedder: Embedder) -> Loader:
    """A loader with the session's model."""
    return Loader(embedder)


@pytest.mark.parametrize("mode", ["upsert", "insertOnly"])
def test_jobs_among_faults_are_as_without(double: GrpcDouble, connect: Connect, serve: Serve, mode: str) -> None:
    """A tenth of all calls fails, several jobs at once: each answer accounts for all, and the points are the same."""
    store = connect()
    worker = serve(store=store)
    for number in range(JOBS):
        worker.good(job(number, collection="undisturbed"))
    double.script = Script(FAULTS, every=8, methods=CALLS)
    for answer in worker.together([job(number, mode=mode) for number in range(JOBS)]):
        assert "error" not in answer, answer
        assert_accounted(answer["upsert"], stored=TEXTS - 1)
    assert set(double.script.happened) == set(FAULTS)
    assert double.script.happened.total() >= double.script.calls / 10
    double.script = None
    assert_equal(store, "notes", "undisturbed")


def test_a_load_among_faults_is_as_without(double: GrpcDouble, connect: Connect, load: Loader) -> None:
    """The total of a load from the command line is exact too, its graph is built and its alias set."""
    store = connect()
    load(store, "undisturbed")
    double.script = Script(FAULTS, every=8, methods=CALLS)
    total = load(store, "notes", "--alias", "live", "--allow-rejected")
    assert set(double.script.happened) == set(FAULTS)
    double.script = None
    assert (total.failure, total.stored, total.rejected) == (None, JOBS * (TEXTS - 1), JOBS)
    assert store.collection_of("live") == "notes"
    assert_equal(store, "notes", "undisturbed")


@pytest.mark.parametrize("mode", ["upsert", "insertOnly"])
def test_a_job_whose_store_dies_can_be_sent_again(
    double: GrpcDouble, connect: Connect, serve: Serve, mode: str
) -> None:
    """The account of its error is what the collection holds; the same job again completes it."""
    lasting = connect()
    for number in range(JOBS):
        serve(store=lasting).good(job(number, collection="undisturbed"))
        if number:
            serve(store=lasting).good(job(number))
    dies_at(double, 6)
    answer = serve(store=connect(deadline_s=0.3)).error(job(0, mode=mode), "store_unavailable")
    assert answer["retryable"]
    report = answer["details"]["upsert"]
    assert_accounted(report)
    lost = {one["index"] for one in report["rejected"]}
    there = lasting.existing("notes", range(TEXTS))
    assert there == {document(n)[0] for n in range(TEXTS) if n not in lost}
    assert 0 < len(there) < TEXTS - 2

    double.failures.clear()
    again = serve(store=lasting).good(job(0, mode=mode))["upsert"]
    assert_accounted(again, stored=TEXTS - 1)
    assert again["skipped"] == (report["stored"] if mode == "insertOnly" else 0)
    assert_equal(lasting, "notes", "undisturbed")


def test_a_load_whose_store_dies_can_be_run_again(double: GrpcDouble, connect: Connect, load: Loader) -> None:
    """It ends with the reason and a total that is what the collection holds; with --insert-only the rest is added."""
    lasting = connect()
    load(lasting, "undisturbed")
    dies_at(double, 20)
    total = load(connect(deadline_s=0.3), "notes", "--alias", "live")
    assert total.failure is not None
    assert "points were not stored: Qdrant does not answer" in total.failure
    there = lasting.existing("notes", range(JOBS * TEXTS))
    assert 0 < len(there) <= total.stored < JOBS * (TEXTS - 1)
    assert total.stored - len(there) <= JOBS  # the texts that merge
    assert lasting.collection_of("live") is None

    double.failures.clear()
    again = load(lasting, "notes", "--alias", "live", "--allow-rejected", "--insert-only")
    assert (again.failure, again.stored, again.rejected) == (None, JOBS * (TEXTS - 1), JOBS)
    assert again.skipped >= len(there)
    assert lasting.collection_of("live") == "notes"
    assert_equal(lasting, "notes", "undisturbed")
