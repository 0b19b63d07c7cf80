"""Warnings about collections whose graph is deferred, so that every search of them compares all points."""

from __future__ import annotations

import logging

log = logging.getLogger(__name__)


class GraphWarnings:
    """One warning per collection that is searched without a graph. Thread-safe.

    Only a search is slow without one. The loads that defer and build graphs write, and are not warned of themselves.
    """

    def __init__(self) -> None:
        self._lacking: set[str] = set()
        self._warned: set[str] = set()

    def seen(self, collection: str, *, has_graph: bool) -> None:
        """Note whether a collection has a graph.

        Args:
            collection: name of the collection or of an alias.
            has_graph: whether it has one.
        """
        if has_graph:
            self._lacking.discard(collection)
            self._warned.discard(collection)
        else:
            self._lacking.add(collection)

    def searched(self, collection: str) -> None:
        """Warn if the collection had no graph when it was last seen, and no search has warned of that yet.

        Args:
            collection: the name by which it was seen.
        """
        if collection in self._lacking and collection not in self._warned:
            self._warned.add(collection)
            log.warning(
                "collection %r has no graph (m = 0), so every search compares all points; a bulk load is running or "
                "was interrupted, and the next bulk load builds the graph",
                collection,
            )
