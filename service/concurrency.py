"""How many queue jobs run at once: between a minimum and a maximum, by the rate at which they arrive."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

WINDOW = 60.0
"""Seconds over which the arrival rate is measured."""


class Concurrency:
    """Admits jobs up to a limit that follows the arrival rate.

    At each arrival the limit grows by one while the rate is above `scale_up` and shrinks by one while it
    is at or below `scale_down`. Jobs over the limit wait their turn here, in order, while the SDK goes on
    taking jobs: its own limit (`intake`) is a constant, because each change of it stops the intake until
    the worker is empty, and because it counts a job twice while it queues.

    Args:
        minimum: jobs at once in quiet times, and at the start.
        maximum: jobs at once at most.
        scale_up: requests per second above which the limit grows.
        scale_down: requests per second at or below which it shrinks.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        minimum: int,
        maximum: int,
        *,
        scale_up: float,
        scale_down: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minimum = minimum
        self._maximum = maximum
        self._scale_up = scale_up
        self._scale_down = scale_down
        self._clock = clock
        self._arrivals: deque[float] = deque()
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._running = 0
        self.limit = minimum
        """Jobs that may run at once now."""

    @property
    def intake(self) -> int:
        """The limit to tell the SDK: twice the jobs in flight and one, so that it fetches while they run."""
        return 2 * self._maximum + 1

    @property
    def rate(self) -> float:
        """Arrivals per second over the last minute."""
        now = self._clock()
        while self._arrivals and self._arrivals[0] <= now - WINDOW:
            self._arrivals.popleft()
        return len(self._arrivals) / WINDOW

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a place, and hold it for the block. A job that is cancelled gives it back."""
        self._arrived()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
            yield
        finally:
            if not turn.cancelled():
                self._running -= 1
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._running < self.limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._running += 1

    def _arrived(self) -> None:
        rate = self.rate
        self._arrivals.append(self._clock())
        if rate > self._scale_up:
            self.limit = min(self.limit + 1, self._maximum)
        elif rate <= self._scale_down:
            self.limit = max(self.limit - 1, self._minimum)
