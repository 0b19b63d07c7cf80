"""Long documents in chunks: each chunk a point, no chunk of an earlier version left, none of the present one lost."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from embedder import Embedder
from qdrant_sink import Filter, Point, PointId, Store, StoreUnavailable
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json
from tests.service.ingests import CHUNK, LONG, NOTES, block, count, job


def worker_over(store: Store, embedder: Embedder, *, batch_points: int) -> Client:
    """A worker that sends so many points, or ids, to the store at a time."""
    settings = Settings.from_environment(ENVIRONMENT)
    return Client(Operations(settings, embedder, store, batch_points=batch_points))


def test_a_long_document_is_a_point_per_chunk(worker: Client, store: EdgeStore) -> None:
    """Each chunk is found by itself and says of which document it is, and where in it."""
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
        assert set(chunk) == {"text", "lang", "doc_id", "chunk", "start", "end"}
    (other,) = [hit for hit in hits if hit["doc_id"] == 7]
    assert other == {"text": "short", "lang": "en", "doc_id": 7, "chunk": 0, "start": 0, "end": 5}


def test_a_document_that_shrinks_leaves_no_stale_chunks(worker: Client) -> None:
    """After a new version, search finds nothing of the old one, and other documents are untouched."""
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
        deletes_left: how many deletions still succeed.
    """

    deletes_left = 1

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """See `Store.delete`."""
        if not self.deletes_left:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        self.deletes_left -= 1
        return super().delete(collection, ids=ids, where=where)


def test_a_deletion_that_was_cut_short_is_completed(embedder: Embedder, tmp_path: Path) -> None:
    """However it ended, the same job again leaves the chunks of the new version and no others."""
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
    """Of two documents of one id, the one that can be stored is."""
    answer = worker.good(job("one", "two", ids=["a", "a"], payloads=[{"n": float("inf")}, {}], **cut))
    assert answer["upsert"]["stored"] == count(worker) == 1
    assert [(point["index"], point["code"]) for point in answer["upsert"]["rejected"]] == [(0, "invalid_payload")]


def test_insert_only_deletes_no_chunks(worker: Client) -> None:
    """`insertOnly` changes nothing that is there, not even by deleting it."""
    worker.good(job(LONG, ids=["a"], chunk=CHUNK))
    before = count(worker)
    worker.good(job(LONG[:300], ids=["a"], chunk=CHUNK, mode="insertOnly"))
    assert count(worker) == before


def test_chunks_of_two_documents_never_mix(worker: Client) -> None:
    """Of two different documents under one id the first is stored, and each chunk of the second is rejected."""
    answer = worker.good(job(LONG[:300], LONG, ids=["a", "a"], chunk=CHUNK))
    one, other = answer["results"]
    assert answer["upsert"]["stored"] == one["chunks"] == count(worker)
    assert [(point["index"], point["chunk"], point["code"]) for point in answer["upsert"]["rejected"]] == [
        (1, number, "duplicate_id") for number in range(other["chunks"])
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
def test_chunking_that_cannot_be_done_is_refused(worker: Client, fields: Json, named: list[str]) -> None:
    """The message names the field, the limit and the value."""
    answer = worker.error(job("a", **fields), "invalid_request")
    assert all(name in answer["error"] for name in named), answer["error"]


def test_chunks_have_no_vectors_of_a_whole_text(worker: Client) -> None:
    """Asking for the vectors of a text that is cut is refused, not answered with some of them."""
    assert "returnVectors" in worker.error({**job("a", chunk=CHUNK), "returnVectors": True}, "invalid_request")["error"]
    assert "maxLength" in worker.error({**job("a", chunk=CHUNK), "maxLength": 32}, "invalid_request")["error"]


def test_chunks_of_two_documents_never_mix_where_one_is_refused_in_part(
    worker: Client, small_multivectors: int
) -> None:
    """A document of which only some chunks can be stored keeps its id; what is counted as stored is there."""
    many, few = " ".join(["library"] * 44) + ".", "A few words."
    chunk = {"maxTokens": 48, "overlap": 0}  # the first of the two has too many rows
    answer = worker.good(job(f"{many} {few}", few, ids=["a", "a"], chunk=chunk))
    rejected = [(point["index"], point["chunk"], point["code"]) for point in answer["upsert"]["rejected"]]
    assert rejected == [(0, 0, "colbert_too_long"), (1, 0, "duplicate_id")]
    assert answer["upsert"]["stored"] == count(worker) == 1


class Interrupted(EdgeStore):
    """Qdrant Edge that stops answering at one of its upserts, after the later ones are stored."""

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


def test_a_version_that_was_cut_short_leaves_nothing_behind_a_gap(embedder: Embedder, tmp_path: Path) -> None:
    """Of a document whose load failed in the middle, a shorter version leaves no chunk, however many are missing."""
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
    """Qdrant Edge that tells when it is asked for existing points, and answers the first time when it may go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        if not self.asked.is_set():
            self.asked.set()
            self.go_on.wait(PATIENCE)
        return super().existing(collection, ids)


@pytest.mark.parametrize("name", [NOTES, "live"])
def test_of_two_jobs_with_one_document_one_follows_the_other(embedder: Embedder, tmp_path: Path, name: str) -> None:
    """A long version that arrives while a short one is stored is there whole afterwards, not a fragment of it.

    It makes no difference whether the second job names the collection or an alias of it.
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
        chunks = worker.good(other_job)["results"][0]["chunks"]  # of another document: waits for neither
        assert chunks > 5
        assert worker.operations.waiting_tokens == 0, "a job that waits takes no room from others"
        assert count(worker) == 1 + 1 + chunks
        assert not long.done()
        store.go_on.set()
        assert short.result(PATIENCE)["upsert"] == block(1)
        assert long.result(PATIENCE)["results"][0]["chunks"] == chunks
    assert count(worker) == 1 + chunks + chunks
    store.close()


@pytest.mark.parametrize("identity", [2**63 - 1, 2**63, 2**64 - 1])
def test_every_id_can_be_that_of_a_document(worker: Client, store: EdgeStore, identity: int) -> None:
    """Qdrant's payloads have no integers above 2^63 - 1: there the document's id is written as text."""
    answer = worker.good(job("one", ids=[identity], chunk=CHUNK))
    assert answer["upsert"] == block(1)
    shown: int | str = identity if identity < 2**63 else str(identity)
    assert store.count(NOTES, {"must": [{"key": "doc_id", "match": {"value": shown}}]}) == 1


class Vanishing(EdgeStore):
    """Qdrant Edge whose collection is deleted, by whoever, as soon as it was asked for existing points."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._path = path

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        stored = super().existing(collection, ids)
        shutil.rmtree(self._path / collection)
        return stored


def test_a_collection_that_vanishes_takes_along_what_was_skipped(embedder: Embedder, tmp_path: Path) -> None:
    """With `insertOnly`, points that were there are not counted as stored in a collection that was made anew."""
    store = Vanishing(tmp_path / "edge")
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    worker.good(job("one", "two"))
    answer = worker.error(job("one", "two", "three", mode="insertOnly"), "not_found")
    assert answer["details"]["upsert"]["stored"] == 0
    assert len(answer["details"]["upsert"]["rejected"]) == 3
    with suppress(StoreUnavailable):  # its files are gone
        store.close()
