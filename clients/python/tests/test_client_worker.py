"""The client and the worker: every operation over HTTP, on RunPod's queue, and from asyncio."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bge_m3_qdrant_client import (
    AsyncClient,
    Client,
    InvalidRequest,
    NotFound,
    Progress,
    ResponseTooLarge,
    SchemaMismatch,
    Unauthorized,
)
from embedder import Embedder
from loopback_endpoint import ENDPOINT, KEY, Report, RunPodEndpoint
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from tests.loopback import JobQueue, Worker
from tests.service.client import ENVIRONMENT
from tests.service.served import Served
from tests.sink.samples import schema_for

ROOT = Path(__file__).parents[3]
TEXTS = ["rsync copies only the changed parts of files.", "PhotoRec recovers deleted files.", "A relational database."]


@pytest.fixture(scope="module")
def embedder() -> Iterator[Embedder]:
    """The model of `mini`."""
    loaded = Embedder.load(Settings.from_environment(ENVIRONMENT).model_options)
    yield loaded
    loaded.close()


@pytest.fixture
def operations(embedder: Embedder, tmp_path: Path) -> Iterator[Callable[..., Operations]]:
    """A function that makes a worker with any settings over Qdrant Edge."""
    store = EdgeStore(tmp_path / "edge")
    yield lambda **more: Operations(Settings.from_environment({**ENVIRONMENT, **more}), embedder, store)
    store.close()


def front(operations: Operations) -> RunPodEndpoint:
    """An endpoint whose jobs these operations answer."""
    codec = Codec(operations)
    return RunPodEndpoint(lambda raw, report: asyncio.run(codec.job(raw, report)))


@pytest.fixture(params=["http", "runpod"])
def client(request: pytest.FixtureRequest, operations: Callable[..., Operations]) -> Iterator[Client]:
    """A client of a worker over HTTP, and of one behind an endpoint of RunPod."""
    if request.param == "http":
        with Served(operations()) as served, Client(served.url) as made:
            yield made
        return
    with front(operations()) as endpoint:
        with Client.runpod(ENDPOINT, api_key=KEY, base_url=endpoint.base_url) as made:
            yield made


def test_vectors_are_arrays(client: Client, embedder: Embedder) -> None:
    """Dense vectors, sparse ones and ColBERT rows have the numbers of the model, in float32 or float16."""
    answer = client.embed(TEXTS, is_passage=True)
    (first, *_), (half, *_) = answer.results, client.embed(TEXTS, is_passage=True, dtype="float16").results
    assert first.dense is not None
    assert first.sparse is not None
    assert first.colbert is not None
    assert half.dense is not None
    assert (str(first.dense.dtype), first.dense.shape) == ("float32", (embedder.hidden_size,))
    assert (str(first.sparse.indices.dtype), str(first.sparse.values.dtype)) == ("uint32", "float32")
    assert first.tokens == len(first.colbert) + 1
    assert half.dense.dtype == np.float16
    np.testing.assert_allclose(half.dense, first.dense, atol=1e-3)
    np.testing.assert_allclose(np.linalg.norm(first.dense), 1, rtol=1e-5)
    assert [result.text for result in answer.results] == TEXTS
    assert answer.usage.tokens == sum(result.tokens or 0 for result in answer.results)
    one = client.embed(TEXTS[0], vectors=["dense"], is_passage=True, include_text=False).results[0]
    assert one.dense is not None
    np.testing.assert_allclose(one.dense, first.dense, atol=1e-5)
    assert [one.sparse, one.colbert, one.text] == [None] * 3


def test_points_are_stored_found_read_and_deleted(client: Client) -> None:
    """What an ingest stores, `search`, `points`, `count`, `collections` and `delete` see."""
    report = client.ingest(
        TEXTS, ids=["rsync", 7, None], payloads=[{"topic": "backup"}, None, {}], collection="notes", include_text=False
    )
    assert (report.collection, report.stored, report.skipped, report.rejected) == ("notes", 3, 0, ())
    assert client.ingest(TEXTS, ids=["rsync", 7, None], collection="notes", mode="insertOnly").skipped == 3
    changed = client.ingest(
        ["other", *TEXTS[1:]], ids=["rsync", 7, None], collection="notes", mode="insertOnly", compare_kept=True
    )
    assert changed.differing == (0,)
    assert client.count(collection="notes").count == 3

    found = client.search(
        "send only what changed", collection="notes", limit=2, rerank="colbert", explain=True, with_vectors=["dense"]
    )
    hit = found.results[0].hits[0]
    assert hit.payload is not None
    assert (hit.payload["topic"], hit.payload["id"]) == ("backup", "rsync")
    assert hit.vectors is not None
    assert isinstance(hit.vectors.dense, np.ndarray)
    assert hit.explain is not None
    assert hit.explain.colbert
    like = client.search(like={"positive": ["rsync"]}, collection="notes", using=["dense"])
    assert hit.id not in {other.id for other in like.results[0].hits}

    read = client.points(ids=["rsync", "absent"], collection="notes", with_vectors=True, dtype="float16")
    assert (read.missing, read.points[0].requested_id) == (["absent"], "rsync")
    assert read.points[0].vectors is not None
    assert read.points[0].vectors.colbert is not None
    assert read.points[0].vectors.colbert.dtype == np.float16
    page = client.points(collection="notes", limit=2)
    assert len(page.points) == 2
    assert len(client.points(collection="notes", limit=2, after=page.next).points) == 1

    assert client.collections().collections == ["notes"]
    described = client.collection("notes")
    assert (described.points, {vector.kind for vector in described.vectors}) == (3, {"dense", "sparse", "multivector"})
    assert client.delete(collection="notes", ids=["rsync"]).deleted == 1
    assert client.health().ready


def test_texts_are_scored_and_ranked(client: Client) -> None:
    """`score` and `rerank` put the passage that answers first."""
    query = "send only what changed"
    first, *others = client.score([(query, text) for text in TEXTS], weights=[1, 1, 1]).scores.colbert_sparse_dense
    assert first is not None
    assert all(score is not None and score < first for score in others)
    ranking = client.rerank(query, [TEXTS[2], {"text": TEXTS[0]}], top_n=1, return_documents=True)
    assert [(result.index, result.document) for result in ranking.results] == [(1, {"text": TEXTS[0]})]


def test_errors_are_those_of_the_worker(client: Client) -> None:
    """An error has the class of its code, the message of the worker and its details."""
    with pytest.raises(NotFound) as absent:
        client.count(collection="absent")
    assert absent.value.code == "not_found"
    assert absent.value.request_id
    with pytest.raises(InvalidRequest, match="limit must be at least 1, got 0") as invalid:
        client.search("a", collection="notes", limit=0)
    assert invalid.value.details["errors"][0]["field"] == "limit"
    with pytest.raises(InvalidRequest, match="weights"):
        client.rerank("a", ["b"], weights=[1, 1])


def test_long_texts_are_cut_into_points_by_a_job(client: Client) -> None:
    """A job with chunks counts points, and its progress arrives."""
    reports: list[Progress] = []
    text = " ".join(f"Sentence number {number} says little." for number in range(40))
    report = client.ingest(
        [text, "short"], ids=["long", "short"], collection="notes", chunk={"max_tokens": 64}, job=True,
        progress=reports.append,
    )  # fmt: skip
    chunks = [result.chunks for result in report.results if result]
    assert report.stored == sum(count or 0 for count in chunks) > 5
    assert reports[-1] == Progress(2, 2, report.stored)
    assert client.delete(collection="notes", doc_ids=["long"]).deleted == chunks[0]


def test_many_texts_are_stored_by_several_requests(operations: Callable[..., Operations]) -> None:
    """A worker with small limits is given requests that it answers: by number of texts, and by size of answers."""
    texts = [f"note number {number}" for number in range(20)]
    with Served(operations(MAX_TEXTS="8", MAX_RESPONSE_MB="0.05")) as served:
        with Client(served.url, texts_per_request=8) as client:
            assert client.ingest(iter(texts), ids=range(20), collection="notes").stored == 20
            assert client.count(collection="notes").count == 20
            answer = client.embed(iter(texts))
            assert [result.text for result in answer.results] == texts
            with pytest.raises(ResponseTooLarge):
                client.embed("word " * 500)


def test_a_worker_with_a_key(operations: Callable[..., Operations]) -> None:
    """A wrong key is `Unauthorized`; the right one is not needed for `health`."""
    with Served(operations(API_KEY="right")) as served:
        with Client(served.url, api_key="right") as client:
            assert client.embed("a").results[0].dense is not None
        for wrong in ("wrong", None):
            with Client(served.url, api_key=wrong) as client:
                with pytest.raises(Unauthorized):
                    client.embed("a")
                assert client.health().store == "ready"


def test_another_schema_is_an_error_with_the_report(embedder: Embedder, tmp_path: Path) -> None:
    """An ingest that cannot begin says that no point is stored."""
    store = EdgeStore(tmp_path / "other")
    store.ensure("notes", schema_for(8, 8))
    try:
        with Served(Operations(Settings.from_environment(ENVIRONMENT), embedder, store)) as served:
            with Client(served.url) as client, pytest.raises(SchemaMismatch) as raised:
                client.ingest(TEXTS, collection="notes")
    finally:
        store.close()
    assert raised.value.report is not None
    assert (raised.value.report.stored, len(raised.value.report.rejected)) == (0, 3)


def test_calls_from_asyncio_run_beside_each_other(operations: Callable[..., Operations]) -> None:
    """The methods are those of the blocking client, and awaited."""

    async def calls(url: str) -> None:
        async with AsyncClient(url, texts_per_request=2) as client:
            report = await client.ingest(TEXTS, collection="notes")
            assert report.stored == 3
            searches = await asyncio.gather(*(client.search(text, collection="notes", limit=1) for text in TEXTS))
            payloads = [search.results[0].hits[0].payload for search in searches]
            assert [payload and payload["text"] for payload in payloads] == TEXTS
            assert (await client.score([("a", "b")])).errors == []
            assert len((await client.rerank("a", TEXTS)).results) == 3
            assert len((await client.points(collection="notes")).points) == 3
            assert (await client.collections()).collections == ["notes"]
            assert (await client.collection("notes")).points == 3
            assert (await client.delete(collection="notes", filter={"must": [{"has_id": [1]}]})).deleted == 0
            assert (await client.count(collection="notes")).count == 3
            assert (await client.embed("a", vectors=["sparse"])).results[0].sparse is not None
            assert (await client.health()).ready

    with Served(operations()) as served:
        asyncio.run(calls(served.url))


def test_a_thread_may_use_the_client_of_another(operations: Callable[..., Operations]) -> None:
    """One client serves several threads."""
    with Served(operations()) as served, Client(served.url) as client:
        results: list[int] = []
        threads = [
            threading.Thread(target=lambda: results.append(client.embed(TEXTS).usage.tokens), daemon=True)
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert len(results) == 4
        assert len(set(results)) == 1


@pytest.mark.slow
def test_the_platform_s_own_sdk_carries_the_jobs(tmp_path: Path) -> None:
    """Behind the unmodified SDK, calls, progress, errors and a rerank arrive as from a worker over HTTP."""
    settings = {
        **ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "store"), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    with JobQueue() as queue, Worker(queue, cwd=ROOT, script="tests/programs/slow_store.py", env=settings) as worker:
        worker.wait_for_first_poll(120)

        def handler(raw: Any, report: Report) -> Any:
            job = queue.submit(raw)
            deadline = time.monotonic() + 60
            while job not in queue.results and time.monotonic() < deadline:
                if progress := queue.progress(job):
                    report(progress[-1])
                time.sleep(0.01)
            posted = queue.result(job, 1)
            if "error" in posted:
                return {"error": posted["error"], **(posted.get("output") or {})}
            return posted["output"]

        reports: list[Progress] = []
        with RunPodEndpoint(handler) as endpoint:
            with Client.runpod(ENDPOINT, api_key=KEY, base_url=endpoint.base_url) as client:
                texts = [f"note number {number}" for number in range(600)]
                report = client.ingest(texts, collection="notes", progress=reports.append, vectors=["dense"], job=True)
                assert report.stored == 600
                assert any(0 < progress.points < 600 for progress in reports)
                assert client.count(collection="notes").count == 600
                assert client.rerank("changed", TEXTS).results
                with pytest.raises(NotFound, match="absent"):
                    client.count(collection="absent")
