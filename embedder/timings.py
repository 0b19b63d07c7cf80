"""Timings of a request: seconds by stage, measured where the stage runs and summed where the request is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

_current: ContextVar[Timings | None] = ContextVar("timings", default=None)


class Timings:
    """Seconds by stage of one request; a stage that ran several times is summed. Thread-safe.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within the block, in tasks and threads that copy its context, `timed` adds to these timings."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a stage, whether the block ends well or raises."""
        started = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    @property
    def seconds(self) -> dict[str, float]:
        """A copy of the seconds measured so far, by stage."""
        with self._lock:
            return dict(self._seconds)


@contextmanager
def timed(name: str) -> Iterator[None]:
    """Measure the block as a stage of the current request; without a current request, do nothing."""
    timings = _current.get()
    if timings is None:
        yield
    else:
        with timings.measured(name):
            yield
