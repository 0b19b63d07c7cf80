"""How the two stores are opened. Their clients are imported only then, which costs seconds of start-up time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qdrant_sink.schema import NAMES, VectorNames
from qdrant_sink.store import Store


def open_server(
    url: str, api_key: str | None = None, *, names: VectorNames = NAMES, retried: Callable[[], None] = lambda: None
) -> Store:
    """A Qdrant server or cluster; it is connected on the first call.

    Args:
        url: `http://host:6333` or `https://…`, with a path prefix where a proxy wants one.
        api_key: sent with every call; never shown.
        names: of the vectors, in every collection.
        retried: called before each repeated attempt of a call; must not raise.

    Raises:
        ConfigurationError: the URL is invalid.
    """
    from qdrant_sink.server import ServerStore

    return ServerStore(url, api_key, names=names, retried=retried)


def open_edge(path: str | Path, *, names: VectorNames = NAMES) -> Store:
    """Qdrant Edge in this process, over a directory that is made if it is missing.

    Args:
        path: directory of the collections.
        names: of the vectors, in every collection.

    Raises:
        ConfigurationError: the directory cannot be written, or another process owns it.
    """
    from qdrant_sink.edge import EdgeStore

    return EdgeStore(path, names=names)
