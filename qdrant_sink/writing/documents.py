"""Locks on documents in chunks: jobs with the same document run one after the other."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from qdrant_sink.points import PointId


class DocumentLocks:
    """Documents that jobs of this process are writing. Thread-safe.

    A job stores a document's chunks and then deletes what an earlier version had beyond them. Between the two, another
    job's chunks would be taken for those of an earlier version.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, str, PointId]] = set()
        self._released = threading.Condition()

    @contextmanager
    def held(self, collection: str, scope: str, documents: Collection[PointId]) -> Iterator[None]:
        """Hold all of these documents for the block, after waiting for the jobs that hold any of them. Blocks.

        Args:
            collection: that the documents are in, never an alias of it: see `Catalogue.resolve`.
            scope: what derived ids belong to, as in `chunk_id`.
            documents: ids of the documents.
        """
        keys = {(collection, scope, document) for document in documents}
        with self._released:
            self._released.wait_for(lambda: self._held.isdisjoint(keys))
            self._held.update(keys)
        try:
            yield
        finally:
            with self._released:
                self._held.difference_update(keys)
                self._released.notify_all()
