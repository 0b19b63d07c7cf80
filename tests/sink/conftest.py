"""The stores under test: Qdrant Edge, a server behind the loopback double, and a real one where there is."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble


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
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=3.0)
    yield store
    store.close()


@pytest.fixture(params=["edge", "double", "server"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Every store in turn; a real server only where QDRANT_URL names one."""
    if request.param == "server":
        url = os.environ.get("QDRANT_URL")
        if not url:
            pytest.skip("QDRANT_URL is not set")
        real = ServerStore(url, os.environ.get("QDRANT_API_KEY"))
        yield real
        real.close()
    else:
        yield request.getfixturevalue("edge_store" if request.param == "edge" else "server_store")


@pytest.fixture
def collection(store: Store) -> Iterator[str]:
    """A name nobody else has, alone or with a suffix; a real server is rid of them afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    yield name
    if isinstance(store, ServerStore) and (url := os.environ.get("QDRANT_URL")):
        from qdrant_client import QdrantClient

        client = QdrantClient(url=url, api_key=os.environ.get("QDRANT_API_KEY"), check_compatibility=False)
        for found in client.get_collections().collections:
            if found.name.startswith(name):
                client.delete_collection(found.name)
        client.close()
