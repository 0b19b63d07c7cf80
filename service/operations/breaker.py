"""The breaker in front of a store that does not answer: calls fail immediately while a single one tries again."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

FAILURES_MAX: Final = 3
"""Consecutive calls without an answer after which further calls fail immediately."""

TRIAL_INTERVAL_S: Final = 5.0
"""Time between two calls that try whether the store answers again."""


class Breaker:
    """Counts the calls without an answer. Thread-safe, and without a thread or a timer of its own.

    Args:
        failures_max: consecutive failures after which calls are refused.
        trial_interval_s: time between two calls that are admitted nevertheless.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self,
        failures_max: int = FAILURES_MAX,
        trial_interval_s: float = TRIAL_INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._failures_max = failures_max
        self._interval_s = trial_interval_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._next_trial_at = 0.0

    def refusal_s(self) -> float | None:
        """The seconds after which to ask again; None if the call may begin.

        While the store does not answer, one call per interval is the trial.
        """
        with self._lock:
            if self._failures < self._failures_max:
                return None
            now = self._clock()
            if now < self._next_trial_at:
                return self._next_trial_at - now
            self._next_trial_at = now + self._interval_s
            return None

    def answered(self) -> None:
        """Admit all calls again, since the store has answered one."""
        with self._lock:
            self._failures = 0

    def failed(self) -> None:
        """Count a call without an answer."""
        with self._lock:
            self._failures += 1
            if self._failures >= self._failures_max:
                self._next_trial_at = self._clock() + self._interval_s
