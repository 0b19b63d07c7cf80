"""The wait of one caller for the store: how long it lasts, and whether the caller is still there."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Final

from qdrant_sink import CallAbandoned


class StoreWait:
    """The wait for one or several calls of a store, which each answer prolongs.

    Args:
        limit_s: maximum time without an answer, the turn in the queue of threads included; None without a limit.
        clock: monotonic clock in seconds.
    """

    def __init__(self, limit_s: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit_s = limit_s
        self._clock = clock
        self._since = clock()
        self._is_over = False

    @property
    def remaining_s(self) -> float | None:
        """The seconds that are left; None without a limit."""
        return None if self._limit_s is None else max(0.0, self._since + self._limit_s - self._clock())

    def answered(self) -> None:
        """Begin the time anew, since the store has answered."""
        self._since = self._clock()

    def end(self) -> None:
        """Note that nobody waits any more."""
        self._is_over = True

    def check(self) -> None:
        """Check that somebody waits, before the store is called.

        Raises:
            CallAbandoned: nobody does.
        """
        if self._is_over:
            raise CallAbandoned("the caller no longer waits for the store")


WAIT: Final[ContextVar[StoreWait | None]] = ContextVar("store_wait", default=None)
"""The wait on whose behalf a thread calls the store."""
