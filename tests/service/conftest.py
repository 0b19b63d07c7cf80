"""Fixtures of the service tests: one loaded `mini`, and workers over it with their own stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from embedder import Embedder
from embedder.checkpoint import MINI
from qdrant_sink import Store, conformance
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.embedder.oracle import Oracle
from tests.service.client import ENVIRONMENT, Client
from tests.service.doubles import Watched

Serve = Callable[..., Client]
"""`serve(store=..., NAME="value")` returns a client of operations over the session's model with these settings."""


@pytest.fixture(scope="session")
def embedder() -> Iterator[Embedder]:
    """The model of `mini` in float32 on the CPU."""
    loaded = Embedder.load(Settings.from_environment(ENVIRONMENT).model_options)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def oracle() -> Oracle:
    """FlagEmbedding on the same checkpoint."""
    return Oracle(MINI)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    """Qdrant Edge in an empty directory."""
    opened = EdgeStore(tmp_path / "edge")
    yield opened
    opened.close()


@pytest.fixture(scope="session")
def watched() -> Iterator[Watched]:
    """A model that records its batches and fails on texts with the word `zebra`."""
    loaded = Watched.loaded()
    yield loaded
    loaded.embedder.close()


@pytest.fixture
def serve(embedder: Embedder, store: EdgeStore) -> Serve:
    """A function that makes a worker with any settings, by default over Qdrant Edge."""
    given = store

    def served(*, store: Store | None = None, **variables: str) -> Client:
        settings = Settings.from_environment({**ENVIRONMENT, **variables})
        return Client(Operations(settings, embedder, store or given))

    return served


@pytest.fixture
def worker(serve: Serve) -> Client:
    """A worker with the default settings over an empty Qdrant Edge."""
    return serve()


@pytest.fixture
def small_multivectors(monkeypatch: pytest.MonkeyPatch) -> int:
    """Limit multivectors to 20 rows, and return that number."""
    monkeypatch.setattr(conformance, "MULTIVECTOR_VALUES_LIMIT", 21 * 192)
    return 20
