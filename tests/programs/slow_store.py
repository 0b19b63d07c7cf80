"""The worker, over a store that takes a quarter of a second per request, and with progress ten times a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

import handler
from embedder.embedder import Embedder
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Point
from service.operations import Operations
from service.settings import Settings
from service.worker import serve


class SlowStore(EdgeStore):
    """Qdrant Edge, as if it were far away."""

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        time.sleep(0.25)
        super().upsert(collection, points, insert_only=insert_only)


def load(settings: Settings) -> Operations:
    """As `handler.build`, so that the handler answers with these operations."""
    store = SlowStore(Path(settings.qdrant_path))
    handler._operations = Operations(settings, Embedder.load(settings.model_options), store)
    return handler._operations


if __name__ == "__main__":
    sys.exit(serve(handler.handler, load, progress_s=0.1))
