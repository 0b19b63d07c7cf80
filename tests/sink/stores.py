"""Stores to test: Qdrant Edge, a server double on a loopback port, and a real server if QDRANT_URL is set."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import StoreRejected
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble

STORES: Final = ["edge", "double", pytest.param("server", marks=pytest.mark.server)]
"""Kinds of stores as parameters of a fixture. Tests of a real server are skipped unless QDRANT_URL is set."""

EMBEDDED_FIRST: Final = ["edge", pytest.param("double", marks=pytest.mark.slow)]
"""Stores for tests of what is above both adapters: in the default run over Qdrant Edge alone."""


@contextmanager
def opened(kind: str, root: Path) -> Iterator[Store]:
    """Open a store of this kind with its data under `root`."""
    double = GrpcDouble(root) if kind == "double" else None
    store: Store
    if double is not None:
        store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, timeout_s=5, deadline_s=3.0, pause_s=0.02)
    elif kind == "edge":
        store = EdgeStore(root / "edge")
    else:
        url, key = real_server()
        store = ServerStore(url, key, grpc_port=real_grpc_port(), deadline_s=5.0)
    try:
        yield store
    finally:
        store.close()
        if double is not None:
            double.stop()


def real_server() -> tuple[str, str | None]:
    """Return the URL and the key of the server from the environment. Without QDRANT_URL the test is skipped."""
    url = os.environ.get("QDRANT_URL")
    if not url:
        pytest.skip("QDRANT_URL is not set")
    return url, os.environ.get("QDRANT_API_KEY")


def lacks_version(request: pytest.FixtureRequest, error: StoreRejected) -> bool:
    """Whether a real server refused a call because it is too old. The other stores are of the newest version."""
    return request.node.get_closest_marker("server") is not None and "needs Qdrant" in error.message


def real_grpc_port() -> int | None:
    """Return the gRPC port of the server if QDRANT_GRPC_PORT names one."""
    port = os.environ.get("QDRANT_GRPC_PORT")
    return int(port) if port else None


def drop(*names: str) -> None:
    """Delete the collections of the real server whose names start with one of these prefixes."""
    from qdrant_client import QdrantClient

    url, key = real_server()
    client = QdrantClient(url=url, api_key=key, check_compatibility=False)
    for description in client.get_collections().collections:
        if description.name.startswith(names):
            client.delete_collection(description.name)
    client.close()
