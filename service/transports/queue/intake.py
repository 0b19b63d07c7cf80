"""How many jobs the SDK takes: as many as can be handled soon, and none once the process is told to stop.

The SDK takes jobs up to a limit, which it asks for before each poll. Four of its ways stand against a plain
answer, so its limit is a number of another kind (`_Limit`):

- it counts a job twice while it queues, and sleeps for a second when the limit is reached;
- when the limit differs from the size of its own queue, it takes nothing until every job is answered;
- a poll that fails is repeated at once, hundreds of times per second, while a full worker pauses for a second;
- its own shutdown loses a job that its open poll delivers after the signal, since nobody reads the queue that
  the job is put into. So the signal first closes the intake, here, and reaches the SDK only when every job
  that was delivered has been answered.
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
"""Jobs that the SDK's queue has room for. Not more: each of its pings names all of them in its URL (8 kB)."""

HELD_INPUTS_MAX_BYTES: Final = 256_000_000
"""Bytes of the inputs of held jobs beyond which no further job is taken."""

LONG_POLL_MIN_S: Final = 0.1
"""A poll that brings nothing in less time has not waited for a job: the queue fails."""

SHORT_POLLS_MAX: Final = 3
"""Short polls in a row after which the worker calls itself full, for the SDK to pause."""


class _Limit(int):
    """A number of jobs that equals the size of the SDK's queue, whatever its value: it changes and stops nothing."""

    def __new__(cls, value: int, _capacity: int) -> Self:
        return super().__new__(cls, value)

    def __init__(self, _value: int, capacity: int) -> None:
        self._capacity = capacity

    def __eq__(self, other: object) -> bool:
        return self._capacity == other

    def __hash__(self) -> int:
        return hash(self._capacity)


class Intake:
    """The SDK's `concurrency_modifier`: it is called before each poll, in the thread of the event loop.

    Args:
        most: maximum number of jobs that run concurrently; the SDK's queue has room for a quarter more, and for 128.
        held: ids of the jobs that the SDK holds now, those that wait in its queue included.
        wanted: how many jobs should be held now.
        max_bytes: inputs of held jobs beyond which none is taken.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        most: int,
        held: Callable[[], set[str]],
        wanted: Callable[[], int],
        *,
        max_bytes: int = HELD_INPUTS_MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.capacity = max(CAPACITY_MIN_JOBS, most + most // 4)
        self._held = held
        self._wanted = wanted
        self._max_bytes = max_bytes
        self._clock = clock
        self._begun: dict[str, int] = {}
        self._taken = 0
        self._last = (0, 0.0)  # jobs taken by the last poll, and when it was
        self._short_polls = 0
        self._closed = False
        self._stop_sdk: Callable[[int, FrameType | None], object] | int | None = None

    def begin(self, job_id: str, size: int) -> None:
        """The handler has this job, whose input has `size` bytes: it no longer waits in the SDK's queue."""
        self._begun[job_id] = size
        self._taken += 1

    def close(self, _signal: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Take no more jobs, finish those taken, then stop; as a signal handler."""
        self._closed = True

    def __call__(self, _current: int) -> int:
        """The limit for the next poll; once closed and empty, the SDK is told to stop."""
        if self._stop_sdk is None:
            # Not before the first call: the SDK has registered its own handler by then, and forked its ping
            # process, which would inherit a handler that only sets a flag and so never end.
            self._stop_sdk = signal.signal(signal.SIGTERM, self.close)
            return self.capacity
        held = self._held()
        self._begun = {job: size for job, size in self._begun.items() if job in held}
        count = len(held)
        if self._closed and not held and callable(self._stop_sdk):
            log.info("every job is answered; stopping")
            self._stop_sdk(signal.SIGTERM, None)
        queued = count - len(self._begun)  # the SDK counts these twice
        full = self._is_in_vain(self._taken + queued) or self._closed or sum(self._begun.values()) > self._max_bytes
        most = count if full else max(count, min(self._wanted(), self.capacity))
        return _Limit(most + queued, self.capacity)

    def _is_in_vain(self, taken: int) -> bool:
        """Whether the last polls came back at once and brought nothing."""
        (before, then), now = self._last, self._clock()
        self._last = (taken, now)
        self._short_polls = self._short_polls + 1 if taken == before and now - then < LONG_POLL_MIN_S else 0
        if self._short_polls < SHORT_POLLS_MAX:
            return False
        self._short_polls = 0
        return True
