"""Jobs and bulk loads against a failing server: every report is exact, and no point is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import numpy as np
import pytest
from numpy.typing import NDArray

from embedder import Embedder
from qdrant_sink.server import ServerStore
from service.bulk import BulkLoad, LoadReport
from service.bulk.json_lines import read_json_lines
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.bulk import load_options
from service.wire.fields import Limits
from tests.command_line import bulk_options
from tests.service.client import ENVIRONMENT, Client, Json
from tests.sink.faults import Kind, Script
from tests.sink.grpc_double import GrpcDouble

JOBS = 4
TEXTS = 75
"""Texts of one job. The last text repeats the first with its id and payload; the second last has an invalid payload."""

POINTS = JOBS * (TEXTS - 2)
FAULTS = (Kind.UNAVAILABLE, Kind.EXHAUSTED, Kind.DEADLINE, Kind.LOST)
CALLS = ("CollectionExists", "Create", "Get", "Upsert", "Update")
TOLERANCE = 2e-3
"""Tolerance for vectors: batches differ from run to run, and ColBERT rows are stored in float16."""

Connect = Callable[..., ServerStore]


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A Qdrant server on a loopback port."""
    root = tmp_path / "double"
    root.mkdir()
    server = GrpcDouble(root)
    yield server
    server.stop()


@pytest.fixture
def connect(double: GrpcDouble) -> Iterator[Connect]:
    """A function that connects a store with short pauses to the server."""
    stores: list[ServerStore] = []

    def connected(deadline_s: float = 20.0) -> ServerStore:
        url = "http://127.0.0.1:9"
        stores.append(ServerStore(url, grpc_port=double.port, timeout_s=5, deadline_s=deadline_s, pause_s=0.01))
        return stores[-1]

    yield connected
    for store in stores:
        store.close()


Serve = Callable[[ServerStore], Client]
"""Makes a worker that sends a few points per request to a store."""


@pytest.fixture
def serve(embedder: Embedder) -> Serve:
    """A function that makes a worker with the session's model."""
    return lambda store: Client(operations_over(store, embedder))


def operations_over(store: ServerStore, embedder: Embedder) -> Operations:
    """Operations that divide a job into many requests to the store."""
    return Operations(Settings.from_environment(ENVIRONMENT), embedder, store, batch_points=6)


def document(number: int) -> tuple[int, str, Json]:
    """The id, text and payload of a document, the same at every call."""
    job, index = divmod(number, TEXTS)
    if index == TEXTS - 1:
        return document(job * TEXTS)
    payload = {"n": 2**63 if index == TEXTS - 2 else number}
    return number, f"note {number} on topic {number % 7}", payload


def job(number: int, *, mode: str = "upsert", collection: str = "notes") -> Json:
    """A job of `TEXTS` texts."""
    ids, texts, payloads = zip(*(document(number * TEXTS + n) for n in range(TEXTS)), strict=True)
    target = {"collection": collection, "ids": list(ids), "payloads": list(payloads), "mode": mode}
    return {"texts": list(texts), "isPassage": True, "includeText": False, "qdrant": target}


def assert_complete(report: Json, *, stored: int | None = None) -> None:
    """Check that a report counts every point of a job once, with `stored` stored points if given."""
    rejected = [point["index"] for point in report["rejected"]]
    assert rejected == sorted(set(rejected))
    assert report["stored"] + len(rejected) == TEXTS
    assert TEXTS - 2 in rejected
    assert stored is None or report["stored"] == stored


def held(store: ServerStore, collection: str) -> dict[Any, Any]:
    """All points of a collection by id."""
    points = store.fetch(collection, range(JOBS * TEXTS), True, ("dense", "sparse", "colbert"))
    assert len(points) == store.count(collection)
    return dict(points)


def assert_equal(store: ServerStore, collection: str, undisturbed: str) -> None:
    """Check that two collections have the same points, payloads and vectors."""
    points, wanted = held(store, collection), held(store, undisturbed)
    assert set(points) == set(wanted)
    assert len(points) == POINTS
    for point, expected in ((points[point_id], wanted[point_id]) for point_id in points):
        assert point.payload == expected.payload
        assert point.vectors.sparse.indices.tolist() == expected.vectors.sparse.indices.tolist()
    np.testing.assert_allclose(numbers(points, list(points)), numbers(wanted, list(points)), atol=TOLERANCE)


def numbers(points: dict[Any, Any], ids: list[Any]) -> NDArray[Any]:
    """All components of all vectors of these points, concatenated."""
    vectors = [points[point_id].vectors for point_id in ids]
    return np.concatenate(
        [part.ravel() for kinds in vectors for part in (kinds.dense, kinds.sparse.values, kinds.colbert)]
    )


def fail_from(double: GrpcDouble, upsert: int) -> None:
    """Make the server fail all upserts from the nth on."""

    def count() -> None:
        if double.calls.count("Upsert") < upsert:
            double.before["Upsert"] = count
        else:
            double.fail("Upsert", grpc.StatusCode.UNAVAILABLE, times=10**6)

    double.calls.clear()
    double.before["Upsert"] = count


class Loader:
    """Loads the documents of all jobs from lines, as `bge-m3-qdrant bulk` does."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def __call__(self, store: ServerStore, collection: str, *options: str) -> LoadReport:
        """Load all documents, and return the report."""
        core = operations_over(store, self._embedder)
        limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
        fields = [dict(zip(("id", "text", "payload"), document(n), strict=True)) for n in range(JOBS * TEXTS)]
        lines = [json.dumps(line).encode() for line in fields]
        asked = load_options(bulk_options("--collection", collection, *options), limits)
        return BulkLoad(core, asked, None, lambda _text: None, batch_texts=TEXTS).run(read_json_lines(lines))


@pytest.fixture
def load(embedder: Embedder) -> Loader:
    """A loader with the session's model."""
    return Loader(embedder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["upsert", "insertOnly"])
def test_jobs_store_the_same_points_despite_faults(
    double: GrpcDouble, connect: Connect, serve: Serve, mode: str
) -> None:
    """If a tenth of all calls fails, every answer still counts all points, and the stored points are the same."""
    store = connect()
    worker = serve(store)
    for number in range(JOBS):
        worker.good(job(number, collection="undisturbed"))
    double.script = Script(FAULTS, every=8, methods=CALLS)
    for answer in worker.together([job(number, mode=mode) for number in range(JOBS)]):
        assert "error" not in answer, answer
        assert_complete(answer["upsert"], stored=TEXTS - 1)
    assert set(double.script.happened) == set(FAULTS)
    assert double.script.happened.total() >= double.script.calls / 10
    double.script = None
    assert_equal(store, "notes", "undisturbed")


@pytest.mark.slow
def test_a_load_stores_the_same_points_despite_faults(double: GrpcDouble, connect: Connect, load: Loader) -> None:
    """The report of a bulk load is exact despite faults, its graph is built and its alias is set."""
    store = connect()
    load(store, "undisturbed")
    double.script = Script(FAULTS, every=8, methods=CALLS)
    report = load(store, "notes", "--alias", "live", "--allow-rejected")
    assert set(double.script.happened) == set(FAULTS)
    double.script = None
    assert (report.failure, report.stored, report.rejected) == (None, JOBS * (TEXTS - 1), JOBS)
    assert store.collection_of("live") == "notes"
    assert_equal(store, "notes", "undisturbed")


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["upsert", "insertOnly"])
def test_a_job_whose_store_fails_can_be_sent_again(
    double: GrpcDouble, connect: Connect, serve: Serve, mode: str
) -> None:
    """The report in the error matches the collection, and sending the job again completes it."""
    lasting = connect()
    for number in range(JOBS):
        serve(lasting).good(job(number, collection="undisturbed"))
        if number:
            serve(lasting).good(job(number))
    fail_from(double, 6)
    answer = serve(connect(deadline_s=0.3)).error(job(0, mode=mode), "store_unavailable")
    assert answer["retryable"]
    upsert = answer["details"]["upsert"]
    assert_complete(upsert)
    lost = {point["index"] for point in upsert["rejected"]}
    there = lasting.existing("notes", range(TEXTS))
    assert there == {document(n)[0] for n in range(TEXTS) if n not in lost}
    assert 0 < len(there) < TEXTS - 2

    double.failures.clear()
    again = serve(lasting).good(job(0, mode=mode))["upsert"]
    assert_complete(again, stored=TEXTS - 1)
    assert again["skipped"] == (upsert["stored"] if mode == "insertOnly" else 0)
    assert_equal(lasting, "notes", "undisturbed")


@pytest.mark.slow
def test_a_load_whose_store_fails_can_be_run_again(double: GrpcDouble, connect: Connect, load: Loader) -> None:
    """The load ends with the reason and an exact report; another run with --insert-only adds the missing points."""
    lasting = connect()
    load(lasting, "undisturbed")
    fail_from(double, 20)
    report = load(connect(deadline_s=0.3), "notes", "--alias", "live")
    assert report.failure is not None
    assert "points were not stored: Qdrant does not answer" in report.failure
    there = lasting.existing("notes", range(JOBS * TEXTS))
    assert 0 < len(there) <= report.stored < JOBS * (TEXTS - 1)
    assert report.stored - len(there) <= JOBS  # the texts that merge
    assert lasting.collection_of("live") is None

    double.failures.clear()
    again = load(lasting, "notes", "--alias", "live", "--allow-rejected", "--insert-only")
    assert (again.failure, again.stored, again.rejected) == (None, JOBS * (TEXTS - 1), JOBS)
    assert again.skipped >= len(there)
    assert lasting.collection_of("live") == "notes"
    assert_equal(lasting, "notes", "undisturbed")
