"""How long a request spends in each of its stages, measured wherever the stage is, summed where the request is."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from threading import Lock

_current: ContextVar[Stages | None] = ContextVar("stages", default=None)


class Stages:
    """Seconds by stage of one request; a stage that ran several times is summed. Thread-safe.

    Args:
        clock: seconds, monotonic.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._lock = Lock()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def current(self) -> Iterator[None]:
        """Within the block, in tasks and threads that copy its context, `stage` adds to these."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def measured(self, name: str) -> Iterator[None]:
        """Add the seconds of the block to a stage, whether it ends well or not."""
        started = self._clock()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] = self._seconds.get(name, 0.0) + self._clock() - started

    @property
    def seconds(self) -> dict[str, float]:
        """What was measured so far."""
        with self._lock:
            return dict(self._seconds)


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Measure the block as a stage of the current request; without one, do nothing."""
    stages = _current.get()
    if stages is None:
        yield
    else:
        with stages.measured(name):
            yield
