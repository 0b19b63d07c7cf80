"""The collections that a worker serves: listed, and described one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Final

import pytest

from embedder import Embedder
from embedder.checkpoint import MINI, revision_of
from qdrant_sink import AccessDenied, Store
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import RaisingStore
from tests.service.ingests import job
from tests.service.served import Served
from tests.sink.stores import EMBEDDED_FIRST, opened

COLLECTIONS: Final = {"operation": "collections"}
CONFIG: Final = {"payloadIndexes": {"year": "integer"}, "tenantKey": "tenant", "sparse": {"datatype": "float16"}}


@pytest.fixture(scope="module", params=EMBEDDED_FIRST)
def filled(
    request: pytest.FixtureRequest, embedder: Embedder, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Store]:
    """Each kind of store, with two collections and an alias of each."""
    with opened(request.param, tmp_path_factory.mktemp("inventory")) as store:
        worker = _worker(embedder, store)
        for name in ("notes-2", "papers"):
            worker.good(job("one", "two", collection=name, ids=[1, 2], payloads=[{"tenant": "x"}] * 2))
        store.alias("notes", "notes-2")
        store.alias("all", "papers")
        yield store


def _worker(embedder: Embedder, store: Store, **variables: str) -> Client:
    environment = {**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps(CONFIG), **variables}
    return Client(Operations(Settings.from_environment(environment), embedder, store))


def test_collections_and_aliases_are_listed(filled: Store, embedder: Embedder) -> None:
    """The list has every collection by name and every alias with its collection."""
    assert _worker(embedder, filled).good(COLLECTIONS) == {
        "collections": ["notes-2", "papers"],
        "aliases": {"all": "papers", "notes": "notes-2"},
        "default": None,
    }


def test_the_list_has_what_the_worker_permits(filled: Store, embedder: Embedder) -> None:
    """Only allowed names are listed, be they of collections or aliases, and only if they exist."""
    worker = _worker(embedder, filled, QDRANT_COLLECTIONS="notes, papers, planned", QDRANT_COLLECTION="planned")
    assert worker.good(COLLECTIONS) == {
        "collections": ["papers"],
        "aliases": {"notes": "notes-2"},
        "default": "planned",
    }
    for name in ("notes-2", "all"):
        answer = worker.error({**COLLECTIONS, "collection": name}, "invalid_request")
        assert "must be a collection that this worker serves" in answer["error"]
    worker.error({**COLLECTIONS, "collection": "planned"}, "not_found")
    assert worker.good({**COLLECTIONS, "collection": "papers"})["aliases"] == []


def test_a_collection_has_what_the_operator_says_of_it(filled: Store, embedder: Embedder) -> None:
    """Descriptions of what exists and is permitted are listed; one collection has that of its alias, or its own."""
    said = {
        "notes": "Notes on\n backups ",
        "notes-2": "The notes",
        "papers": "Papers",
        "planned": "Not yet",
        "all": "?",
    }
    config = json.dumps({**CONFIG, "descriptions": said})
    worker = _worker(
        embedder, filled, QDRANT_COLLECTION_CONFIG=config, QDRANT_COLLECTIONS="notes, papers, planned, notes-2"
    )
    assert worker.good(COLLECTIONS)["descriptions"] == {
        "notes-2": "The notes",
        "papers": "Papers",
        "notes": "Notes on backups",
    }
    described = {name: worker.good({**COLLECTIONS, "collection": name}) for name in ("notes", "notes-2", "papers")}
    assert {name: answer["description"] for name, answer in described.items()} == {
        "notes": "Notes on backups",
        "notes-2": "The notes",
        "papers": "Papers",
    }
    own = _worker(
        embedder, filled, QDRANT_COLLECTION_CONFIG=json.dumps({**CONFIG, "descriptions": {"notes-2": "Mine"}})
    )
    assert own.good({**COLLECTIONS, "collection": "notes"})["description"] == "Mine"


@pytest.mark.parametrize("name", ["notes-2", "notes"])
def test_a_collection_is_described(filled: Store, embedder: Embedder, name: str) -> None:
    """The description is that of the collection itself, also under its alias."""
    answer = _worker(embedder, filled).good({**COLLECTIONS, "collection": name})
    vectors = {vector["name"]: vector for vector in answer.pop("vectors")}
    assert isinstance(answer.pop("indexedVectors"), int)
    assert answer == {
        "name": "notes-2",
        "aliases": ["notes"],
        "status": "green",
        "points": 2,
        "payloadIndexes": [
            {"key": "tenant", "type": "keyword", "isTenant": True},
            {"key": "year", "type": "integer", "isTenant": False},
        ],
        "layout": {"name": "plain", "source": "collection"},
        "textKey": "text",
        "model": {"name": "mini", "revision": revision_of(MINI), "source": "collection"},
    }
    assert vectors["dense"] == {
        "name": "dense", "kind": "dense", "size": embedder.hidden_size, "distance": "cosine", "datatype": "float32",
        "quantization": "none", "modifier": None,
    }  # fmt: skip
    assert vectors["sparse"] == {
        "name": "sparse", "kind": "sparse", "size": None, "distance": None, "datatype": "float16",
        "quantization": None, "modifier": None,
    }  # fmt: skip
    assert (vectors["colbert"]["kind"], vectors["colbert"]["datatype"]) == ("multivector", "float16")


def test_a_key_without_the_right_gets_the_words_of_the_store(serve: Serve, store: EdgeStore) -> None:
    """The error of a store that refuses the list or the description reaches the caller."""
    denied = AccessDenied("Qdrant denied access: PERMISSION_DENIED, global access is required")
    worker = serve(store=RaisingStore(store, aliases=denied))
    fields: Json
    for fields in ({}, {"collection": "notes"}):
        assert "global access is required" in worker.error({**COLLECTIONS, **fields}, "store_rejected")["error"]


def test_the_paths_of_collections(embedder: Embedder, store: EdgeStore) -> None:
    """GET lists and describes as the queue does, for callers with the key."""
    settings = Settings.from_environment({**ENVIRONMENT, "API_KEY": "choose-one"})
    operations = Operations(settings, embedder, store)
    worker = Client(operations)
    worker.good(job("one", collection="a.b-1"))
    key = {"Authorization": "Bearer choose-one"}
    with Served(operations) as served, served.client() as client:
        cases: list[tuple[str, Json]] = [
            ("/collections", COLLECTIONS),
            ("/collections/a.b-1", {**COLLECTIONS, "collection": "a.b-1"}),
            ("/collections/a%2Eb%2D1", {**COLLECTIONS, "collection": "a.b-1"}),
        ]
        for path, raw in cases:
            assert client.get(path, headers=key).json() == worker.good(raw)
            assert client.get(path).status_code == 401
        for path, status, code in (
            ("/collections/absent", 404, "not_found"),
            ("/collections/a%2Fb", 400, "invalid_request"),
            ("/collections/a/b", 400, "invalid_request"),
            ("/collections/a%3Cb", 400, "invalid_request"),
            ("/collections/%ff", 404, "not_found"),
        ):
            answer = client.get(path, headers=key)
            assert (answer.status_code, answer.json()["error_code"]) == (status, code)
        assert client.delete("/collections/a.b-1", headers=key).status_code == 405
    exposed = operations.metrics.exposed().decode()
    assert 'route="/collections/{name}"' in exposed
    assert "absent" not in exposed
