"""Locks on chunked documents, so that jobs with the same document run one after the other."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager


class DocumentLocks:
    """Locks on the documents that jobs of this process are writing. It is thread-safe.

    Without them both jobs would embed and store the document, and one of them would be superseded; see
    `qdrant_sink.writing.replacement`, which also decides between jobs of several processes.
    """

    def __init__(self) -> None:
        self._held: set[tuple[str, str]] = set()
        self._released = threading.Condition()

    @contextmanager
    def held(self, collection: str, documents: Collection[str]) -> Iterator[None]:
        """Wait until no other job holds any of these documents, and hold them for the block.

        Args:
            collection: name of the collection, which must not be an alias; see `Catalogue.resolve`.
            documents: keys of the documents; see `document_key`.
        """
        keys = {(collection, document) for document in documents}
        with self._released:
            self._released.wait_for(lambda: self._held.isdisjoint(keys))
            self._held.update(keys)
        try:
            yield
        finally:
            with self._released:
                self._held.difference_update(keys)
                self._released.notify_all()
