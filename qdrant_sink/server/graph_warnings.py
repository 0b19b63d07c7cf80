"""Warnings about collections whose graph is deferred, so that every search of them compares all points."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class GraphWarnings:
    """One warning per collection without a graph, and none while a bulk load of this process defers it. Thread-safe."""

    def __init__(self) -> None:
        self._own: set[str] = set()
        self._warned: set[str] = set()

    def deferred(self, collection: str) -> None:
        """Note that a load of this process has deferred the graph."""
        self._own.add(collection)

    def built(self, collection: str) -> None:
        """Note that the graph is restored."""
        self._own.discard(collection)

    def seen(self, collection: str, *, has_graph: bool) -> None:
        """Warn if the collection has no graph and nothing was said about it since it last had one."""
        if has_graph:
            self._warned.discard(collection)
        elif collection not in self._own and collection not in self._warned:
            self._warned.add(collection)
            log.warning(
                "collection %r has no graph (m = 0), so every search compares all points; a bulk load is running or "
                "was interrupted, and the next bulk load builds the graph",
                collection,
            )
