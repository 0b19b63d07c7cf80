"""Fixtures of the service tests: one loaded `mini`, another model, and workers with their own stores."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedder import Embedder, ModelOptions
from embedder.checkpoint import MINI
from qdrant_sink import Store, conformance
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.embedder.oracle import Oracle
from tests.service.client import ENVIRONMENT, Client
from tests.service.doubles import Watched
from tests.sink.grpc_double import GrpcDouble
from tests.sink.optimizing import optimize_here

Serve = Callable[..., Client]
"""`serve(store=..., NAME="value")` returns a client of operations over the session's model with these settings."""


@pytest.fixture(scope="module", autouse=True)
def _optimized_here() -> Iterator[None]:
    """Collections are optimised in this process; see `tests.sink.optimizing`."""
    with pytest.MonkeyPatch.context() as patch:
        optimize_here(patch)
        yield


@pytest.fixture(scope="session")
def embedder() -> Iterator[Embedder]:
    """The model of `mini` in float32 on the CPU."""
    loaded = Embedder.load(Settings.from_environment(ENVIRONMENT).model_options)
    yield loaded
    loaded.close()


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the size and the vocabulary of `mini` with other weights, in the directory `stranger`."""
    directory = tmp_path_factory.mktemp("checkpoints") / "stranger"
    shutil.copytree(MINI, directory)
    weights = load_file(directory / "model.safetensors")
    generator = torch.Generator().manual_seed(7)
    drawn = {
        name: weight.flatten()[torch.randperm(weight.numel(), generator=generator)] for name, weight in weights.items()
    }
    save_file({name: drawn[name].view_as(weight) for name, weight in weights.items()}, directory / "model.safetensors")
    return directory


@pytest.fixture(scope="session")
def other(stranger: Path) -> Iterator[Embedder]:
    """The model of `stranger`."""
    options = ModelOptions(model_id=str(stranger), device="cpu", dtype="float32", token_budget=4096)
    loaded = Embedder.load(options)
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


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A server on a loopback port."""
    server = GrpcDouble(tmp_path)
    yield server
    server.stop()


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


@pytest.fixture
def signals() -> Iterator[None]:
    """What the command sets for the two signals is gone afterwards."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)
