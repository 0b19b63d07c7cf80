"""What a load says while it waits for signs of life of other loads."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Final

from qdrant_sink.loading import LoadRecord
from service.operations.load_values import described

WAIT_MESSAGE_INTERVAL_S: Final = 10.0
"""Time between two messages during a wait."""


class LifeWait:
    """The waits of one load. It says when one begins, from time to time how long it lasts, and when it ends.

    Args:
        say: prints a message.
        limit_s: time after which a silent load counts as dead, in seconds.
        clock: monotonic clock in seconds.
    """

    def __init__(self, say: Callable[[str], None], limit_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._limit_s = limit_s
        self._clock = clock
        self._began: float | None = None
        self._latest = 0.0

    def go_on(self, others: Sequence[LoadRecord]) -> None:
        """Wait, or go on waiting, for loads of which it is unknown whether they are alive."""
        now = self._clock()
        if self._began is None:
            self._began = self._latest = now
            names = ", ".join(map(described, others))
            self._say(f"waiting for a sign of life of {names}, at most {self._limit_s:g} s")
        elif now - self._latest >= WAIT_MESSAGE_INTERVAL_S:
            self._latest = now
            self._say(f"still waiting, {now - self._began:.0f} of at most {self._limit_s:g} s")

    def end(self) -> None:
        """End the wait, if there is one."""
        if self._began is not None:
            self._say(f"the wait has ended after {self._clock() - self._began:.0f} s")
            self._began = None
