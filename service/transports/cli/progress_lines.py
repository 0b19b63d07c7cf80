"""The progress of a copy or a completion: a line at intervals."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Lock
from typing import Final

PROGRESS_INTERVAL_S: Final = 2.0
"""Minimum time between two lines of progress."""


class ProgressLines:
    """Prints the progress from time to time, and every new stage. Thread-safe.

    Args:
        say: prints a line.
        clock: monotonic clock in seconds.
    """

    def __init__(self, say: Callable[[str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._began: float | None = None
        self._latest = 0.0
        self._stage = ""
        self._lock = Lock()

    def show(self, stage: str, line: Callable[[float], str]) -> None:
        """Print the progress, unless it was printed just now. The first call begins the time, and prints nothing.

        Args:
            stage: what is being done.
            line: makes the line from the seconds since the first call.
        """
        with self._lock:
            now = self._clock()
            if self._began is None:
                self._began = self._latest = now
                self._stage = stage
                return
            if stage == self._stage and now - self._latest < PROGRESS_INTERVAL_S:
                return
            self._latest, self._stage = now, stage
            seconds = max(now - self._began, 1e-3)
        self._say(line(seconds))
