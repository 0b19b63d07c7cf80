"""The worker over a store that takes 250 ms per request, with progress ten times a second."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from embedder import Embedder
from qdrant_sink import Point
from qdrant_sink.edge import EdgeStore
from service.operations import Operations
from service.settings import Settings
from tests.programs.serving import serve


class SlowStore(EdgeStore):
    """A Qdrant Edge store with the latency of a remote server."""

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        time.sleep(0.25)
        super().upsert(collection, points, insert_only=insert_only)


def build(settings: Settings) -> Operations:
    """Build the operations over a slow store."""
    return Operations(settings, Embedder.load(settings.model_options), SlowStore(Path(settings.qdrant_path or "")))


if __name__ == "__main__":
    sys.exit(serve(build, progress_s=0.1))
