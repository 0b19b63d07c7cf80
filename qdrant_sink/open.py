"""Open a store. The client library is imported on the call, because importing it takes seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qdrant_sink.address import ServerUrl, TransportChoice
from qdrant_sink.store import Store


def open_server(
    url: str | ServerUrl,
    api_key: str | None = None,
    *,
    transport: TransportChoice = "auto",
    grpc_port: int | None = None,
    timeout_s: float = 10.0,
    retried: Callable[[], None] = lambda: None,
) -> Store:
    """Open a Qdrant server or cluster. The store connects on its first call.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix if a proxy needs one.
        api_key: API key, which is sent with every call and never logged.
        transport: `auto`, `grpc` or `rest`; see `qdrant_sink.address`.
        grpc_port: port of gRPC; None for 6334 if the URL names port 6333 or no port, and for REST if it names another.
        timeout_s: timeout of a read on which a user waits, and the time after which it is not tried again, in seconds.
        retried: callback before each repeated attempt of a call; it must not raise.

    Raises:
        ConfigurationError: the URL is invalid, or the port of gRPC is needed and unknown.
    """
    from qdrant_sink.server import ServerStore

    return ServerStore(
        url, api_key, transport=transport, grpc_port=grpc_port, interactive_deadline_s=timeout_s, retried=retried
    )


def check_server(
    url: str | ServerUrl,
    api_key: str | None = None,
    *,
    transport: TransportChoice = "auto",
    grpc_port: int | None = None,
    timeout_s: float,
) -> None:
    """Check that a Qdrant server answers, without a retry.

    Args:
        url: as of `open_server`.
        api_key: likewise.
        transport: likewise.
        grpc_port: likewise.
        timeout_s: timeout in seconds; twice as long where gRPC does not answer and REST is asked too.

    Raises:
        ConfigurationError: the URL is invalid, or the port of gRPC is needed and unknown.
        StoreUnavailable: the server does not answer.
    """
    from qdrant_sink.server.contact import check_answers
    from qdrant_sink.server.store import address_of

    check_answers(address_of(url, transport, grpc_port), api_key, timeout_s=timeout_s)


def open_edge(path: str | Path, *, reserve_bytes: int | None = None) -> Store:
    """Open Qdrant Edge in this process. The directory is created if it is missing, for this user alone.

    Args:
        path: directory of the collections.
        reserve_bytes: space that writes leave free on the disk, in bytes; None for 256 MB.

    Raises:
        ConfigurationError: the directory cannot be written, or another process uses it.
    """
    from qdrant_sink.edge import DiskSpace, EdgeStore

    return EdgeStore(path, space=None if reserve_bytes is None else DiskSpace(reserve_bytes))
