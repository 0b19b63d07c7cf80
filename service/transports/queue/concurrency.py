"""The number of queue jobs that run concurrently, which follows their arrival rate."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

ARRIVALS_WINDOW_S = 60.0
"""Window over which the arrival rate is measured."""

WAITING_MAX_S = 10.0
"""Maximum work that waits in this worker, since an idle worker cannot take jobs that wait here."""

JOB_INITIAL_S = 0.1
"""Assumed duration of a job before the first measurement."""

_LAST_JOB_WEIGHT = 0.2
"""Weight of the latest job in the moving average of durations."""


class Concurrency:
    """Admits jobs up to a limit that follows the arrival rate.

    At each arrival the limit grows by one if the rate is above `scale_up`, and shrinks by one if the rate is at or
    below `scale_down`. Jobs over the limit wait in order of arrival. `wanted` is the number of jobs to hold.

    Args:
        minimum: minimum and initial number of concurrent jobs.
        maximum: maximum number of concurrent jobs.
        scale_up: rate in requests per second above which the limit grows.
        scale_down: rate in requests per second at or below which the limit shrinks.
        clock: monotonic clock in seconds.
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
        self._running: dict[asyncio.Future[None], float] = {}  # start times
        self._mean = JOB_INITIAL_S
        self.limit = minimum
        """Number of jobs that may run concurrently now."""

    @property
    def wanted(self) -> int:
        """Number of jobs to hold, running and waiting: `maximum` plus those that `WAITING_MAX_S` should complete.

        With fewer than `maximum`, slow jobs would arrive only as fast as they end, which would hide their real rate.
        The duration of a job is estimated from the finished and the running jobs.
        """
        now = self._clock()
        ages = [now - since for since in self._running.values()]
        seconds = max(self._mean, sum(ages) / len(ages) if ages else 0.0)
        return self._maximum + int(WAITING_MAX_S * self.limit / max(seconds, 1e-3))

    @property
    def rate(self) -> float:
        """Arrivals per second over the last minute."""
        now = self._clock()
        while self._arrivals and self._arrivals[0] <= now - ARRIVALS_WINDOW_S:
            self._arrivals.popleft()
        return len(self._arrivals) / ARRIVALS_WINDOW_S

    @asynccontextmanager
    async def slot(self) -> AsyncIterator[None]:
        """Wait for a slot and hold it for the block. A cancelled job releases its slot."""
        self._arrived()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self._admit()
        try:
            await turn
            yield
            taken = self._clock() - self._running[turn]
            self._mean += _LAST_JOB_WEIGHT * (taken - self._mean)
        finally:
            self._running.pop(turn, None)
            self._admit()

    def _admit(self) -> None:
        while self._waiting and len(self._running) < self.limit:
            turn = self._waiting.popleft()
            if not turn.cancelled():
                turn.set_result(None)
                self._running[turn] = self._clock()

    def _arrived(self) -> None:
        rate = self.rate
        self._arrivals.append(self._clock())
        if rate > self._scale_up:
            self.limit = min(self.limit + 1, self._maximum)
        elif rate <= self._scale_down:
            self.limit = max(self.limit - 1, self._minimum)
