"""Every input has an answer, and neither the answer nor the log reveals private data."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings

from embedder import Embedder
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json, assert_error
from tests.service.conftest import Serve
from tests.service.doubles import FailingStore
from tests.service.strategies import PRIVATE, requests, spoiled_requests, values
from tests.sink.samples import schema_for


@pytest.fixture(scope="module")
def hardened(embedder: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Client:
    """One worker over a store with two points, for all examples."""
    store = EdgeStore(tmp_path_factory.mktemp("hardened"))
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store))
    worker.good({"texts": ["one", "two"], "qdrant": {"collection": "notes", "ids": [1, 2]}})
    return worker


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(raw=spoiled_requests | requests | values)
def test_any_input_has_an_answer_that_can_be_sent(hardened: Client, raw: Any) -> None:
    """The answer is a result or an error in strict JSON, and no message quotes a user's text."""
    answer = hardened(raw)
    if "error" in answer:
        assert_error(answer)
        assert answer["error_code"] != "internal"
        assert PRIVATE not in json.dumps(answer)
        assert "Traceback" not in answer["error"]
    else:
        assert {"results", "count", "deleted", "scores"} & set(answer)
    for rejected in answer.get("upsert", {}).get("rejected", []):
        assert PRIVATE not in rejected["message"]


def jobs(*, text: str) -> list[Json]:
    """Valid and invalid jobs of every kind, with this text in every field that can hold a text."""
    target = {"collection": "notes", "ids": [text], "payloads": [{"note": text}]}
    search = {"operation": "search", "collection": "notes", "queries": [text]}
    matching = {"must": [{"key": "note", "match": {"value": text}}]}
    return [
        {"texts": [text]},
        {"texts": [text], "isPassage": text},
        {"texts": [text, 1]},
        {"texts": text},
        {"texts": [text + "\ud800"]},
        {"texts": [text], "encoding": text},
        {"texts": [text], "operation": text},
        {"texts": [text], "vectors": [text]},
        {"texts": [text], "qdrant": text},
        {"texts": [text], "qdrant": {"collection": text}},
        {"texts": [text], "qdrant": {**target, "mode": text}},
        {"texts": [text], "qdrant": {**target, "ids": [text, text]}},
        {"texts": [text], "qdrant": target},
        {"texts": [text], "qdrant": {**target, "payloads": [{"note": text, "text": text}]}},
        {"texts": [text], "qdrant": {**target, "payloads": [{"note": [text, float("nan")]}]}},
        {"texts": [text], "qdrant": {**target, "payloads": [{"note": text + "\ud800"}]}},
        {"texts": [text, text], "qdrant": {"collection": "notes", "ids": [text] * 2, "payloads": [{}, {"a": text}]}},
        {"texts": [text], "qdrant": {"collection": "other"}},
        search,
        {**search, "explain": True, "rerank": "colbert"},
        {**search, "explain": True, "textKey": text * 5},
        {**search, "queries": [text, None]},
        {**search, "collection": "absent"},
        {**search, "filter": matching},
        {**search, "filter": {"must": [{"key": "note", "match": {"value": text, "text": text}}]}},
        {**search, "filter": {"must": [text]}},
        {**search, "filter": {"must": [{"key": text, "match": {"value": 1}}]}},
        {**search, "filter": {"must": [{"key": "note", "range": {"gt": text}}]}},
        {**search, "filter": {"must": [{"has_id": [text]}]}},
        {"operation": "count", "collection": "notes", "filter": matching},
        {"operation": "delete", "collection": "notes", "ids": [text]},
        {"operation": "score", "pairs": [[text, text]]},
        {"operation": "score", "pairs": [[text, text + "\ud800"]]},
        {"operation": "score", "pairs": [[text]], "weights": [text]},
    ]


@pytest.mark.parametrize("level", ["INFO", "DEBUG"])
def test_no_log_and_no_error_contains_a_text_a_path_or_a_key(
    serve: Serve, store: EdgeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, level: str
) -> None:
    """A text appears only in the results and hits of an answer, however the job ends."""
    key = "k3y-0123456789"
    variables = {"QDRANT_PATH": str(tmp_path), "QDRANT_API_KEY": key, "API_KEY": key, "LOG_LEVEL": level}
    store.ensure("other", schema_for(8, 8))
    with caplog.at_level(level):
        for worker in (
            serve(**variables),
            serve(store=FailingStore(store, None), **variables),
            serve(MAX_RESPONSE_MB="0.001", **variables),
        ):
            for raw in jobs(text=PRIVATE):
                answer = worker(raw)
                rest = json.dumps({name: answer[name] for name in answer.keys() - {"results"}})
                for private in (PRIVATE, PRIVATE[:40], key, str(tmp_path), "Traceback"):
                    assert private not in rest
    assert caplog.records
    for record in caplog.records:
        line = record.getMessage() + str(record.exc_info or "")
        for private in (PRIVATE[:20], key, str(tmp_path)):
            assert private not in line


class _Broken:
    """An embedder with a defect whose message quotes the text."""

    max_length = 512
    hidden_size = colbert_size = 192
    label = "broken"
    revision = None
    window = 1000

    def observe(self, observer: object) -> None:
        """See `Embedder.observe`."""

    def overlaps(self, texts: list[str], max_length: int) -> bool:
        """See `Embedder.overlaps`."""
        return False

    def tokenize(self, texts: list[str], max_length: int, *, at_once: bool) -> list[Any]:
        """Raise with the text in the message."""
        raise LookupError(texts[0])


def test_a_defect_is_an_error_of_one_job_without_its_message(caplog: pytest.LogCaptureFixture) -> None:
    """The caller gets `internal`, the log names the origin, and neither quotes the exception."""
    broken: Any = _Broken()
    worker = Client(Operations(Settings.from_environment(ENVIRONMENT), broken))
    answer = worker.error({"texts": [PRIVATE]}, "internal")
    assert answer["retryable"] is False
    assert "LookupError" in answer["error"]
    assert PRIVATE[:20] not in str(answer)
    (record,) = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert "tokenize" in record.getMessage()
    assert "test_privacy.py" in record.getMessage()
    assert record.exc_info is None
    assert PRIVATE[:20] not in caplog.text
