"""Documents in chunks that are being written: of two jobs with the same document, one follows the other."""

from __future__ import annotations

import threading
from collections.abc import Collection, Hashable, Iterator
from contextlib import contextmanager


class Documents:
    """Those that jobs of this process hold. Thread-safe.

    A job stores a document's chunks and then deletes what an earlier version had beyond them. Between the two, another
    job's chunks would be taken for those of an earlier version.
    """

    def __init__(self) -> None:
        self._held: set[Hashable] = set()
        self._released = threading.Condition()

    @contextmanager
    def held(self, documents: Collection[Hashable]) -> Iterator[None]:
        """Hold all of these for the block, waiting for other jobs to release theirs. Blocks."""
        with self._released:
            self._released.wait_for(lambda: self._held.isdisjoint(documents))
            self._held.update(documents)
        try:
            yield
        finally:
            with self._released:
                self._held.difference_update(documents)
                self._released.notify_all()
