"""Deletions and loads leave a line that says who did what and how many, and nothing private."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from embedder import NotFound
from qdrant_sink import StoreUnavailable
from qdrant_sink.edge import EdgeStore
from service import logs
from tests.service.client import Client, Json
from tests.service.conftest import Serve
from tests.service.doubles import RaisingStore
from tests.service.served import Served

PRIVATE = "the private words of a user"
KEY = "k3y-0123456789"
MATCHING: Json = {"must": [{"key": "note", "match": {"value": PRIVATE}}]}


@pytest.fixture
def audit(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """The log, with the audit at the level that every configuration of the logs gives it."""
    with caplog.at_level(logging.INFO, logger="service.audit"):
        yield caplog


def lines(audit: pytest.LogCaptureFixture) -> list[str]:
    """The messages of the audit."""
    return [record.getMessage() for record in audit.records if record.name == "service.audit"]


@pytest.fixture
def filled(worker: Client) -> Client:
    """A worker with four points."""
    payloads = [{"note": PRIVATE}, {"note": PRIVATE}, {}, {}]
    target = {"collection": "notes", "ids": ["a", "b", "c", "d"], "payloads": payloads}
    worker.good({"texts": ["one", "two", "three", "four"], "qdrant": target})
    return worker


def test_a_deletion_says_who_what_and_how_many(filled: Client, audit: pytest.LogCaptureFixture) -> None:
    """The line counts what existed, and shows no id, text or value of the filter."""
    filled.good({"operation": "delete", "collection": "notes", "ids": ["c", "absent"]})
    filled.good({"operation": "delete", "collection": "notes", "filter": MATCHING})
    assert lines(audit) == [
        "this process deletes by 2 ids from 'notes': 1 deleted",
        "this process deletes by a filter from 'notes': 2 deleted",
    ]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (StoreUnavailable(f"no answer {PRIVATE}"), "store_unavailable"),
        (NotFound("collection 'notes' does not exist"), "not_found"),
        (RuntimeError(PRIVATE), "internal"),
    ],
    ids=["unavailable", "not found", "defect"],
)
def test_a_deletion_that_the_store_does_not_confirm_is_in_the_audit(
    serve: Serve, store: EdgeStore, audit: pytest.LogCaptureFixture, error: Exception, code: str
) -> None:
    """It may have removed points, so it leaves a line too; a request that is refused before leaves none."""
    worker = serve(store=RaisingStore(store, delete=error))
    worker.error({"operation": "delete", "collection": "notes", "ids": [1]}, code)
    worker.error({"operation": "delete", "collection": "notes", "ids": [-1]}, "invalid_request")
    worker.error({"operation": "delete", "collection": "notes"}, "invalid_request")
    assert lines(audit) == [f"this process deletes by 1 id from 'notes': failed ({type(error).__name__})"]


@pytest.mark.slow
@pytest.mark.parametrize(("keys", "caller"), [({"API_KEY": KEY}, "API_KEY"), ({}, "anyone")])
def test_over_http_the_caller_is_the_name_of_the_key(
    filled: Client, serve: Serve, keys: dict[str, str], caller: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The key itself is never shown, and the line has the id of its request."""
    caplog.handler.setFormatter(logs.TextFormatter())
    headers = {"Authorization": f"Bearer {KEY}", "X-Request-ID": "req-17"}
    with (
        caplog.at_level(logging.INFO, logger="service.audit"),
        Served(serve(**keys).operations) as served,
        served.client(**headers) as client,
    ):
        answer = client.post("/points/delete", json={"collection": "notes", "filter": MATCHING})
    assert answer.json() == {"deleted": 2}
    (line,) = [line for line in caplog.text.splitlines() if "service.audit" in line]
    assert line.endswith(f"INFO service.audit: {caller} deletes by a filter from 'notes': 2 deleted [req-17]")
    assert KEY not in caplog.text
    assert PRIVATE not in caplog.text


def test_each_step_of_a_load_is_in_the_audit(serve: Serve, store: EdgeStore, audit: pytest.LogCaptureFixture) -> None:
    """It creates collections and moves aliases, so the line says who, the load, the collection and what came of it."""
    worker = serve(ALLOW_LOADS="true")
    named = {"operation": "load", "collection": "notes", "loadId": "v2"}
    worker.good({**named, "action": "begin", "shard": "2/8"})
    worker.good({"operation": "load", "collection": "notes", "action": "finish"})
    worker.good({**named, "action": "begin", "collection": "other"})
    worker.good({"texts": ["one"], "isPassage": True, "qdrant": {"collection": "other"}})
    worker.good({**named, "action": "end", "collection": "other", "read": 1, "lines": 1, "points": 1})
    worker.good({"operation": "load", "collection": "other", "action": "finish", "alias": "live"})
    broken = serve(store=RaisingStore(store, metadata=StoreUnavailable(PRIVATE)), ALLOW_LOADS="true")
    broken.error({**named, "action": "begin"}, "store_unavailable")
    serve(store=store).error({**named, "action": "begin"}, "invalid_request")
    assert lines(audit) == [
        "this process begins shard 2/8 of load 'v2' into 'notes': begun",
        "this process finishes 'notes': unfinished",
        "this process begins load 'v2' into 'other': begun",
        "this process ends load 'v2' into 'other': ended",
        "this process finishes 'other': finished, the alias 'live' moved",
        "this process begins load 'v2' into 'notes': failed (StoreUnavailable)",
    ]


def test_the_audit_is_written_at_every_level(capsys: pytest.CaptureFixture[str]) -> None:
    """`LOG_LEVEL=CRITICAL` hides other lines of the same level, and no line of the audit."""
    root = logging.getLogger()
    before = root.handlers[:]
    levels = {name: logging.getLogger(name).level for name in (None, *logs._OURS, "service.audit")}
    try:
        logs.configure("CRITICAL")
        logging.getLogger("service.operations").error("hidden by the level")
        logs.AUDIT.info("shown")
    finally:
        root.handlers[:] = before
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    written = capsys.readouterr().err
    assert "INFO service.audit: shown" in written
    assert "hidden by the level" not in written
