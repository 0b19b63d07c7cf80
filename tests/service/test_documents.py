"""Documents in chunks: each chunk is a point, and chunks of earlier versions are deleted."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from embedder import Embedder
from qdrant_sink import Filter, Point, PointId, Store, Stored, StoreUnavailable, chunk_id, new_version
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import Watched
from tests.service.ingests import CHUNK, LONG, NOTES, block, count, job
from tests.sink.grpc_double import GrpcDouble


def worker_over(store: Store, embedder: Embedder, *, batch_points: int) -> Client:
    """A worker with a limit on the points, or ids, per request to the store."""
    settings = Settings.from_environment(ENVIRONMENT)
    return Client(Operations(settings, embedder, store, batch_points=batch_points))


def test_a_long_document_is_a_point_per_chunk(worker: Client, store: EdgeStore) -> None:
    """Each chunk is a point with its document and its span in the payload."""
    answer = worker.good(job(LONG, "short", ids=["manual", 7], payloads=[{"lang": "en"}] * 2, chunk=CHUNK))
    first, second = answer["results"]
    assert first["chunks"] > 5
    assert second["chunks"] == 1
    assert answer["upsert"] == block(first["chunks"] + 1)
    assert count(worker) == first["chunks"] + 1
    assert answer["usage"]["tokens"] == first["tokens"] + second["tokens"]
    raw = {"operation": "search", "collection": NOTES, "queries": ["topic"], "using": ["dense"], "limit": 100}
    hits = [hit["payload"] for hit in worker.good(raw)["results"][0]["hits"]]
    chunks = sorted((hit for hit in hits if hit["doc_id"] == "manual"), key=lambda hit: hit["chunk"])
    assert [chunk["chunk"] for chunk in chunks] == list(range(first["chunks"]))
    for chunk in chunks:
        assert chunk["text"] == LONG[chunk["start"] : chunk["end"]]
        assert set(chunk) == {"text", "lang", "doc_id", "chunk", "start", "end", "doc_key", "doc_version", "doc_chunks"}
    (other,) = [hit for hit in hits if hit["doc_id"] == 7]
    assert {key: value for key, value in other.items() if key not in ("doc_key", "doc_version", "doc_chunks")} == {
        "text": "short",
        "lang": "en",
        "doc_id": 7,
        "chunk": 0,
        "start": 0,
        "end": 5,
    }
    assert other["doc_version"] == chunks[0]["doc_version"]
    assert (chunks[0]["doc_chunks"], other["doc_chunks"]) == (len(chunks), 1)
    assert other["doc_key"] != chunks[0]["doc_key"]


def test_a_document_that_shrinks_leaves_no_stale_chunks(worker: Client) -> None:
    """A shorter version of a document deletes the chunks beyond it, and other documents are unchanged."""
    worker.good(job(LONG, LONG + " End.", ids=["a", "b"], chunk=CHUNK))
    before = count(worker)
    answer = worker.good(job(LONG[:300], ids=["a"], chunk=CHUNK))
    fewer = answer["results"][0]["chunks"]
    only_a = {"must": [{"key": "doc_id", "match": {"value": "a"}}]}
    assert worker.good({"operation": "count", "collection": NOTES, "filter": only_a}) == {"count": fewer}
    assert count(worker) < before
    only_b = {"must": [{"key": "doc_id", "match": {"value": "b"}}]}
    assert worker.good({"operation": "count", "collection": NOTES, "filter": only_b})["count"] > fewer


class FailingDeletes(EdgeStore):
    """Qdrant Edge that stops answering after a number of deletions.

    Attributes:
        deletes_left: number of deletions that still succeed.
    """

    deletes_left = 1

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """See `Store.delete`."""
        if not self.deletes_left:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        self.deletes_left -= 1
        return super().delete(collection, ids=ids, where=where)


def test_an_incomplete_deletion_is_completed_by_the_next_job(embedder: Embedder, tmp_path: Path) -> None:
    """The same job again deletes the remaining chunks of the earlier version."""
    store = FailingDeletes(tmp_path / "edge")
    worker = worker_over(store, embedder, batch_points=3)
    long = worker.good(job(LONG, ids=["a"], chunk=CHUNK))["results"][0]["chunks"]
    assert long > 10
    answer = worker.error(job(LONG[:100], ids=["a"], chunk=CHUNK), "store_unavailable")
    assert "chunks of earlier versions may remain" in answer["error"]
    fewer = answer["details"]["upsert"]["stored"]
    assert fewer < count(worker) < long
    store.deletes_left = 1000
    worker.good(job(LONG[:100], ids=["a"], chunk=CHUNK))
    assert count(worker) == fewer
    store.close()


@pytest.mark.parametrize("cut", [{}, {"chunk": CHUNK}], ids=["point", "chunks"])
def test_a_refused_document_does_not_hold_its_id(worker: Client, cut: Json) -> None:
    """A rejected document does not reserve its id for the job."""
    answer = worker.good(job("one", "two", ids=["a", "a"], payloads=[{"n": float("inf")}, {}], **cut))
    assert answer["upsert"]["stored"] == count(worker) == 1
    assert [(point["index"], point["code"]) for point in answer["upsert"]["rejected"]] == [(0, "invalid_payload")]


def test_insert_only_deletes_no_chunks(worker: Client) -> None:
    """`insertOnly` does not delete existing chunks."""
    worker.good(job(LONG, ids=["a"], chunk=CHUNK))
    before = count(worker)
    worker.good(job(LONG[:300], ids=["a"], chunk=CHUNK, mode="insertOnly"))
    assert count(worker) == before


def test_chunks_of_two_documents_never_mix(worker: Client) -> None:
    """The first of two documents with the same id is stored, and each chunk of the second is rejected."""
    answer = worker.good(job(LONG[:300], LONG, ids=["a", "a"], chunk=CHUNK))
    first, second = answer["results"]
    assert answer["upsert"]["stored"] == first["chunks"] == count(worker)
    assert [(point["index"], point["chunk"], point["code"]) for point in answer["upsert"]["rejected"]] == [
        (1, number, "duplicate_id") for number in range(second["chunks"])
    ]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"chunk": {"maxTokens": 16}}, ["qdrant.chunk.maxTokens", "at least 32", "16"]),
        ({"chunk": {"maxTokens": 10_000}}, ["qdrant.chunk.maxTokens", "at most", "10000"]),
        ({"chunk": {"maxTokens": 64, "overlap": 33}}, ["qdrant.chunk.overlap", "32", "33"]),
        ({"chunk": {"tokens": 64}}, ["qdrant.chunk.tokens"]),
        ({"colbertPooling": "max"}, ["qdrant.colbertPooling", "'mean'"]),
    ],
)
def test_invalid_chunking_is_an_error(worker: Client, fields: Json, named: list[str]) -> None:
    """The message names the field, the limit and the value."""
    answer = worker.error(job("a", **fields), "invalid_request")
    assert all(name in answer["error"] for name in named), answer["error"]


def test_chunks_have_no_vectors_of_a_whole_text(worker: Client) -> None:
    """`returnVectors` and a short `maxLength` are errors with chunking."""
    assert "returnVectors" in worker.error({**job("a", chunk=CHUNK), "returnVectors": True}, "invalid_request")["error"]
    assert "maxLength" in worker.error({**job("a", chunk=CHUNK), "maxLength": 32}, "invalid_request")["error"]


def test_chunks_of_two_documents_never_mix_where_one_is_refused_in_part(
    worker: Client, small_multivectors: int
) -> None:
    """A document with some valid chunks keeps its id, and the report matches the collection."""
    many, few = " ".join(["library"] * 44) + ".", "A few words."
    chunk = {"maxTokens": 48, "overlap": 0}  # the first of the two has too many rows
    answer = worker.good(job(f"{many} {few}", few, ids=["a", "a"], chunk=chunk))
    rejected = [(point["index"], point["chunk"], point["code"]) for point in answer["upsert"]["rejected"]]
    assert rejected == [(0, 0, "colbert_too_long"), (1, 0, "duplicate_id")]
    assert answer["upsert"]["stored"] == count(worker) == 1


class Interrupted(EdgeStore):
    """Qdrant Edge that fails one upsert, after a later one is stored."""

    def __init__(self, path: Path, at: int) -> None:
        super().__init__(path)
        self._failing = at
        self._numbers = iter(range(1_000_000))
        self._stored_later = threading.Event()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        number = next(self._numbers)
        if number == self._failing:
            self._stored_later.wait(PATIENCE)
            raise StoreUnavailable("Qdrant does not answer: DEADLINE_EXCEEDED")
        super().upsert(collection, points, insert_only=insert_only)
        if number > self._failing:
            self._stored_later.set()


def test_an_incomplete_version_leaves_no_chunks_behind(embedder: Embedder, tmp_path: Path) -> None:
    """A shorter version deletes all chunks of an incomplete earlier one, however many are missing."""
    store = Interrupted(tmp_path / "edge", at=1)
    try:
        worker = worker_over(store, embedder, batch_points=20)
        text = " ".join(LONG for _ in range(6))
        short = {"maxTokens": 32, "overlap": 0}
        answer = worker.error({**job(text, ids=["a"], chunk=short), "vectors": ["dense"]}, "store_unavailable")
        missing = sorted(point["chunk"] for point in answer["details"]["upsert"]["rejected"])
        assert 20 <= len(missing) <= max(missing), "there is a gap, and chunks behind it"
        assert answer["details"]["upsert"]["stored"] == store.count(NOTES) > 20
        worker.good({**job("A short new version.", ids=["a"], chunk=short), "vectors": ["dense"]})
        assert store.count(NOTES) == 1
    finally:
        store.close()


class Paused(EdgeStore):
    """Qdrant Edge whose first look for the chunks of a document sets `asked` and waits for `go_on`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def scroll(self, *args: Any, **options: Any) -> tuple[dict[PointId, Stored], PointId | None]:
        """See `Store.scroll`."""
        where = args[1]  # without conditions it is a sample of the collection
        if where and not self.asked.is_set():
            self.asked.set()
            self.go_on.wait(PATIENCE)
        return super().scroll(*args, **options)


@pytest.mark.parametrize("name", [NOTES, "live"])
def test_jobs_with_the_same_document_run_one_after_the_other(embedder: Embedder, tmp_path: Path, name: str) -> None:
    """A long version that arrives while a short one is being stored is complete afterwards.

    The second job may name the collection or an alias of it.
    """
    store = Paused(tmp_path / "edge")
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    worker.good(job("There before."))
    store.alias("live", NOTES)
    short_job = job("A short version.", ids=["a"], chunk=CHUNK)
    long_job = job(LONG, ids=["a"], chunk=CHUNK, collection=name, idScope=NOTES)
    other_job = job(LONG, ids=["b"], chunk=CHUNK)
    with ThreadPoolExecutor(2) as threads:
        short = threads.submit(worker.good, short_job)
        assert store.asked.wait(PATIENCE)
        long = threads.submit(worker.good, long_job)
        chunks = worker.good(other_job)["results"][0]["chunks"]  # another document does not wait
        assert chunks > 5
        assert worker.operations.waiting_tokens == 0, "a waiting job does not occupy the queue"
        assert count(worker) == 1 + chunks
        assert not long.done()
        store.go_on.set()
        assert short.result(PATIENCE)["upsert"] == block(1)
        assert long.result(PATIENCE)["results"][0]["chunks"] == chunks
    assert count(worker) == 1 + chunks + chunks
    store.close()


@pytest.mark.parametrize("identity", [2**63 - 1, 2**63, 2**64 - 1])
def test_every_id_can_be_that_of_a_document(worker: Client, store: EdgeStore, identity: int) -> None:
    """A document id above 2^63 - 1 is stored as text, since payloads have no larger integers."""
    answer = worker.good(job("one", ids=[identity], chunk=CHUNK))
    assert answer["upsert"] == block(1)
    document_id: int | str = identity if identity < 2**63 else str(identity)
    assert store.count(NOTES, {"must": [{"key": "doc_id", "match": {"value": document_id}}]}) == 1


class Vanishing(EdgeStore):
    """Qdrant Edge whose collection is deleted after a lookup of existing points."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        stored = super().existing(collection, ids)
        shutil.rmtree(self._path / collection)
        return stored


def test_skipped_points_of_a_deleted_collection_are_not_counted(embedder: Embedder, tmp_path: Path) -> None:
    """With `insertOnly`, existing points do not count as stored if the collection is deleted meanwhile."""
    store = Vanishing(tmp_path / "edge")
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    worker.good(job("one", "two"))
    answer = worker.error(job("one", "two", "three", mode="insertOnly"), "not_found")
    assert answer["details"]["upsert"]["stored"] == 0
    assert len(answer["details"]["upsert"]["rejected"]) == 3
    with suppress(StoreUnavailable):  # its files are gone
        store.close()


def test_a_partial_version_among_many_documents_is_replaced(embedder: Embedder, tmp_path: Path) -> None:
    """A job of 60 documents leaves no chunk of an earlier, partial version, wherever that has its gap."""
    store = Interrupted(tmp_path / "edge", at=1)
    try:
        worker = worker_over(store, embedder, batch_points=150)
        names = [f"doc {n}" for n in range(60)]
        text, short = " ".join(LONG for _ in range(12)), {"maxTokens": 32, "overlap": 0}
        long_job = {**job(text, ids=names[-1:], chunk=short), "vectors": ["dense"]}
        worker.error(long_job, "store_unavailable")
        assert store.count(NOTES) > 80
        new = ["A short new version."] * 60
        assert worker.good({**job(*new, ids=names, chunk=short), "vectors": ["dense"]})["upsert"]["stored"] == 60
        assert store.count(NOTES) == 60
    finally:
        store.close()


@pytest.mark.parametrize("layout", ["plain", "langchain", "llamaindex", "haystack"])
def test_a_document_is_replaced_in_every_payload_layout(serve: Serve, store: EdgeStore, layout: str) -> None:
    """The worker finds the chunks of a document wherever the layout keeps its fields."""
    worker = serve(QDRANT_COLLECTION_CONFIG=json.dumps({"layout": layout}))
    for text in (LONG, LONG[:300], "Short."):
        answer = worker.good(job(text, "other", ids=["a", 7], chunk=CHUNK))
        assert store.count(NOTES) == answer["results"][0]["chunks"] + 1
    assert worker.good({"operation": "delete", "collection": NOTES, "docIds": ["a", 7]}) == {"deleted": 2}
    assert store.count(NOTES) == 0


def test_documents_are_deleted_by_id(worker: Client) -> None:
    """`docIds` deletes all chunks of documents, whose ids may be strings, integers or those of their texts."""
    first = worker.good(job(LONG, "b", "c", ids=["a", 7, "c"], chunk=CHUNK))["results"][0]["chunks"]
    unnamed = worker.good(job("A text without an id.", chunk=CHUNK))["results"][0]["id"]
    worker.good(job("a single point", ids=["a"]))
    delete = {"operation": "delete", "collection": NOTES}
    assert worker.good({**delete, "docIds": ["a", 7, "unknown"]}) == {"deleted": first + 1}
    assert worker.good({**delete, "docIds": [unnamed]}) == {"deleted": 1}
    assert count(worker) == 2
    assert worker.good({**delete, "docIds": ["c"], "idScope": "elsewhere"}) == {"deleted": 0}
    answer = worker.error({**delete, "docIds": ["a"], "ids": ["a"]}, "invalid_request")
    assert "docIds must not be given together with ids" in answer["error"]
    assert "docIds[1]" in worker.error({**delete, "docIds": ["a", -1]}, "invalid_request")["error"]
    worker.error({**delete, "collection": "unknown", "docIds": ["a"]}, "not_found")


@pytest.mark.slow
def test_two_workers_never_mix_a_document(embedder: Embedder, tmp_path: Path) -> None:
    """Two workers that write one document at the same time leave one whole version, and report the other one."""
    double = GrpcDouble(tmp_path)
    stores = [ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, pause_s=0.02) for _ in range(2)]
    workers = [worker_over(store, embedder, batch_points=3) for store in stores]
    texts = [LONG[:900], LONG[1000:]]
    workers[0].good(job("first", ids=["other"], chunk=CHUNK))
    stores[0].alias("live", NOTES)
    names = [{}, {"collection": "live", "idScope": NOTES}]
    try:
        for _ in range(5):
            with ThreadPoolExecutor(2) as threads:
                answers = list(
                    threads.map(
                        lambda worker, text, name: worker.good(job(text, ids=["a"], chunk=CHUNK, **name)),
                        workers,
                        texts,
                        names,
                    )
                )
            raw = {"operation": "search", "collection": NOTES, "queries": ["topic"], "using": ["dense"], "limit": 200}
            hits = [hit["payload"] for hit in workers[0].good(raw)["results"][0]["hits"]]
            chunks = sorted((hit for hit in hits if hit["doc_id"] == "a"), key=lambda hit: hit["chunk"])
            assert len({chunk["doc_version"] for chunk in chunks}) == 1
            winners = [
                text for text in texts if all(chunk["text"] == text[chunk["start"] : chunk["end"]] for chunk in chunks)
            ]
            stored = [answer["upsert"]["stored"] for answer in answers]
            assert len(winners) == 1
            assert stored[texts.index(winners[0])] == len(chunks) > 5
            for answer in answers:
                whole = answer["upsert"]["stored"] == answer["results"][0]["chunks"]
                assert whole or {point["code"] for point in answer["upsert"]["rejected"]} == {"superseded"}
    finally:
        for store in stores:
            store.close()
        double.stop()


def test_a_rejected_chunk_leaves_the_rest_of_a_version_complete(watched: Watched, tmp_path: Path) -> None:
    """Where the model fails on a chunk, the others replace the older version and say how many they are."""
    store = EdgeStore(tmp_path / "edge")
    worker = worker_over(store, watched.embedder, batch_points=20)
    worker.good(job(LONG, ids=["a"], chunk=CHUNK))
    answer = worker.good(job(f"{LONG[:400]} A zebra. {LONG[400:900]}", ids=["a"], chunk=CHUNK))
    chunks, rejected = answer["results"][0]["chunks"], len(answer["upsert"]["rejected"])
    assert chunks > rejected > 0
    assert count(worker) == chunks - rejected
    total = {"must": [{"key": "doc_chunks", "match": {"value": chunks - rejected}}]}
    assert store.count(NOTES, total) == chunks - rejected
    store.close()


class Overtaken(EdgeStore):
    """Qdrant Edge in which another worker stores a later version of a document after a write.

    Attributes:
        overtakes: whether the next write is overtaken.
    """

    overtakes = False

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        super().upsert(collection, points, insert_only=insert_only)
        if self.overtakes:
            self.overtakes = False
            chunk = points[0]
            version = new_version(chunk.payload["doc_version"])
            payload = {**chunk.payload, "doc_version": version, "doc_chunks": 1}
            identity = chunk_id(chunk.payload["doc_key"], version, 0)
            super().upsert(collection, [replace(chunk, id=identity, payload=payload)])


def test_kept_chunks_of_a_superseded_document_are_not_counted(embedder: Embedder, tmp_path: Path) -> None:
    """A job that completes a document, and is overtaken by a later version, has neither stored nor skipped a chunk."""
    store = Overtaken(tmp_path / "edge")
    worker = worker_over(store, embedder, batch_points=20)
    chunks = worker.good(job(LONG, ids=["a"], chunk=CHUNK))["results"][0]["chunks"]
    store.delete(NOTES, where={"must": [{"key": "chunk", "match": {"value": 1}}]})
    store.overtakes = True
    answer = worker.good(job(LONG, ids=["a"], chunk=CHUNK, mode="insertOnly"))
    assert (answer["upsert"]["stored"], answer["upsert"]["skipped"]) == (0, 0)
    assert [point["code"] for point in answer["upsert"]["rejected"]] == ["superseded"] * chunks
    store.close()
