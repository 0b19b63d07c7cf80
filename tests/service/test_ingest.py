"""Ingest: ids and payloads of points, rejections, and complete reports."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder import Embedder, Overloaded
from qdrant_sink import ModelIdentity
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import NAMESPACE
from service.operations import Collections, IngestFailed, IngestRequest, IngestResult, Operations
from service.operations.ingest import Ingest
from service.operations.model_check import ModelCheck
from service.operations.store_access import StoreAccess
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json, until
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, RaisingStore, Watched
from tests.service.ingests import CHUNK, LONG, NOTES, block, count, job
from tests.service.wrappers import ObservedEngine, ObservedStore, embedder_over
from tests.sink.samples import schema_for

TEXTS = (
    "rsync copies only the changed parts of files to another machine.",
    "PhotoRec recovers deleted files from memory cards.",
    "PostgreSQL is an object-relational database server.",
)
SURROGATE = "\ud800"
LARGE = "x" * 1_500_000
"""A payload so large that three of them do not fit into one request to the store."""


@pytest.fixture
def observed(watched: Watched, store: EdgeStore) -> Client:
    """A worker whose model records its batches and fails on texts with the word `zebra`."""
    return Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))


def nearest(worker: Client, query: str, **fields: Any) -> Json:
    """The best hit of an exact dense search."""
    raw = {"operation": "search", "collection": NOTES, "queries": [query], "using": ["dense"], "limit": 1, **fields}
    hit = worker.good(raw)["results"][0]["hits"][0]
    assert isinstance(hit, dict)
    return hit


def test_an_ingest_reports_what_it_stored(worker: Client) -> None:
    """The answer counts the points and has the id of each text, but no vectors unless requested."""
    answer = worker.good(job(*TEXTS))
    assert answer["upsert"] == block(3)
    for result, text in zip(answer["results"], TEXTS, strict=True):
        assert set(result) == {"text", "id", "tokens", "truncated"}
        assert result["text"] == text
    assert answer["usage"]["tokens"] == sum(result["tokens"] for result in answer["results"])
    assert count(worker) == 3


def test_an_ingest_returns_vectors_on_request(worker: Client) -> None:
    """`returnVectors: true` adds the vectors of a plain embed request."""
    stored = worker.good({**job(TEXTS[0]), "returnVectors": True})
    embedded = worker.good({"texts": [TEXTS[0]], "isPassage": True})
    assert {**embedded["results"][0], "id": stored["results"][0]["id"]} == stored["results"][0]


def test_the_stored_vectors_are_the_computed_ones(worker: Client) -> None:
    """A point has the model's vectors: dense up to rounding, sparse exactly, ColBERT as float16."""
    embedded = worker.good({"texts": [TEXTS[0]], "isPassage": True})["results"][0]
    worker.good(job(TEXTS[0]))
    vectors = nearest(worker, "rsync", withVectors=True)["vectors"]
    assert vectors["sparse"] == embedded["sparse"]
    np.testing.assert_allclose(vectors["dense"], embedded["dense"], atol=1e-6)
    np.testing.assert_allclose(vectors["colbert"], embedded["colbert"], atol=1e-3)


def test_a_second_run_overwrites_and_never_doubles(worker: Client) -> None:
    """Without ids, the same text is always the same point."""
    first = worker.good(job(*TEXTS))
    again = worker.good(job(*reversed(TEXTS), payloads=[{"run": 2}] * 3))
    assert [result["id"] for result in again["results"]] == [result["id"] for result in reversed(first["results"])]
    assert again["upsert"] == block(3)
    assert count(worker) == 3
    assert nearest(worker, "rsync")["payload"]["run"] == 2


def test_the_same_text_in_another_collection_is_another_point(worker: Client) -> None:
    """Ids from texts belong to their collection."""
    one = worker.good(job("same", collection="one"))["results"][0]["id"]
    two = worker.good(job("same", collection="two"))["results"][0]["id"]
    assert one != two


def test_every_kind_of_id_is_kept(worker: Client) -> None:
    """Numbers and UUIDs are ids as they are; any other string becomes a UUID and stays in the payload as `id`."""
    own = "6F2B1C0E-8D3A-5B47-9C61-0F7E4A92D815"
    ids: list[Any] = [7, 2**64 - 1, own, "1", "doc/ü 7"]
    texts = [f"text number {n}" for n in range(5)]
    answer = worker.good(job(*texts, ids=ids))
    derived = [str(uuid.uuid5(NAMESPACE, f"{NOTES}\0{name}")) for name in ("1", "doc/ü 7")]
    assert [result["id"] for result in answer["results"]] == [7, 2**64 - 1, own.lower(), *derived]
    assert count(worker) == 5
    search = {"operation": "search", "collection": NOTES, "queries": texts, "using": ["dense"], "limit": 1}
    hits = [result["hits"][0] for result in worker.good(search)["results"]]
    assert [hit["id"] for hit in hits] == [7, 2**64 - 1, own.lower(), *derived]
    assert [hit["payload"] for hit in hits] == [
        *({"text": text} for text in texts[:3]),
        {"text": texts[3], "id": "1"},
        {"text": texts[4], "id": "doc/ü 7"},
    ]


def test_the_number_1_and_the_string_1_are_two_points(worker: Client) -> None:
    """A number and a string are different ids, as they are different in JSON."""
    worker.good(job("a", "b", ids=[1, "1"]))
    assert count(worker) == 2
    assert worker.good({"operation": "delete", "collection": NOTES, "ids": ["1"]}) == {"deleted": 1}
    assert nearest(worker, "a")["id"] == 1


def test_a_point_is_replaced_by_its_id(worker: Client) -> None:
    """The same id with another text is the same point with new vectors."""
    worker.good(job("an old text", ids=["doc"], payloads=[{"old": True}]))
    worker.good(job("a new text", ids=["doc"], payloads=[{"new": True}]))
    assert count(worker) == 1
    assert nearest(worker, "text")["payload"] == {"new": True, "text": "a new text", "id": "doc"}


def test_a_kept_point_with_another_text_or_payload_is_named(worker: Client) -> None:
    """`compareKept` says which texts the collection has otherwise; new points are no difference."""
    worker.good(job("first", "second", "third", ids=[1, 2, 3], payloads=[{"n": 1}, {"n": 2}, {"n": 3}]))
    again = job(
        "first", "other", "third", "fourth",
        ids=[1, 2, 3, 4], payloads=[{"n": 1}, {"n": 2}, {"n": 9}, {}], mode="insertOnly", compareKept=True,
    )  # fmt: skip
    upsert = worker.good(again)["upsert"]
    assert (upsert["differing"], upsert["skipped"], upsert["stored"]) == ([1, 2], 3, 4)
    same = worker.good(job("fourth", ids=[4], mode="insertOnly", compareKept=True))
    assert "differing" not in same["upsert"]


def test_insert_only_leaves_existing_points_untouched(worker: Client) -> None:
    """`insertOnly` stores new points, skips existing ones, and counts both as stored."""
    worker.good(job("first", ids=[1], payloads=[{"version": 1}]))
    answer = worker.good(job("second", "third", ids=[1, 2], payloads=[{"version": 2}] * 2, mode="insertOnly"))
    assert answer["upsert"] == block(2, skipped=1)
    assert count(worker) == 2
    assert nearest(worker, "first")["payload"] == {"version": 1, "text": "first"}


def test_existing_points_are_not_embedded_again(observed: Client, watched: Watched) -> None:
    """An interrupted job that runs again with `insertOnly` embeds only the missing points."""
    texts = [f"text number {n}" for n in range(6)]
    observed.good(job(*texts[:4]))
    watched.engine.batches.clear()
    answer = observed.good(job(*texts, mode="insertOnly"))
    assert answer["upsert"] == block(6, skipped=4)
    assert sum(len(batch) for batch in watched.engine.batches) == 2
    assert [result["tokens"] for result in answer["results"]] == [
        result["tokens"] for result in observed.good(job(*texts))["results"]
    ]


def test_equal_texts_are_embedded_once(observed: Client, watched: Watched) -> None:
    """Points that merge are embedded once."""
    watched.engine.batches.clear()
    assert observed.good(job("same", "same", "same"))["upsert"] == block(3)
    assert [len(batch) for batch in watched.engine.batches] == [1]


def test_points_are_stored_while_others_are_embedded(watched: Watched, store: EdgeStore) -> None:
    """Points are stored before the last batch of their job is embedded."""
    stored = threading.Event()
    counts: list[int] = []

    def before(batch: int) -> None:
        if batch == 3:
            assert stored.wait(PATIENCE)
            counts.append(store.count(NOTES))

    with embedder_over(ObservedEngine(watched.engine, before)) as embedder:
        settings = Settings.from_environment(ENVIRONMENT)
        worker = Client(Operations(settings, embedder, ObservedStore(store, stored.set)))
        assert worker.good(job(*("word " * (480 + n) for n in range(24))))["upsert"] == block(24)
    (count,) = counts
    assert 0 < count < 24


def test_a_store_that_fails_stops_the_model(watched: Watched, store: EdgeStore) -> None:
    """When the store fails, the rest of the job is not embedded, and its points are reported."""
    refused = threading.Event()
    failing = ObservedStore(FailingStore(store, 0), refused.set)

    def before(batch: int) -> None:
        if batch == 3:
            assert refused.wait(PATIENCE)

    watched.engine.batches.clear()
    with embedder_over(ObservedEngine(watched.engine, before)) as embedder:
        worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, failing))
        answer = worker.error(job(*("word " * (400 + n) for n in range(100))), "store_unavailable")
    assert len(answer["details"]["upsert"]["rejected"]) == 100
    assert sum(len(batch) for batch in watched.engine.batches) < 100


def test_ids_can_be_derived_from_another_name(worker: Client, store: EdgeStore) -> None:
    """With `idScope`, texts, strings and chunks have the ids that they have in the collection of that name."""
    raw = job("by its text", LONG, ids=None, chunk=CHUNK)
    worker.good(raw)
    worker.good(job("named", ids=["x"]))
    before = count(worker)
    store.alias("live", NOTES)
    scoped = {"collection": "live", "idScope": NOTES}
    worker.good(job("by its text", LONG, chunk=CHUNK, **scoped))
    worker.good(job("named", ids=["x"], **scoped))
    assert count(worker) == before
    raw = {"operation": "delete", "collection": "live", "ids": ["x"], "idScope": NOTES}
    assert worker.good(raw) == {"deleted": 1}


def test_usage_counts_what_was_embedded(worker: Client) -> None:
    """Texts of existing points do not count."""
    first = worker.good(job(*TEXTS))
    assert first["usage"]["tokens"] > 0
    assert worker.good(job(*TEXTS, mode="insertOnly"))["usage"]["tokens"] == 0


def test_a_job_larger_than_the_queue_is_reported(watched: Watched, store: EdgeStore) -> None:
    """If a job has more tokens than the queue holds, every point is reported as rejected."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    answer = worker.error(job(*("word " * (400 + n) for n in range(250))), "invalid_request")
    assert answer["error"].startswith("texts: ")
    assert "QUEUE_TOKENS" in answer["error"]
    assert len(answer["details"]["upsert"]["rejected"]) == 250


def test_a_defect_in_the_store_does_not_affect_later_jobs(watched: Watched, store: EdgeStore) -> None:
    """The job fails with `internal` and its report, the queue is free again, and the next job succeeds."""
    defective = RaisingStore(store, ensure=ZeroDivisionError("the words of a user"))
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, defective))
    answer = worker.error(job(*("word " * (400 + n) for n in range(100))), "internal")
    assert len(answer["details"]["upsert"]["rejected"]) == 100
    assert watched.pool.waiting_tokens == 0
    defective.failures.clear()
    assert worker.good(job("one", "three"))["upsert"] == block(2)


def test_a_text_with_too_many_rows_is_rejected_with_advice(
    observed: Client, watched: Watched, small_multivectors: int
) -> None:
    """Only that text is rejected, before it is embedded, and its message names three solutions."""
    watched.engine.batches.clear()
    text = "word " * 100
    answer = observed.good(job(text, "short"))
    (rejected,) = answer["upsert"]["rejected"]
    assert (rejected["index"], rejected["code"]) == (0, "colbert_too_long")
    for named in (str(small_multivectors), "chunk", "colbertPooling", "vectors"):
        assert named in rejected["message"]
    assert sum(len(batch) for batch in watched.engine.batches) == 1
    assert observed.good({**job(text), "vectors": ["dense", "sparse"]})["upsert"] == block(1)


def test_too_many_rows_can_be_pooled(worker: Client, small_multivectors: int) -> None:
    """`colbertPooling: "mean"` stores as many unit-length rows as fit, and does not change shorter texts."""
    worker.good(job(LONG, "short text", ids=[1, 2], colbertPooling="mean"))
    raw = {"operation": "search", "collection": NOTES, "queries": ["topic"], "using": ["dense"], "withVectors": True}
    rows = {hit["id"]: np.array(hit["vectors"]["colbert"]) for hit in worker.good(raw)["results"][0]["hits"]}
    assert len(rows[1]) == small_multivectors
    np.testing.assert_allclose(np.linalg.norm(rows[1], axis=1), 1.0, atol=2e-3)
    assert len(rows[2]) == worker.good({"texts": ["short text"]})["results"][0]["tokens"] - 1


def test_the_text_goes_under_its_key(worker: Client) -> None:
    """`textKey` is the payload key of the text, and the caller's payload is unchanged."""
    payload = {"text": 5, "nested": {"list": [1, 2.5, None, True, {"ü": "🙂"}]}, "": "", "large": 2**63 - 1}
    worker.good(job("the passage", ids=[1], payloads=[payload], textKey="body"))
    assert nearest(worker, "passage")["payload"] == {**payload, "body": "the passage"}


def test_a_text_key_of_the_worker_is_an_error_of_the_request(observed: Client, watched: Watched) -> None:
    """A `textKey` under which the worker writes something else is an error before any text is embedded or stored."""
    watched.engine.batches.clear()
    answer = observed.error(job("one", "two", ids=["a", "b"], textKey="id"), "invalid_request")
    assert answer["error"].startswith("qdrant.textKey: 'id' is reserved")
    assert not watched.engine.batches
    observed.error({"operation": "count", "collection": NOTES}, "not_found")


def test_a_payload_may_have_an_id_if_the_worker_writes_none(worker: Client) -> None:
    """With numeric ids, the payload may have an `id` of its own."""
    worker.good(job("one", "two", ids=[1, 2], payloads=[{"id": "mine"}, {}]))
    assert count(worker) == 2


def test_the_same_text_twice_is_one_point(worker: Client) -> None:
    """Equal points of a job merge: all count as stored, and one is stored."""
    assert worker.good(job("same", "same", "other"))["upsert"] == block(3)
    assert count(worker) == 2


def test_two_different_points_cannot_share_an_id(worker: Client) -> None:
    """The first point keeps the id, a later one is rejected with its index, and the others are stored."""
    answer = worker.good(job("one", "two", "three", ids=["a", "a", "b"]))
    rejected = answer["upsert"]["rejected"]
    assert [(point["index"], point["code"]) for point in rejected] == [(1, "duplicate_id")]
    assert "point 0" in rejected[0]["message"]
    assert answer["upsert"]["stored"] == 2
    assert count(worker) == 2
    assert nearest(worker, "one")["payload"]["text"] == "one"


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        ({"a": {"b": [SURROGATE]}}, "payload.a.b[0]"),
        ({"a": {SURROGATE: 1}}, "payload.a"),
        ({"price": float("nan")}, "payload.price"),
        ({"price": [float("inf")]}, "payload.price[0]"),
        ({"large": 2**63}, "payload.large"),
        ({"deep": json.loads("[" * 30 + "]" * 30)}, "must be nested at most"),
    ],
)
def test_only_an_invalid_payload_is_rejected(worker: Client, payload: dict[str, Any], path: str) -> None:
    """A payload that Qdrant cannot hold is rejected with its index and path; other points are stored."""
    answer = worker.good(job(*TEXTS, payloads=[{}, payload, {}]))
    (rejected,) = answer["upsert"]["rejected"]
    assert (rejected["index"], rejected["code"]) == (1, "invalid_payload")
    assert path in rejected["message"]
    assert answer["upsert"]["stored"] == 2
    assert count(worker) == 2


@pytest.mark.parametrize("text", ["", " ", "\n\t  "])
def test_an_empty_text_can_be_stored_and_found(worker: Client, text: str) -> None:
    """An empty text has no sparse weights; it is stored and found with its other vectors."""
    assert worker.good(job(text, *TEXTS, ids=[1, 2, 3, 4]))["upsert"] == block(4)
    hit = nearest(worker, text, withVectors=True)
    assert hit["id"] == 1
    assert hit["payload"] == {"text": text}
    assert set(hit["vectors"]) == {"dense", "colbert"}


@pytest.mark.parametrize("kinds", [["dense"], ["dense", "sparse"], ["colbert", "dense"]])
def test_only_the_requested_vectors_are_stored(worker: Client, kinds: list[str]) -> None:
    """A point has the vectors of `vectors`."""
    worker.good({**job(*TEXTS), "vectors": kinds})
    assert set(nearest(worker, "rsync", withVectors=True)["vectors"]) == set(kinds)


def test_a_text_without_any_vector_is_rejected(worker: Client) -> None:
    """An empty text with only a sparse vector could never be found, so it is rejected."""
    answer = worker.good({**job("", "rsync"), "vectors": ["sparse"]})
    (rejected,) = answer["upsert"]["rejected"]
    assert (rejected["index"], rejected["code"]) == (0, "invalid_vector")
    assert count(worker) == 1


def test_a_job_without_a_collection_uses_the_default(serve: Serve) -> None:
    """`QDRANT_COLLECTION` is the collection of every request without one."""
    worker = serve(QDRANT_COLLECTION="default")
    answer = worker.good({"texts": ["a"], "qdrant": {}})
    assert answer["upsert"]["collection"] == "default"
    assert worker.good({"operation": "count"}) == {"count": 1}
    assert len(worker.good({"operation": "search", "queries": ["a"]})["results"][0]["hits"]) == 1
    assert worker.good({"operation": "delete", "ids": [5]}) == {"deleted": 0}


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"texts": ["a"], "qdrant": {}}, "qdrant.collection"),
        ({"operation": "search", "queries": ["a"]}, "collection"),
        ({"operation": "count"}, "collection"),
        ({"operation": "delete", "ids": [1]}, "collection"),
    ],
)
def test_without_a_default_a_collection_must_be_named(worker: Client, raw: Json, field: str) -> None:
    """Without `QDRANT_COLLECTION` a request must name a collection."""
    answer = worker.error(raw, "invalid_request")
    assert answer["error"].startswith(f"{field} is required")
    assert "QDRANT_COLLECTION" in answer["error"]


def test_only_allowed_collections_are_served(serve: Serve) -> None:
    """With an allow-list, no job can read, write or delete in other collections."""
    worker = serve(QDRANT_COLLECTIONS="notes,papers")
    worker.good(job("a"))
    for raw in (
        {"texts": ["a"], "qdrant": {"collection": "secrets"}},
        {"operation": "search", "queries": ["a"], "collection": "secrets"},
        {"operation": "count", "collection": "secrets"},
        {"operation": "delete", "ids": [1], "collection": "secrets"},
    ):
        answer = worker.error(raw, "invalid_request")
        assert "collection" in answer["error"]
        assert "papers" not in answer["error"]


@pytest.mark.parametrize(
    "raw",
    [
        {"operation": "search", "queries": ["a"], "collection": NOTES},
        {"operation": "count", "collection": NOTES},
        {"operation": "delete", "ids": [1], "collection": NOTES},
    ],
)
def test_a_missing_collection_is_not_found(worker: Client, raw: Json) -> None:
    """Only an ingest creates a collection; every other operation fails with `not_found`."""
    answer = worker.error(raw, "not_found")
    assert NOTES in answer["error"]
    assert answer["retryable"] is False


def test_a_collection_of_another_model_is_left_as_it_is(worker: Client, store: EdgeStore) -> None:
    """A collection with another schema is an error that lists every difference, and is not changed."""
    store.ensure(NOTES, schema_for(8, 4))
    answer = worker.error(job(*TEXTS), "schema_mismatch")
    assert answer["details"]["differences"] == [
        {"field": "dense.size", "found": 8, "wanted": 192},
        {"field": "colbert.size", "found": 4, "wanted": 192},
    ]
    for named in ("dense.size", "colbert.size", "8", "4", "192"):
        assert named in answer["error"]
    assert [point["index"] for point in answer["details"]["upsert"]["rejected"]] == [0, 1, 2]
    assert {point["code"] for point in answer["details"]["upsert"]["rejected"]} == {"schema_mismatch"}
    assert count(worker) == 0


def test_an_answer_that_would_be_too_large_stores_nothing(serve: Serve) -> None:
    """The size is checked before the first point is stored, so that a failed job has no effect."""
    worker = serve(MAX_RESPONSE_MB="0.02")
    worker.good(job("before"))
    worker.error({**job("word " * 200), "returnVectors": True}, "response_too_large")
    assert count(worker) == 1
    worker.good(job("word " * 200))
    assert count(worker) == 2


def test_a_rejected_job_has_its_message_once(serve: Serve) -> None:
    """Each point is reported with index and code; the message of the job is only in its error."""
    answer = serve(MAX_RESPONSE_MB="0.02").error(
        {**job(*map(str, range(300))), "returnVectors": True}, "response_too_large"
    )
    rejected = answer["details"]["upsert"]["rejected"]
    assert [(point["index"], point["code"]) for point in rejected] == [(n, "response_too_large") for n in range(300)]
    assert not any(answer["error"] in point["message"] for point in rejected)


@pytest.mark.parametrize("key", ["k", "ü", "\0"])
def test_an_answer_fits_even_if_every_point_is_rejected(serve: Serve, key: str) -> None:
    """The reserve for the report suffices for the longest rejections, since storing cannot be undone."""
    worker = serve(MAX_RESPONSE_MB="0.02")
    deep: Any = float("nan")
    for _ in range(20):
        deep = {key * 60: deep}
    texts = [f"text {n}" for n in range(30)]
    raw = job(*texts, payloads=[{"p": deep}] * 30)
    worker.error(job(*texts, *texts, payloads=[{"p": deep}] * 60), "response_too_large")
    answer = worker.good(raw)
    assert len(answer["upsert"]["rejected"]) == 30
    assert all(point["message"].startswith("payload.p.") for point in answer["upsert"]["rejected"])
    assert len(json.dumps(answer, ensure_ascii=False).encode()) <= 20_000


@pytest.mark.parametrize("upserts", [None, 0, 1])
def test_a_store_that_fails_is_reported(serve: Serve, store: EdgeStore, upserts: int | None) -> None:
    """When the store stops answering, the job is retryable, and its report covers every point."""
    worker = serve(store=FailingStore(store, upserts))
    texts = [f"text {n}" for n in range(4)]
    answer = worker.error(job(*texts, payloads=[{"pad": LARGE}] * 4), "store_unavailable")
    assert answer["retryable"] is True
    report = answer["details"]["upsert"]
    assert report["collection"] == NOTES
    assert report["stored"] + len(report["rejected"]) == 4
    assert {point["code"] for point in report["rejected"]} == {"store_unavailable"}
    rejected = [point["index"] for point in report["rejected"]]
    if upserts:
        assert 0 < report["stored"] < 4
        assert rejected == sorted(rejected)
        assert store.count(NOTES) == report["stored"]
    else:
        assert rejected == [0, 1, 2, 3]


def test_a_retry_after_a_failure_completes_the_job(serve: Serve, store: EdgeStore) -> None:
    """Sending the job again stores the missing points and duplicates none."""
    texts = [f"text {n}" for n in range(4)]
    raw = job(*texts, payloads=[{"pad": LARGE}] * 4)
    serve(store=FailingStore(store, 1)).error(raw, "store_unavailable")
    worker = serve()
    assert worker.good(raw)["upsert"] == block(4)
    assert count(worker) == 4


def test_a_store_that_cannot_be_opened_does_not_break_embedding(
    embedder: Embedder, store: EdgeStore, tmp_path: Path
) -> None:
    """If another process owns the directory, jobs that need the store fail, and others are served."""
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_PATH": str(tmp_path / "edge")})
    worker = Client(Operations(settings, embedder))
    answer = worker.error(job(*TEXTS), "store_unavailable")
    assert "QDRANT_PATH" in answer["error"]
    assert str(tmp_path) not in str(answer)
    assert [point["index"] for point in answer["details"]["upsert"]["rejected"]] == [0, 1, 2]
    worker.error({"operation": "count", "collection": NOTES}, "store_unavailable")
    worker.good({"texts": ["a"]})


def test_concurrent_jobs_share_a_new_collection(worker: Client) -> None:
    """Concurrent first jobs create the collection once, and all of their points are in it."""
    answers = worker.together([job(f"text {n}", f"other {n}") for n in range(12)])
    assert [answer["upsert"] for answer in answers] == [block(2)] * 12
    assert count(worker) == 24


def test_only_a_text_that_the_model_cannot_encode_fails(observed: Client) -> None:
    """The result of that text is an error, never NaN, and the other texts have vectors."""
    first, second, third = observed.good({"texts": ["one", "a zebra", "three"]})["results"]
    assert set(first) == set(third) == {"text", "tokens", "truncated", "dense", "sparse", "colbert"}
    assert set(second) == {"text", "error", "error_code", "retryable", "details"}
    assert second["text"] == "a zebra"
    assert second["error_code"] == "model_failure"
    assert "dense" in second["error"]


def test_a_vector_that_was_not_requested_cannot_fail(observed: Client) -> None:
    """A text whose dense vector would be NaN still has its sparse vector."""
    (result,) = observed.good({"texts": ["a zebra"], "vectors": ["sparse"]})["results"]
    assert set(result) == {"text", "tokens", "truncated", "sparse"}


def test_a_text_that_the_model_cannot_encode_is_not_stored(observed: Client) -> None:
    """A text that the model cannot encode is rejected with its index, and the others are stored."""
    answer = observed.good(job("one", "a zebra", "three"))
    (rejected,) = answer["upsert"]["rejected"]
    assert (rejected["index"], rejected["code"]) == (1, "model_failure")
    assert answer["upsert"]["stored"] == 2
    assert count(observed) == 2


def test_a_query_that_the_model_cannot_encode_is_named(observed: Client) -> None:
    """A search with such a query is an error that names the query."""
    observed.good(job("one"))
    raw = {"operation": "search", "collection": NOTES, "queries": ["fine", "zebra"]}
    assert observed.error(raw, "model_failure")["error"].startswith("queries[1]")


def test_more_ingests_than_the_limit_are_rejected(watched: Watched, store: EdgeStore) -> None:
    """An ingest over the limit is a retryable error with the limit; running ingests are not affected."""
    settings = Settings.from_environment(ENVIRONMENT)
    access = StoreAccess(settings, store, lambda: None, ingests_max=2)
    operations = Operations(settings, watched.embedder, store)
    collections = Collections(settings, access, operations.collections.wanted)
    check = ModelCheck(watched.embedder, access, ModelIdentity("mini"), enabled=False)
    ingest = Ingest(watched.embedder, access, collections, check, operations.limits, memory=operations.memory)

    def stored(text: str) -> asyncio.Task[IngestResult]:
        return asyncio.create_task(ingest(IngestRequest([text], vectors=("dense",), collection=NOTES)))

    async def body() -> None:
        watched.engine.gate.clear()
        before = len(watched.engine.batches)
        running = [stored("in the model")]
        await until(lambda: len(watched.engine.batches) > before)
        running.append(stored("behind it"))
        await until(lambda: watched.pool.waiting_tokens > 0)
        with pytest.raises(IngestFailed) as refusal:
            await stored("one too many")
        assert isinstance(refusal.value.cause, Overloaded)
        assert refusal.value.message == "2 ingest jobs are already running (limit 2); retry later"
        assert len(refusal.value.report.rejected) == 1
        watched.engine.gate.set()
        assert [result.report.stored for result in await asyncio.gather(*running)] == [1, 1]
        assert (await stored("one too many")).report.stored == 1

    try:
        asyncio.run(body())
    finally:
        watched.engine.gate.set()
