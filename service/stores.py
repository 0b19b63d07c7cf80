"""Which store the settings name, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from qdrant_sink.store import Store
from service.settings import Settings


def open_store(settings: Settings, retried: Callable[[], None] = lambda: None) -> Store:
    """The server of `QDRANT_URL`, or where none is set the embedded store under `QDRANT_PATH`.

    Args:
        settings: name it.
        retried: called for each call that is repeated.
    """
    names = settings.qdrant_collection_config.names
    if settings.qdrant_url is not None:
        from qdrant_sink.server import ServerStore

        key = settings.qdrant_api_key
        secret = None if key is None else key.get_secret_value()
        return ServerStore(settings.qdrant_url, secret, names=names, retried=retried)
    from qdrant_sink.edge import EdgeStore

    return EdgeStore(Path(settings.qdrant_path), names=names)
