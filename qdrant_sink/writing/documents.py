"""Locks on chunked documents, so that jobs with the same document run one after the other."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from qdrant_sink.points import PointId


class DocumentLocks:
    """Locks on the documents that jobs of this process are writing. It is thread-safe.

    A job stores the chunks of a document and then deletes the additional chunks of an earlier version. Without a lock
    it could delete chunks that another job has stored in between.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, str, PointId]] = set()
        self._released = threading.Condition()

    @contextmanager
    def held(self, collection: str, scope: str, documents: Collection[PointId]) -> Iterator[None]:
        """Wait until no other job holds any of these documents, and hold them for the block.

        Args:
            collection: name of the collection, which must not be an alias; see `Catalogue.resolve`.
            scope: collection name from which ids are derived, as in `chunk_id`.
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
