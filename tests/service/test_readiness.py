"""What a worker proves of itself before it takes a job."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from embedder import Embedder, ModelFailure
from qdrant_sink import CollectionSchema, SchemaMismatch, Store
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.readiness import checks
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.doubles import FailingStore, Watched
from tests.sink.samples import schema_for


def run(embedder: Embedder, store: Store | None, **variables: str) -> None:
    """All checks of a worker with these settings, as the SDK runs them."""
    settings = Settings.from_environment({**ENVIRONMENT, **variables})

    async def each() -> None:
        for check in checks(Operations(settings, embedder, store), settings, store_timeout_s=0.2):
            await check()

    asyncio.run(each())


def test_a_sound_worker_passes(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """With a store that answers, whether its collections are there or not, nothing is created."""
    named = {"QDRANT_PATH": str(tmp_path), "QDRANT_COLLECTION": "notes", "QDRANT_COLLECTIONS": "notes,other"}
    run(embedder, store, **named)
    run(embedder, store, QDRANT_PATH=str(tmp_path))
    assert not store.verify("notes", schema_for(192, 192))
    store.ensure("fitness-check", schema_for(8, 8))
    run(embedder, store, QDRANT_PATH=str(tmp_path))  # whose name was taken by a stranger


def test_an_embedded_store_that_nobody_named_is_not_opened(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that only embeds leaves no directory behind."""
    monkeypatch.chdir(tmp_path)
    run(embedder, None)
    assert not list(tmp_path.iterdir())


def test_a_default_store_that_somebody_owns_is_said_at_start(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second worker in one directory serves what needs no store, and its log says why the rest fails."""
    monkeypatch.chdir(tmp_path)
    owner = EdgeStore("qdrant_data")
    run(embedder, None)
    owner.close()
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "QDRANT_PATH: another process owns the directory" in record.getMessage()
    assert "store_unavailable" in record.getMessage()
    run(embedder, None)
    assert caplog.records == [record]
    EdgeStore("qdrant_data").close()


def test_a_device_that_computes_nonsense_is_unhealthy(store: EdgeStore) -> None:
    """A model that gives no finite vector for a plain text ends the worker before it takes a job."""
    broken = Watched.loaded(poison="fit")
    with pytest.raises(ModelFailure):
        run(broken.embedder, store)
    broken.embedder.close()


def test_a_collection_of_another_model_is_unhealthy(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """Settings that name a collection with another schema cannot work; the message names the fields."""
    store.ensure("notes", schema_for(8, 8))
    with pytest.raises(SchemaMismatch, match="192"):
        run(embedder, store, QDRANT_PATH=str(tmp_path), QDRANT_COLLECTION="notes")


class Hanging(FailingStore):
    """A store that answers only when the test is over."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, None)
        self.over = threading.Event()

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """See `Store.verify`."""
        self.over.wait(PATIENCE)
        return False


@pytest.mark.parametrize("hangs", [True, False])
def test_a_store_that_does_not_answer_is_no_reason_to_leave(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    """A worker starts without its store, with a warning: it may come back, and embedding does not need it."""
    hanging = Hanging(store)
    away = hanging if hangs else FailingStore(store, None)
    with caplog.at_level(logging.WARNING):
        run(embedder, away, QDRANT_PATH=str(tmp_path), QDRANT_COLLECTION="notes")
    hanging.over.set()
    assert "store_unavailable" in caplog.text
