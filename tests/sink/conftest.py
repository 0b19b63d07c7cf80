"""Fixtures with the stores under test. All tests share the stores of `store`, and each test has its own collection."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.stores import STORES, drop, opened


@pytest.fixture
def edge_store(tmp_path: Path) -> Iterator[EdgeStore]:
    """Qdrant Edge in an empty directory."""
    store = EdgeStore(tmp_path / "edge")
    yield store
    store.close()


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A server on a loopback port."""
    root = tmp_path / "double"
    root.mkdir()
    server = GrpcDouble(root)
    yield server
    server.stop()


@pytest.fixture
def server_store(double: GrpcDouble) -> Iterator[ServerStore]:
    """The server adapter, connected to the double."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=3.0, pause_s=0.02)
    yield store
    store.close()


@pytest.fixture(scope="session", params=STORES)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """Each kind of store. A test must leave it open, and must change only its own `collection`."""
    with opened(request.param, tmp_path_factory.mktemp(request.param)) as shared:
        yield shared


@pytest.fixture
def collection(request: pytest.FixtureRequest) -> Iterator[str]:
    """A unique collection name. Collections with this prefix are deleted from a real server after the test."""
    name = f"test_{uuid.uuid4().hex}"
    yield name
    if request.node.get_closest_marker("server"):
        drop(name)
