"""Recovery from stores that change or fail: no text is embedded in vain, and no point is lost."""

from __future__ import annotations

import shutil
from pathlib import Path

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore, RaisingStore, Watched
from tests.sink.samples import schema_for

COUNT: Json = {"operation": "count", "collection": "notes"}


def job(*texts: str) -> Json:
    """A job that stores these texts."""
    return {"texts": list(texts), "isPassage": True, "qdrant": {"collection": "notes"}}


def test_a_removed_collection_is_created_again(worker: Client, store: EdgeStore, tmp_path: Path) -> None:
    """The next ingest after the removal of a collection creates it again and loses no point."""
    worker.good(job("one", "two"))
    shutil.rmtree(tmp_path / "edge" / "notes")
    worker.error(COUNT, "not_found")
    answer = worker.good(job("three", "four", "five"))
    assert answer["upsert"] == {"collection": "notes", "stored": 3, "skipped": 0, "rejected": []}
    assert worker.good(COUNT) == {"count": 3}


def test_a_job_that_cannot_be_stored_is_not_embedded(watched: Watched, store: EdgeStore) -> None:
    """An unavailable store is an error before the model runs."""
    settings = Settings.from_environment(ENVIRONMENT)
    worker = Client(Operations(settings, watched.embedder, FailingStore(store, None)))
    watched.engine.batches.clear()
    answer = worker.error(job("one", "two"), "store_unavailable")
    assert watched.engine.batches == []
    report = answer["details"]["upsert"]
    assert report["stored"] == 0
    assert [point["index"] for point in report["rejected"]] == [0, 1]


def test_an_answer_that_cannot_fit_is_not_embedded(watched: Watched, store: EdgeStore) -> None:
    """If the texts alone exceed the limit, the job fails before the model runs, with advice."""
    settings = Settings.from_environment({**ENVIRONMENT, "MAX_RESPONSE_MB": "0.01"})
    worker = Client(Operations(settings, watched.embedder, store))
    watched.engine.batches.clear()
    raw = job("word " * 3000)
    answer = worker.error(raw, "response_too_large")
    assert watched.engine.batches == []
    assert "includeText false" in answer["error"]
    assert worker.good({**raw, "includeText": False})["upsert"]["stored"] == 1


def test_a_defect_of_the_store_is_reported(serve: Serve, store: EdgeStore) -> None:
    """An unexpected error has a report that counts every point."""
    answer = serve(store=RaisingStore(store, upsert=ZeroDivisionError("the words of a user"))).error(
        job("one", "two"), "internal"
    )
    assert "words" not in answer["error"]
    report = answer["details"]["upsert"]
    assert report["stored"] + len(report["rejected"]) == 2


def test_a_search_cannot_ask_for_more_than_a_worker_holds(worker: Client) -> None:
    """Queries times hits is bounded, and the message names the number and the limit."""
    raw = {"operation": "search", "collection": "notes", "queries": ["a"] * 200, "limit": 10_000}
    message = worker.error(raw, "invalid_request")["error"]
    assert "got 2000000" in message
    assert "at most 1000000 hits" in message


def test_a_refused_job_creates_no_collection(serve: Serve) -> None:
    """A rejected job does not even create an empty collection."""
    worker = serve(MAX_RESPONSE_MB="0.02")
    raw = job(*(f"text {n}" for n in range(20)))
    worker.error({**raw, "returnVectors": True}, "response_too_large")
    worker.error(COUNT, "not_found")


def test_vectors_that_cannot_fit_are_not_computed(watched: Watched, store: EdgeStore) -> None:
    """An answer that is certain to exceed the limit is an error from the number of tokens alone."""
    settings = Settings.from_environment({**ENVIRONMENT, "MAX_RESPONSE_MB": "0.1"})
    worker = Client(Operations(settings, watched.embedder, store))
    watched.engine.batches.clear()
    answer = worker.error({"texts": ["a b c d " * 20] * 100, "vectors": ["colbert"]}, "response_too_large")
    assert watched.engine.batches == []
    assert answer["details"]["limit"] == 100_000
    assert "base64" in answer["error"]


def test_a_collection_of_another_model_cannot_be_searched(worker: Client, store: EdgeStore) -> None:
    """A collection of another model is not searched, not even by sparse vectors, whose ids are other tokens."""
    store.ensure("notes", schema_for(8, 8))
    raw = {"operation": "search", "collection": "notes", "queries": ["a"], "using": ["sparse"]}
    message = worker.error(raw, "schema_mismatch")["error"]
    assert "192" in message
    assert "8" in message


def test_a_batch_holds_no_more_texts_of_a_job_than_it_asks_for(watched: Watched, store: EdgeStore) -> None:
    """No batch has more texts of a job than its `batchSize`."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    watched.engine.batches.clear()
    worker.good({"texts": [f"text {n}" for n in range(7)], "batchSize": 3})
    assert sorted(len(batch) for batch in watched.engine.batches) == [1, 3, 3]


def test_a_local_model_is_named_without_its_path(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Answers and labels name the directory of a local checkpoint, and never the path to it."""
    model = tmp_path / "somebody" / "my-model"
    model.mkdir(parents=True)
    settings = Settings.from_environment({**ENVIRONMENT, "MODEL_ID": str(model)})
    operations = Operations(settings, embedder, store)
    assert Client(operations).good({"texts": ["a"]})["model"] == "my-model"
    assert "somebody" not in operations.model_label
