"""Collections that somebody deletes, replaces or renames while a worker uses them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]
import pytest
from qdrant_client import QdrantClient

from embedder import Embedder
from qdrant_sink import Point
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE, Client, Json
from tests.service.ingests import CHUNK, LONG, NOTES, count, job
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import parts

TEXTS = [f"text {n}" for n in range(12)]
SEARCH = {"operation": "search", "collection": NOTES, "queries": ["fox"], "using": ["dense"]}


class Changing(ServerStore):
    """A server in whose collections something happens between two writes.

    Attributes:
        double: the server.
        before: number of a write, and the function that is called before it.
    """

    def __init__(self, path: Path) -> None:
        self.double = GrpcDouble(path)
        super().__init__("http://127.0.0.1:9", grpc_port=self.double.port, timeout_s=5, deadline_s=3.0, pause_s=0.02)
        self.before: tuple[int, Callable[[], object]] = (0, lambda: None)
        self._numbers = itertools.count(1)
        self._changed = threading.Event()
        self._written = threading.Semaphore(0)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`. The change waits for earlier writes, and later writes wait for the change."""
        number, change = self.before
        current = next(self._numbers)
        if current == number:
            for _ in range(number - 1):
                assert self._written.acquire(timeout=PATIENCE)
            change()
            self._changed.set()
        if current > number > 0:
            assert self._changed.wait(PATIENCE)
        super().upsert(collection, points, insert_only=insert_only)
        self._written.release()

    def drop(self, collection: str) -> None:
        """Delete a collection behind the worker's back."""
        with self.double.lock:
            del self.double.collections[collection]
            del self.double.indexes[collection]

    def close(self) -> None:
        """Stop the server, too."""
        super().close()
        self.double.stop()


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Changing]:
    """An empty store."""
    store = Changing(tmp_path)
    yield store
    store.close()


@pytest.fixture
def worker(changing: Changing, embedder: Embedder) -> Client:
    """A worker that sends four points in a request."""
    return Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, changing, batch_points=4))


def upsert_block(answer: Json) -> Json:
    """The report of a job that failed."""
    block: Json = answer["details"]["upsert"]
    assert block["stored"] + len(block["rejected"]) == len(TEXTS)
    return block


@pytest.mark.parametrize("at", [2, 3])
def test_points_of_a_collection_that_was_made_again_are_not_counted(
    worker: Client, changing: Changing, at: int
) -> None:
    """What was acknowledged before a collection was deleted and created again is reported as lost."""

    def make_again() -> None:
        changing.drop(NOTES)
        changing.ensure(NOTES, worker.operations.collections.wanted)

    changing.before = (at, make_again)
    answer = worker.error(job(*TEXTS), "not_found")
    block = upsert_block(answer)
    assert block["stored"] == count(worker) < len(TEXTS)
    assert answer["retryable"]
    assert "send the job again" in answer["error"]
    assert worker.good(job(*TEXTS))["upsert"]["stored"] == count(worker) == len(TEXTS)


@pytest.mark.parametrize("chunk", [None, CHUNK], ids=["points", "chunks"])
def test_a_job_into_a_deleted_collection_reports_what_is_there(
    worker: Client, changing: Changing, chunk: Json | None
) -> None:
    """A collection that is deleted in the middle is made again with every point, or none counts as stored."""
    changing.before = (3, lambda: changing.drop(NOTES))
    fields = {} if chunk is None else {"chunk": chunk}
    answer = worker(job(*TEXTS, **fields))
    if "error" in answer:
        assert (answer["error_code"], answer["retryable"]) == ("not_found", True)
        assert upsert_block(answer)["stored"] == 0
        assert answer["error"].startswith(f"{len(TEXTS)} of {len(TEXTS)} points were not stored")
        worker.error({"operation": "count", "collection": NOTES}, "not_found")
    else:
        assert answer["upsert"]["stored"] == count(worker) == len(TEXTS)
    assert worker.good(job(*TEXTS, **fields))["upsert"]["stored"] == count(worker) == len(TEXTS)


def test_a_job_through_an_alias_that_was_moved_is_sent_again(worker: Client, changing: Changing) -> None:
    """The points are where nobody looks for them, so that none counts as stored; the job can be sent again."""
    schema = worker.operations.collections.wanted
    changing.ensure("old", schema)
    changing.ensure("new", schema)
    changing.alias(NOTES, "old")
    changing.before = (2, lambda: changing.alias(NOTES, "new"))
    answer = worker.error(job(*TEXTS), "not_found")
    assert upsert_block(answer)["stored"] == 0
    assert answer["retryable"]
    assert all(name in answer["error"] for name in ("'old'", "'new'", f"'{NOTES}'"))
    assert worker.good(job(*TEXTS))["upsert"]["stored"] == count(worker) == changing.count("new") == len(TEXTS)


def test_chunks_that_were_deleted_meanwhile_are_not_counted(worker: Client, changing: Changing) -> None:
    """A deletion between two writes of a document leaves a true report."""

    def delete_some() -> None:
        worker.good({"operation": "delete", "collection": NOTES, "docIds": ["a"]})

    changing.before = (2, delete_some)
    answer = worker.good(job(LONG, ids=["a"], chunk=CHUNK))
    block = answer["upsert"]
    assert block["stored"] == count(worker) < answer["results"][0]["chunks"]
    assert {point["code"] for point in block["rejected"]} == {"not_found"}


def test_a_search_in_a_collection_that_was_made_again_for_another_model_is_refused(
    worker: Client, changing: Changing
) -> None:
    """The next search says that the collection has another schema, however soon it comes."""
    worker.good(job("a fox", "a dog", "a cat", "a bird"))
    assert worker.good(SEARCH)["results"][0]["hits"][0]["payload"]["text"] == "a fox"
    schema = worker.operations.collections.wanted
    changing.drop(NOTES)
    changing.ensure(NOTES, replace(schema, dense=replace(parts(schema)[0], size=16)))
    answer = worker.error(SEARCH, "schema_mismatch")
    assert "dense.size" in answer["error"]
    worker.error({**SEARCH, "explain": True}, "schema_mismatch")
    changing.drop(NOTES)
    worker.error(SEARCH, "not_found")
    changing.ensure(NOTES, schema)
    assert worker.good(SEARCH)["results"] == [{"hits": []}]


def test_a_search_in_a_collection_that_was_made_again_goes_by_what_it_has_now(
    worker: Client, changing: Changing
) -> None:
    """Other distances and fewer kinds hold from the next search on, whatever was remembered."""
    worker.good(job("a fox", "a dog", "a cat", "a bird"))
    same = {**SEARCH, "queries": ["a fox"]}
    searches = [same, {**same, "using": None}]
    assert [worker.good(search)["results"][0]["hits"][0]["payload"]["text"] for search in searches] == ["a fox"] * 2
    schema = worker.operations.collections.wanted
    changing.drop(NOTES)
    changing.ensure(NOTES, replace(schema, dense=replace(parts(schema)[0], distance="euclid"), sparse=None))
    worker.good(job("a fox", "a dog", "a cat", "a bird"))
    for search in searches:
        answer = worker.good(search)
        scores = [hit["score"] for hit in answer["results"][0]["hits"]]
        assert scores == sorted(scores)
        assert scores[0] == pytest.approx(0, abs=1e-3)
        assert answer["recognised"] == {"kinds": ["dense", "colbert"], "distance": {"dense": "euclid"}}


@pytest.fixture
def aliased(changing: Changing, worker: Client, embedder: Embedder) -> Client:
    """A worker, on a server with a plain collection, one of LangChain, and an alias of the plain one."""
    target = {"ids": ["a"], "idScope": "both"}
    worker.good(job("a fox", collection="plain", **target))
    config = {"QDRANT_COLLECTION_CONFIG": '{"layout": "langchain"}'}
    maker = Client(Operations(Settings.from_environment(ENVIRONMENT | config), embedder, changing))
    maker.good(job("a fox", collection="chain", **target))
    changing.alias(NOTES, "plain")
    return worker


@pytest.mark.parametrize("method", ["Scroll", "Upsert"])
@pytest.mark.parametrize("warm", [False, True])
def test_points_have_the_form_of_the_collection_in_which_they_are(
    aliased: Client, changing: Changing, method: str, warm: bool
) -> None:
    """Whenever an alias is moved in a job, no collection gets a point that its readers cannot read."""
    if warm:
        aliased.good(job("a cat"))
    changing.double.before[method] = lambda: changing.alias(NOTES, "chain")
    answer = aliased.error(job("a bird"), "not_found")
    assert answer["retryable"]
    assert aliased.good(job("a bird"))["upsert"]["stored"] == 1
    for name, key in (("plain", "text"), ("chain", "page_content")):
        points = aliased.good({"operation": "points", "collection": name})["points"]
        assert all(key in point["payload"] for point in points)


def test_chunks_are_deleted_where_the_alias_leads(aliased: Client, changing: Changing) -> None:
    """A document is looked for in the collection, and in the form, that the alias led to at the start."""
    target = {"ids": ["long"], "idScope": "both", "chunk": CHUNK}
    stored = [aliased.good(job(LONG, collection=name, **target))["upsert"]["stored"] for name in ("plain", "chain")]
    changing.alias(NOTES, "chain")
    changing.double.before["Scroll"] = lambda: changing.alias(NOTES, "plain")
    delete = {"operation": "delete", "collection": NOTES, "docIds": ["long"], "idScope": "both"}
    assert aliased.good(delete) == {"deleted": stored[1]}
    assert aliased.good(delete) == {"deleted": stored[0]}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("fields", [{"queries": ["a fox"]}, {"like": {"positive": ["a"], "idScope": "both"}}])
def test_a_search_during_which_an_alias_is_moved_is_answered(
    aliased: Client, changing: Changing, fields: Json, warm: bool
) -> None:
    """The new collection answers, though its vectors have other names."""
    search = {"operation": "search", "collection": NOTES, **fields}
    if warm:
        assert "recognised" not in aliased.good(search)
    changing.double.before["QueryBatch"] = lambda: changing.alias(NOTES, "chain")
    answer = aliased.good(search)
    assert answer["recognised"]["layout"] == "langchain"
    assert all("page_content" in hit["payload"] for hit in answer["results"][0]["hits"])


def test_a_refusal_that_no_change_explains_is_the_answer(aliased: Client, changing: Changing) -> None:
    """The search is not done again, and the error of the server is shown."""
    changing.double.fail("QueryBatch", grpc.StatusCode.INVALID_ARGUMENT)
    aliased.error({"operation": "search", "collection": NOTES, "queries": ["a fox"]}, "store_rejected")
    assert changing.double.calls.count("QueryBatch") == 1


def test_searches_that_are_answered_in_part_are_sent_again(
    worker: Client, changing: Changing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server on which the collection is being created answers with fewer results than there are queries."""
    worker.good(job("a fox"))
    ask = QdrantClient.query_batch_points
    parts_of_answers = iter([0, 1])

    def answer(*arguments: Any, **more: Any) -> Any:
        return ask(*arguments, **more)[: next(parts_of_answers, None)]

    monkeypatch.setattr(QdrantClient, "query_batch_points", answer)
    results = worker.good({**SEARCH, "queries": ["a fox", "a cat"]})["results"]
    assert [hit["payload"]["text"] for result in results for hit in result["hits"]] == ["a fox"] * 2
