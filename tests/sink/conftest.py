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


def real_server() -> tuple[str, str | None]:
    """URL and key of the server that the environment names; skips the test where it names none."""
    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip("QDRANT_URL is not set")
    return url, os.environ.get("QDRANT_API_KEY")


def drop(*names: str) -> None:
    """Delete the collections of the real server whose names start so."""
    from qdrant_client import QdrantClient

    url, key = real_server()
    client = QdrantClient(url=url, api_key=key, check_compatibility=False)
    for found in client.get_collections().collections:
        if found.name.startswith(names):
            client.delete_collection(found.name)
    client.close()


@pytest.fixture(params=["edge", "double", pytest.param("server", marks=pytest.mark.server)])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Every store in turn; a real server only where QDRANT_URL names one."""
    if request.param == "server":
        url, key = real_server()
        real = ServerStore(url, key, deadline_s=5.0)
        yield real
        real.close()
    else:
        yield request.getfixturevalue("edge_store" if request.param == "edge" else "server_store")


@pytest.fixture
def collection(store: Store, request: pytest.FixtureRequest) -> Iterator[str]:
    """A name nobody else has, alone or with a suffix; a real server is rid of them afterwards."""
    name = f"test_{uuid.uuid4().hex}"
    yield name
    if request.node.get_closest_marker("server"):
        drop(name)
