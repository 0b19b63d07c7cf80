"""The readiness checks of a worker."""

from __future__ import annotations

import asyncio
import logging
import threading
from pathlib import Path

import pytest

from embedder import Embedder, ModelFailure, NotFound
from qdrant_sink import SchemaMismatch, Store
from qdrant_sink.edge import EdgeStore
from qdrant_sink.schema_diff import CollectionDescription
from service.operations import Operations
from service.readiness import checks
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE
from tests.service.doubles import FailingStore, Watched
from tests.sink.samples import schema_for


def run(embedder: Embedder, store: Store | None, **variables: str) -> None:
    """Run all checks of a worker with these settings, as the SDK does."""
    settings = Settings.from_environment({**ENVIRONMENT, **variables})

    async def each() -> None:
        for check in checks(Operations(settings, embedder, store), settings, store_timeout_s=0.2):
            await check()

    asyncio.run(each())


def test_a_working_worker_passes(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """All checks pass with a store that answers, and they create no collection."""
    named = {"QDRANT_PATH": str(tmp_path), "QDRANT_COLLECTION": "notes", "QDRANT_COLLECTIONS": "notes,other"}
    run(embedder, store, **named)
    run(embedder, store, QDRANT_PATH=str(tmp_path))
    assert not store.verify("notes", schema_for(192, 192))
    store.ensure("fitness-check", schema_for(8, 8))
    run(embedder, store, QDRANT_PATH=str(tmp_path))  # with a foreign collection of the probe's name


def test_the_default_store_is_not_created(embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that only embeds creates no directory."""
    monkeypatch.chdir(tmp_path)
    run(embedder, None)
    assert not list(tmp_path.iterdir())


def test_a_default_store_in_use_is_a_warning(
    embedder: Embedder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A second worker in the same directory starts with a warning."""
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


def test_a_device_that_computes_nan_fails(store: EdgeStore) -> None:
    """A model whose vectors are not finite fails the check."""
    broken = Watched.loaded(poison="fit")
    with pytest.raises(ModelFailure):
        run(broken.embedder, store)
    broken.embedder.close()


def test_a_collection_of_another_model_fails(embedder: Embedder, store: EdgeStore, tmp_path: Path) -> None:
    """A collection of the settings with another schema fails the check, with a message that names the fields."""
    store.ensure("notes", schema_for(8, 8))
    with pytest.raises(SchemaMismatch, match="192"):
        run(embedder, store, QDRANT_PATH=str(tmp_path), QDRANT_COLLECTION="notes")


class Hanging(FailingStore):
    """A store that answers only after the test."""

    def __init__(self, store: Store) -> None:
        super().__init__(store, None)
        self.over = threading.Event()

    def description(self, collection: str) -> CollectionDescription:
        """See `Store.description`."""
        self.over.wait(PATIENCE)
        raise NotFound(f"collection {collection!r} does not exist")


@pytest.mark.parametrize("hangs", [True, False])
def test_a_store_that_does_not_answer_is_a_warning(
    embedder: Embedder, store: EdgeStore, tmp_path: Path, caplog: pytest.LogCaptureFixture, hangs: bool
) -> None:
    """A worker starts without its store, since the store may recover and embedding does not need it."""
    hanging = Hanging(store)
    unavailable = hanging if hangs else FailingStore(store, None)
    with caplog.at_level(logging.WARNING):
        run(embedder, unavailable, QDRANT_PATH=str(tmp_path), QDRANT_COLLECTION="notes")
    hanging.over.set()
    assert "store_unavailable" in caplog.text
