"""Search by stored points, grouped search, and selections of payload and vectors."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder import Embedder
from qdrant_sink import PayloadKeys
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import Watched, WatchedStore
from tests.service.wrappers import SpoiledStore

NOTES = "notes"
TEXTS = (
    "rsync copies only the changed parts of files to another machine",
    "rclone copies files to a cloud and only those that have changed",
    "PostgreSQL is a relational database server",
    "MariaDB is a relational database server that descends from MySQL",
    "Audacity records and edits sound",
)
IDS = ("rsync", 7, "6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815", "maria", 9)
SEARCH = {"operation": "search", "collection": NOTES}
EVERY_KIND = [["dense"], ["sparse"], ["colbert"], ["dense", "sparse"], ["dense", "sparse", "colbert"]]


@pytest.fixture(scope="module")
def notes_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeStore]:
    """The store of the five notes, which no test changes."""
    opened = EdgeStore(tmp_path_factory.mktemp("notes"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def notes(embedder: Embedder, notes_store: EdgeStore) -> Client:
    """A worker with five notes."""
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, notes_store))
    payloads = [{"topic": topic, "at": {"n": n}} for n, topic in enumerate(["sync", "sync", "db", "db", "sound"])]
    stored = {"collection": NOTES, "ids": list(IDS), "payloads": payloads}
    answer = worker.good({"texts": list(TEXTS), "isPassage": True, "qdrant": stored})
    assert answer["upsert"]["stored"] == len(TEXTS)
    return worker


def _texts(answer: Json) -> list[str]:
    return [hit["payload"]["text"] for hit in answer["results"][0]["hits"]]


@pytest.mark.parametrize("using", EVERY_KIND)
def test_a_stored_point_finds_its_neighbour(notes: Client, using: list[str]) -> None:
    """`like` accepts ids of every kind, and excludes the example from the hits."""
    for n, neighbour in ((0, 1), (1, 0), (2, 3), (3, 2)):
        answer = notes.good({**SEARCH, "like": {"positive": [IDS[n]]}, "using": using})
        texts = _texts(answer)
        assert texts[0] == TEXTS[neighbour]
        assert TEXTS[n] not in texts
        assert answer["usage"] == {"tokens": 0}


def test_a_search_by_a_point_is_the_search_by_its_text(notes: Client) -> None:
    """A search by a point has the hits and scores of a search by its text, without the example."""
    for fields in ({}, {"using": ["dense"]}, {"using": ["dense"], "rerank": "colbert"}, {"using": ["sparse"]}):
        without = {"must_not": [{"has_id": [7]}]}
        [by_text] = notes.good({**SEARCH, "queries": [TEXTS[1]], "filter": without, **fields})["results"]
        [by_point] = notes.good({**SEARCH, "like": {"positive": [7]}, **fields})["results"]
        assert [hit["id"] for hit in by_point["hits"]] == [hit["id"] for hit in by_text["hits"]]
        scores = [hit["score"] for hit in by_text["hits"]]
        assert [hit["score"] for hit in by_point["hits"]] == pytest.approx(scores, abs=0.02)


def test_negative_examples_lower_similar_hits(notes: Client) -> None:
    """With two topics of positive examples, the topic with a negative example comes last."""
    both = {"positive": ["rsync", "maria"]}
    less = {**both, "negative": [IDS[2]]}
    for using in (["dense"], ["dense", "sparse"]):
        texts = _texts(notes.good({**SEARCH, "like": less, "using": using}))
        assert texts[0] == TEXTS[1]
        assert TEXTS[2] not in texts
    assert set(_texts(notes.good({**SEARCH, "like": both, "limit": 2}))) == {TEXTS[1], TEXTS[2]}


def test_the_filter_holds_beside_the_examples(notes: Client) -> None:
    """The caller's filter and the exclusion of the example both apply."""
    where = {"must_not": [{"key": "topic", "match": {"value": "sync"}}]}
    texts = _texts(notes.good({**SEARCH, "like": {"positive": ["maria"]}, "filter": where}))
    assert sorted(texts) == sorted([TEXTS[2], TEXTS[4]])


def test_missing_examples_are_named(notes: Client) -> None:
    """Missing examples are `not_found`; the message names their fields, the details their ids."""
    like = {"positive": ["rsync", "gone"], "negative": [99]}
    answer = notes.error({**SEARCH, "like": like}, "not_found")
    assert answer["error"] == "like.positive[1], like.negative[0]: not found in collection 'notes'"
    assert answer["details"] == {"collection": "notes", "ids": ["gone", 99]}
    twice = {"positive": ["rsync", 7], "negative": [7]}
    same = notes.error({**SEARCH, "like": twice}, "invalid_request")
    assert same["error"] == "like.negative[0]: must not be the same point as like.positive[1]"
    unlike = {"positive": [7], "negative": ["rsync"]}
    refused = notes.error({**SEARCH, "like": unlike, "rerank": "colbert"}, "invalid_request")
    assert refused["error"].startswith("like.negative")


def test_examples_are_found_in_their_scope(worker: Client) -> None:
    """`idScope` derives the ids of examples from another name than the collection's."""
    worker.good({"texts": list(TEXTS), "qdrant": {"collection": NOTES, "ids": list("abcde"), "idScope": "papers"}})
    like = {"positive": ["a"], "negative": ["c"], "idScope": "papers"}
    assert _texts(worker.good({**SEARCH, "like": like}))[0] == TEXTS[1]
    del like["idScope"]
    assert worker.error({**SEARCH, "like": like}, "not_found")["details"]["ids"] == ["a", "c"]


@pytest.mark.parametrize("asked", [{"queries": ["one"]}, {"like": {"positive": [1]}}, {"queries": ["a zebra"]}])
def test_a_missing_collection_is_the_error_of_a_search(watched: Watched, tmp_path: Path, asked: Json) -> None:
    """Nothing is searched in a missing collection, and its error comes first, also where the model fails meanwhile."""
    store = WatchedStore(tmp_path / "none")
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), watched.embedder, store))
    answer = worker.error({**SEARCH, **asked}, "not_found")
    assert "'notes'" in answer["error"]
    assert store.plans == []
    store.close()


def test_a_missing_index_does_not_prevent_searches(serve: Serve, notes: Client, notes_store: EdgeStore) -> None:
    """A collection without a payload index of the config can be searched."""
    assert notes.good({**SEARCH, "queries": ["database"]})["results"]
    newer = serve(store=notes_store, QDRANT_COLLECTION_CONFIG='{"payloadIndexes": {"topic": "keyword"}}')
    assert len(newer.good({**SEARCH, "queries": ["database"], "limit": 2})["results"][0]["hits"]) == 2


@pytest.fixture(scope="module")
def documents(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A worker with one long document in chunks and two short ones."""
    store = EdgeStore(tmp_path_factory.mktemp("documents"))
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    long = " ".join(f"rsync copies changed parts of file {n} to another machine." for n in range(200))
    texts = [long, TEXTS[2], TEXTS[4]]
    target = {"collection": NOTES, "ids": ["long", "db", "sound"], "chunk": {"maxTokens": 32, "overlap": 0}}
    chunks = worker.good({"texts": texts, "isPassage": True, "qdrant": target})["upsert"]["stored"]
    assert chunks > 100
    yield worker
    store.close()


@pytest.mark.parametrize("fields", [{}, {"using": ["dense"]}, {"rerank": "colbert"}, {"fusion": "dbsf"}])
def test_hits_come_from_different_documents(documents: Client, fields: Json) -> None:
    """`groupBy` returns the best chunk of each document; `limit` counts documents, and pages are consecutive."""
    search = {**SEARCH, "queries": ["rsync copies changed parts"], **fields}
    [plain] = documents.good({**search, "limit": 3})["results"]
    assert {hit["payload"]["doc_id"] for hit in plain["hits"]} == {"long"}
    assert "group" not in plain["hits"][0]
    [grouped] = documents.good({**search, "limit": 3, "groupBy": "doc_id"})["results"]
    groups = [hit["group"] for hit in grouped["hits"]]
    assert (groups[0], sorted(groups)) == ("long", ["db", "long", "sound"])
    assert [hit["group"] for hit in grouped["hits"]] == [hit["payload"]["doc_id"] for hit in grouped["hits"]]
    paged = [documents.good({**search, "limit": 1, "offset": n, "groupBy": "doc_id"})["results"][0] for n in range(4)]
    assert [hit["group"] for page in paged for hit in page["hits"]] == groups
    [three] = documents.good({**search, "limit": 1, "groupBy": "doc_id", "groupSize": 3})["results"]
    assert [hit["group"] for hit in three["hits"]] == ["long"] * 3


@pytest.mark.parametrize("more", [{}, {"groupBy": "topic"}])
def test_hits_have_the_requested_parts(notes: Client, more: Json) -> None:
    """Hits have the selected keys of their payload and the selected kinds of vectors, also with `groupBy`."""

    def payload(selection: Any) -> Any:
        [result] = notes.good({**SEARCH, "queries": [TEXTS[0]], "limit": 1, "withPayload": selection, **more})[
            "results"
        ]
        return result["hits"][0].get("payload")

    assert payload(["topic", "at.n"]) == {"topic": "sync", "at": {"n": 0}}
    assert payload({"include": ["id"]}) == {"id": "rsync"}
    assert payload({"exclude": ["text", "at"]}) == {"topic": "sync", "id": "rsync"}
    assert payload(True) == {"topic": "sync", "id": "rsync", "text": TEXTS[0], "at": {"n": 0}}
    assert payload(False) is None
    [result] = notes.good({**SEARCH, "queries": [TEXTS[0]], "limit": 1, "withVectors": ["sparse"], **more})["results"]
    assert set(result["hits"][0]["vectors"]) == {"sparse"}
    [result] = notes.good({**SEARCH, "queries": [TEXTS[0]], "limit": 1, "withVectors": True, **more})["results"]
    assert set(result["hits"][0]["vectors"]) == {"dense", "sparse", "colbert"}
    assert np.linalg.norm(result["hits"][0]["vectors"]["dense"]) == pytest.approx(1, abs=1e-5)


def test_parameters_reach_the_store(serve: Serve, tmp_path: Path) -> None:
    """`params` reach the store, also those of quantization."""
    store = WatchedStore(tmp_path / "watched")
    worker = serve(store=store, QDRANT_COLLECTION_CONFIG='{"dense": {"quantization": "int8"}}')
    worker.good({"texts": ["one"], "qdrant": {"collection": NOTES}})
    quantization = {"rescore": False, "oversampling": 2.5, "ignore": True}
    params = {"indexedOnly": True, "quantization": quantization}
    for _ in range(2):  # the first search of a collection learns how large its group keys are
        worker.good({**SEARCH, "queries": ["one"], "params": params, "groupBy": "a.b", "groupSize": 2})
    plan = store.plans[-1]
    assert plan.traversal.indexed_only
    assert plan.with_payload == PayloadKeys(("a.b",))
    dense, sparse = (branch.query.rescoring for branch in plan.branches)
    assert dense is not None
    assert (dense.rescore, dense.oversampling, dense.ignore) == (False, 2.5, True)
    assert sparse is None, "the sparse vector is not quantized"
    store.close()


def test_invalid_vectors_of_examples_are_errors_of_the_request(serve: Serve, store: EdgeStore) -> None:
    """Invalid stored vectors are errors of `like`, not failures of the model."""
    serve().good({"texts": ["one"], "qdrant": {"collection": NOTES, "ids": [1]}})
    spoiled = serve(store=SpoiledStore(store))
    answer = spoiled.error({**SEARCH, "like": {"positive": [1]}, "using": ["dense"]}, "invalid_request")
    assert answer["error"].startswith("like: dense")
