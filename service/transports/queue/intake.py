"""The number of jobs that the SDK takes: as many as the worker can handle soon, and none during a shutdown.

The SDK takes jobs up to a limit, which it asks for before each poll. Four properties of the SDK rule out a plain
number, so the limit is a special integer (`_Limit`):

- The SDK counts a waiting job twice, and sleeps for a second when the limit is reached.
- If the limit differs from the size of its own queue, it takes no job until every job is answered.
- It repeats a failed poll immediately, hundreds of times per second, but pauses for a second if the worker is full.
- Its shutdown loses a job that the open poll delivers after the signal, since nothing reads the queue any more.
  Therefore the signal closes the intake first, and reaches the SDK only when every delivered job is answered.
"""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Callable
from types import FrameType
from typing import Final, Self

log = logging.getLogger(__name__)

CAPACITY_MIN_JOBS: Final = 128
"""Minimum capacity of the SDK's queue. A larger one would exceed the URL of a ping (8 kB), which lists all jobs."""

HELD_INPUTS_MAX_BYTES: Final = 256_000_000
"""Maximum bytes of the inputs of held jobs, beyond which no further job is taken."""

LONG_POLL_MIN_S: Final = 0.1
"""Minimum duration of a poll without a job; a shorter one has failed."""

SHORT_POLLS_MAX: Final = 3
"""Consecutive short polls after which the worker reports that it is full, so that the SDK pauses."""


class _Limit(int):
    """A number of jobs that compares equal to the size of the SDK's queue, so that a change does not stop the SDK."""

    def __new__(cls, value: int, _capacity: int) -> Self:
        return super().__new__(cls, value)

    def __init__(self, _value: int, capacity: int) -> None:
        self._capacity = capacity

    def __eq__(self, other: object) -> bool:
        return self._capacity == other

    def __hash__(self) -> int:
        return hash(self._capacity)


class Intake:
    """The SDK's `concurrency_modifier`, which is called before each poll in the thread of the event loop.

    Args:
        jobs_max: maximum number of concurrent jobs; the SDK's queue holds a quarter more, and at least 128.
        held: returns the ids of all jobs that the SDK holds, waiting ones included.
        wanted: returns the number of jobs to hold.
        max_bytes: maximum bytes of the inputs of held jobs, beyond which no further job is taken.
        is_full: returns whether running requests leave no memory for another job.
        on_close: called by the signal that closes the intake, within its handler.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        jobs_max: int,
        held: Callable[[], set[str]],
        wanted: Callable[[], int],
        *,
        max_bytes: int = HELD_INPUTS_MAX_BYTES,
        is_full: Callable[[], bool] = lambda: False,
        on_close: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = max(CAPACITY_MIN_JOBS, jobs_max + jobs_max // 4)
        self._held = held
        self._wanted = wanted
        self._max_bytes = max_bytes
        self._is_full = is_full
        self._on_close = on_close
        self._clock = clock
        self._begun: dict[str, int] = {}
        self._taken = 0
        self._last_poll = (0, 0.0)  # jobs taken up to the last poll, and its time
        self._short_polls = 0
        self._closed = False
        self._stop_sdk: Callable[[int, FrameType | None], object] | int | None = None

    def begin(self, job_id: str, size: int) -> None:
        """Record that the handler has a job, with an input of `size` bytes, which has left the SDK's queue."""
        self._begun[job_id] = size
        self._taken += 1

    def close(self, _signal: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Take no more jobs and stop when all are answered; a signal handler."""
        self._closed = True
        self._on_close()

    def __call__(self, _current: int) -> int:
        """The limit for the next poll. If the intake is closed and no job is left, stop the SDK."""
        if self._stop_sdk is None:
            # By the first call, the SDK has registered its own handler and forked its ping process. A ping process
            # that inherited our handler, which only sets a flag, would never end.
            self._stop_sdk = signal.signal(signal.SIGTERM, self.close)
            return self.capacity
        held = self._held()
        self._begun = {job: size for job, size in self._begun.items() if job in held}
        count = len(held)
        if self._closed and not held and callable(self._stop_sdk):
            log.info("all jobs are answered; stopping the worker")
            self._stop_sdk(signal.SIGTERM, None)
        queued = count - len(self._begun)  # the SDK counts waiting jobs twice
        full = self._polls_fail(self._taken + queued) or self._closed or self._is_full()
        full = full or sum(self._begun.values()) > self._max_bytes
        limit = count if full else max(count, min(self._wanted(), self.capacity))
        return _Limit(limit + queued, self.capacity)

    def _polls_fail(self, taken: int) -> bool:
        """Whether the last polls returned immediately and without a job."""
        (taken_before, polled_at), now = self._last_poll, self._clock()
        self._last_poll = (taken, now)
        self._short_polls = self._short_polls + 1 if taken == taken_before and now - polled_at < LONG_POLL_MIN_S else 0
        if self._short_polls < SHORT_POLLS_MAX:
            return False
        self._short_polls = 0
        return True
