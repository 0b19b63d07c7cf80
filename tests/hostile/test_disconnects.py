"""A client that goes away: its request is cancelled wherever it is, and counted as 499."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from qdrant_sink.edge import EdgeStore
from tests.hostile.raw_client import UNFINISHED, RawClient, head, post
from tests.service.client import PATIENCE, Client, until
from tests.service.conftest import Serve
from tests.service.served import Served


class SilentStore(EdgeStore):
    """Qdrant Edge whose answers wait for a gate, after a number of upserts.

    Attributes:
        waiting: number of calls that have waited.
        stored: number of points of all upserts that were begun.
    """

    def __init__(self, path: Path, upserts: int = 0) -> None:
        super().__init__(path)
        self.gate = threading.Event()
        self.waiting = 0
        self.stored = 0
        self._left = upserts

    def upsert(self, collection: str, points: Any, *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        self.stored += len(points)
        if self._left:
            self._left -= 1
        else:
            self._wait()
        super().upsert(collection, points, insert_only=insert_only)

    def query(self, *given: Any) -> Any:
        """See `Store.query`."""
        self._wait()
        return super().query(*given)

    def collections(self) -> list[str]:
        """See `Store.collections`."""
        self._wait()
        return super().collections()

    def _wait(self) -> None:
        self.waiting += 1
        self.gate.wait(PATIENCE)


@pytest.fixture
def silent(tmp_path: Path) -> Iterator[SilentStore]:
    """A store that acknowledges one batch and then waits."""
    store = SilentStore(tmp_path / "silent", upserts=1)
    yield store
    store.gate.set()
    store.close()


def counted(worker: Client, route: str, status: int) -> bool:
    """Whether an answer of a route was counted with a status."""
    return (
        f'bge_m3_http_responses_total{{route="{route}",status="{status}"}}'
        in worker.operations.metrics.exposed().decode()
    )


SEARCH = post("/search", {"collection": "notes", "queries": ["a"]})
INGEST = post("/points", {"texts": [f"text {n}" for n in range(3000)], "qdrant": {"collection": "notes"}})


@pytest.mark.parametrize(
    ("route", "request_"), [("/search", SEARCH), ("/collections", head("GET", "/collections"))], ids=["search", "list"]
)
def test_a_request_to_a_silent_store_ends_with_its_client(
    serve: Serve, silent: SilentStore, caplog: pytest.LogCaptureFixture, route: str, request_: bytes
) -> None:
    """A disconnect while the store does not answer is 499, one line, and no error, before the store has answered."""
    caplog.set_level(logging.INFO)
    worker = serve(store=silent)
    worker.good({"texts": ["a"], "isPassage": True, "qdrant": {"collection": "notes"}})
    with Served(worker.operations) as served:
        with RawClient(served.port) as client:
            client.send(request_)
            asyncio.run(until(lambda: silent.waiting > 0))
        asyncio.run(until(lambda: counted(worker, route, 499)))
        assert not silent.gate.is_set()
        silent.gate.set()
    assert not counted(worker, route, 500)
    assert [line for line in caplog.messages if f"{route} 499" in line]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_an_ingest_ends_with_its_client_and_keeps_what_is_acknowledged(serve: Serve, silent: SilentStore) -> None:
    """After a disconnect no further batch is begun, and the batch that was acknowledged stays."""
    worker = serve(store=silent)
    with Served(worker.operations) as served:
        with RawClient(served.port) as client:
            client.send(INGEST)
            asyncio.run(until(lambda: silent.waiting > 0))
        asyncio.run(until(lambda: counted(worker, "/points", 499)))
        begun = silent.stored
        silent.gate.set()
    assert begun < 3000
    assert silent.stored == begun
    assert 0 < worker.good({"operation": "count", "collection": "notes"})["count"] <= begun


@pytest.mark.parametrize("part", [UNFINISHED, UNFINISHED[:-11], UNFINISHED + b"1" * 900])
def test_an_aborted_upload_is_no_error(worker: Client, caplog: pytest.LogCaptureFixture, part: bytes) -> None:
    """A client that goes away within its body is counted as 499 and logged once, at the level INFO."""
    caplog.set_level(logging.INFO)
    with Served(worker.operations) as served:
        with RawClient(served.port) as client:
            client.send(part)
        asyncio.run(until(lambda: counted(worker, "/embed", 499)))
    assert not counted(worker, "/embed", 500)
    lines = [record for record in caplog.records if record.name.startswith("service")]
    assert [(line.levelname, line.getMessage().partition(",")[0]) for line in lines] == [("INFO", "/embed 499")]


def test_a_client_that_leaves_within_its_answer_is_counted_so(worker: Client) -> None:
    """A disconnect while the answer is sent is 499, although the answer began with 200."""
    with Served(worker.operations) as served:
        with RawClient(served.port, receive_buffer=4096) as client:
            client.send(post("/embed", {"texts": ["word " * 1000] * 8, "vectors": ["colbert"]}))
            assert client.begins_to_answer()
        asyncio.run(until(lambda: counted(worker, "/embed", 499)))
    assert not counted(worker, "/embed", 200)


def test_a_job_goes_on_without_its_client(serve: Serve, silent: SilentStore) -> None:
    """A job that was accepted is not cancelled by a disconnect, and goes to its end."""
    worker = serve(store=silent)
    with Served(worker.operations) as served, served.client() as client:
        with RawClient(served.port) as leaving:
            leaving.send(
                post("/points", {"texts": ["a", "b"], "qdrant": {"collection": "notes"}}, "Prefer: respond-async")
            )
            accepted = leaving.answer()
        assert accepted.status == 202
        location = "/jobs/" + json.loads(accepted.body)["id"]
        asyncio.run(until(lambda: client.get(location).json()["state"] == "done"))
