"""Payload keys of any script and with any character are named by one path language in every operation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from qdrant_client import models

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client
from tests.sink.grpc_double import GrpcDouble

TEXTS = ["rsync copies changed files", "rclone copies files to a cloud", "Audacity edits sound"]
PAYLOADS = [
    {"विषय": {"मूल": "sync"}, "any key.x": "a", "at": "2024-05-01T12:00:00.123456789Z"},
    {"विषय": {"मूल": "sync"}, "any key.x": "b", "at": "2024-05-02T12:00:00Z"},
    {"विषय": {"मूल": "sound"}, "any key.x": "c", "": "empty", "at": "2024-05-03 12:00:00"},
]
CONFIG = '{"payloadIndexes": {"विषय.मूल": "keyword", "\\"any key.x\\"": "keyword", "at": "datetime"}}'
STORED = {"collection": "docs", "textKey": "the text.", "ids": [0, 1, 2], "payloads": PAYLOADS}
SEARCH: dict[str, Any] = {"operation": "search", "collection": "docs", "queries": ["copy files"], "withPayload": False}


@pytest.fixture(params=["edge", "server"])
def worker(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Client]:
    """A worker with three texts, in Qdrant Edge and behind the loopback server."""
    double = GrpcDouble(tmp_path) if request.param == "server" else None
    store = EdgeStore(tmp_path) if double is None else ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": CONFIG})
    client = Client(Operations(settings, embedder, store))
    answer = client.good({"texts": TEXTS, "isPassage": True, "qdrant": STORED})
    assert answer["upsert"]["stored"] == len(TEXTS)
    yield client
    store.close()
    if double is not None:
        double.stop()


def _ids(answer: dict[str, Any]) -> set[int]:
    return {hit["id"] for hit in answer["results"][0]["hits"]}


def test_every_operation_takes_the_filter_of_a_client(worker: Client) -> None:
    """`count`, `search`, its explanations, `like` and `delete` take a dumped model with its nulls."""
    bounds = models.DatetimeRange(gte="2024-05-01t12:00:00.1234567z", lt="2024-05-03")
    conditions = [models.FieldCondition(key="at", range=bounds), models.FieldCondition(key="विषय", is_empty=False)]
    where = models.Filter(must=conditions).model_dump(mode="json")
    assert where["should"] is None
    assert worker.good({"operation": "count", "collection": "docs", "filter": where})["count"] == 2
    assert _ids(worker.good({**SEARCH, "filter": where})) == {0, 1}
    explained = worker.good({**SEARCH, "filter": where, "explain": True, "textKey": "the text."})
    assert _ids(explained) == {0, 1}
    assert all(hit["explain"]["sparse"][0]["spans"] for hit in explained["results"][0]["hits"])
    like = {"operation": "search", "collection": "docs", "like": {"positive": [0]}, "filter": where}
    assert _ids(worker.good(like)) == {1}
    assert worker.good({"operation": "delete", "collection": "docs", "filter": where})["deleted"] == 2
    assert worker.good({"operation": "count", "collection": "docs"})["count"] == 1


def test_every_use_takes_the_same_paths(worker: Client) -> None:
    """`groupBy`, `withPayload` and filters take letters with combining marks bare and other keys in quotes."""
    grouped = worker.good({**SEARCH, "groupBy": "विषय.मूल"})
    assert [hit["group"] for hit in grouped["results"][0]["hits"]] in (["sync", "sound"], ["sound", "sync"])
    quoted = worker.good({**SEARCH, "groupBy": '"any key.x"', "withPayload": ['"any key.x"', '""', "विषय.मूल"]})
    hits = {hit["id"]: hit for hit in quoted["results"][0]["hits"]}
    assert {number: hit["group"] for number, hit in hits.items()} == {0: "a", 1: "b", 2: "c"}
    assert hits[2]["payload"] == {key: PAYLOADS[2][key] for key in ("विषय", "any key.x", "")}
    rest = worker.good({**SEARCH, "withPayload": {"exclude": ['"the text."', "विषय", "at"]}})
    payloads = {hit["id"]: hit["payload"] for hit in rest["results"][0]["hits"]}
    assert payloads[2] == {"any key.x": "c", "": "empty"}
    for path, value in (("विषय.मूल", "sound"), ('"any key.x"', "c"), ('""', "empty"), ('"the text."', TEXTS[2])):
        where = {"must": [{"key": path, "match": {"value": value}}]}
        assert worker.good({"operation": "count", "collection": "docs", "filter": where})["count"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("key", ['a "key"', "a\\b"])
def test_a_text_key_without_a_path_is_refused(worker: Client, key: str) -> None:
    """A `textKey` that no filter could name is refused before anything is stored."""
    message = 'textKey must not contain " or a backslash in a key, because Qdrant has no path to such a key'
    stored = {"texts": ["x"], "qdrant": {"collection": "other", "textKey": key}}
    for raw, field in ((stored, "qdrant."), ({**SEARCH, "explain": True, "textKey": key}, "")):
        assert worker.error(raw, "invalid_request")["error"] == field + message
