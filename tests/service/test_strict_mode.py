"""A worker on a collection in strict mode, as Qdrant's cloud sets it: searches, counts and deletions by any filter."""

from __future__ import annotations

from pathlib import Path

import pytest
from qdrant_client import grpc as pb

from embedder import Embedder
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.sink.grpc_double import GrpcDouble

INDEXES = {"QDRANT_COLLECTION_CONFIG": '{"payloadIndexes": {"topic": "keyword"}}'}
BACKUP: Json = {"must": [{"key": "topic", "match": {"value": "backup"}}]}
REQUESTS: dict[str, Json] = {
    "search": {"operation": "search", "collection": "notes", "queries": ["files"], "filter": BACKUP},
    "explain": {"operation": "search", "collection": "notes", "queries": ["files"], "filter": BACKUP, "explain": True},
    "count": {"operation": "count", "collection": "notes", "filter": BACKUP},
    "delete": {"operation": "delete", "collection": "notes", "filter": BACKUP},
}


@pytest.mark.parametrize("request_name", REQUESTS)
def test_the_first_use_of_any_kind_creates_the_index(embedder: Embedder, tmp_path: Path, request_name: str) -> None:
    """A filter by a key of `payloadIndexes` works on a collection without the index; other keys are named."""
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    plain = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    indexing = Client(Operations(Settings.from_environment({**ENVIRONMENT, **INDEXES}), embedder, store))
    texts = ["rsync copies files", "PhotoRec recovers files"]
    payloads = [{"topic": "backup"}, {"topic": "rescue"}]
    plain.good({"texts": texts, "isPassage": True, "qdrant": {"collection": "notes", "payloads": payloads}})
    double.strict_modes["notes"] = pb.StrictModeConfig(
        enabled=True, unindexed_filtering_retrieve=False, unindexed_filtering_update=False
    )
    request = REQUESTS[request_name]
    refusal = plain.error(request, "store_rejected")
    assert "'topic' has no index" in refusal["error"]
    assert "payloadIndexes" in refusal["error"]
    assert not refusal["retryable"]
    answer = indexing.good(request)
    expected = {"count": ("count", 1), "delete": ("deleted", 1)}.get(request_name)
    if expected is None:
        [hit] = answer["results"][0]["hits"]
        assert hit["payload"]["topic"] == "backup"
    else:
        assert answer[expected[0]] == expected[1]
    assert set(double.indexes["notes"]) == {"topic"}
    store.close()
    double.stop()
