"""How many jobs the SDK may hold: a constant, and none once the process is told to stop.

The SDK's own shutdown loses a job that its open poll delivers after the signal: nobody reads the queue that
the job is put into. So the signal first closes the intake, here, and reaches the SDK only when every job
that was delivered has been answered.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from types import FrameType

log = logging.getLogger(__name__)


class Intake:
    """The SDK's `concurrency_modifier`: it is called before each poll, in the thread of the event loop.

    Args:
        limit: jobs that the SDK may hold, running or queued.
        held: ids of the jobs that the SDK holds now.
    """

    def __init__(self, limit: int, held: Callable[[], set[str]]) -> None:
        self._limit = limit
        self._held = held
        self._begun: set[str] = set()
        self._closed = False
        self._stop_sdk: Callable[[int, FrameType | None], object] | int | None = None

    def begin(self, job_id: str) -> None:
        """The handler has this job: it will be answered even if no more jobs are started."""
        self._begun.add(job_id)

    def close(self, _signal: int = signal.SIGTERM, _frame: FrameType | None = None) -> None:
        """Take no more jobs, finish those taken, then stop; as a signal handler."""
        self._closed = True

    def __call__(self, _current: int) -> int:
        """The limit for the next poll; once closed and empty, the SDK is told to stop."""
        if self._stop_sdk is None:
            # Not before the first call: the SDK has registered its own handler by then, and forked its ping
            # process, which would inherit a handler that only sets a flag and so never end.
            self._stop_sdk = signal.signal(signal.SIGTERM, self.close)
        held = self._held()
        self._begun &= held
        if not self._closed:
            return self._limit
        if held - self._begun:
            return 1  # at 0 the SDK would start none of those it has queued, and wait for them for ever
        if not held and callable(self._stop_sdk):
            log.info("every job is answered; stopping")
            self._stop_sdk(signal.SIGTERM, None)
        return 0
