"""The number of threads of a pass on a CPU: fewer than the cores while other processes keep some of them busy.

The threads of a product wait for each other. If one of them shares its core with another process, all wait for it, a
slice of the scheduler at a time, and a query takes 2 to 10 times as long. With a thread less that core is left to the
other process. How long threads wait for a core is known to the system, which is asked a few times per second.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch

log = logging.getLogger(__name__)

WAITED_MAX_SHARE: Final = 0.2
"""Seconds per second that all threads together may wait for a core; one core that is shared by two costs 0.5."""

SAMPLE_MIN_S: Final = 0.01
"""Least time of passes in which that is measured."""

SAMPLE_INTERVAL_S: Final = 0.2
"""Time between two measurements."""

SHARED_MIN_S: Final = 0.1
"""Time for which threads must wait without a break before there is one less.

Two threads that began on the same core need up to half of it until the system moves one.
"""

TRIAL_INTERVAL_MIN_S: Final = 1.0
"""Time until another thread is tried again; doubled after each trial that fails, up to `TRIAL_INTERVAL_MAX_S`."""

TRIAL_INTERVAL_MAX_S: Final = 4.0
"""Longest time between two trials: for so long a query may take longer after the other processes have ended."""

TRIAL_SETTLING_S: Final = 0.05
"""Time that a new thread has to come to a core of its own before it is measured."""

_TASKS: Final = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class _Sample:
    """When a measurement began, and how long the threads had waited by then, in seconds."""

    began: float
    waited_s: float


class SharedCores:
    """Chooses the threads of passes, which one thread at a time computes.

    `OMP_DYNAMIC=false`, OpenMP's own variable for it, leaves their number as it is.

    Args:
        most: number of threads while no other process computes; None is torch's number.
        waited: seconds that the threads of this process have waited for a core so far, all together.
        use: has the calling thread compute with a number of threads.
        clock: seconds.

    Attributes:
        threads: number of threads of the next pass.
    """

    def __init__(
        self,
        most: int | None = None,
        *,
        waited: Callable[[], float] | None = None,
        use: Callable[[int], None] = torch.set_num_threads,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._most = self.threads = torch.get_num_threads() if most is None else most
        self._waited = waited or waited_s
        self._use = use
        self._clock = clock
        self._fixed = self._most == 1 or os.environ.get("OMP_DYNAMIC", "").lower() == "false"
        self._passing = threading.Lock()
        self._sample: _Sample | None = None
        self._measured_s = self._lost_s = 0.0
        self._due = 0.0
        self._shared_since: float | None = None
        self._is_trial = False
        self._trial_due = 0.0
        self._trial_interval_s = TRIAL_INTERVAL_MIN_S

    @contextmanager
    def measured(self, yield_point: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """A pass in the block, which is measured now and then, and the yield point that it has to use.

        A pass that begins at a yield point of another one, or beside it, counts as a part of that one.

        Args:
            yield_point: what else is to be done between two pieces of the pass.
        """
        if self._fixed or not self._passing.acquire(blocking=False):
            yield yield_point
            return
        try:
            self._begin()

            def measuring() -> None:
                if self._sample is None:
                    self._begin()
                elif self._clock() - self._sample.began >= SAMPLE_INTERVAL_S:  # a long pass need not end for it
                    self._end()
                yield_point()

            yield measuring
        finally:
            self._end()
            self._passing.release()

    def _begin(self) -> None:
        now = self._clock()
        if now < self._due:
            return
        if self.threads < self._most and now >= self._trial_due and not self._is_trial:
            self._is_trial = True
            self._use(self.threads + 1)
            self._due = now + TRIAL_SETTLING_S
            return
        self._sample = _Sample(now, self._waited())

    def _end(self) -> None:
        if self._sample is None:
            return
        now, began = self._clock(), self._sample.began
        self._measured_s += now - began
        self._lost_s += self._waited() - self._sample.waited_s
        self._sample = None
        if self._measured_s < SAMPLE_MIN_S:
            return
        is_shared = self._lost_s > WAITED_MAX_SHARE * self._measured_s
        self._measured_s = self._lost_s = 0.0
        self._due = now + SAMPLE_INTERVAL_S
        if self._is_trial:
            self._is_trial = False
            self._end_trial(now, is_shared=is_shared)
        elif is_shared and self.threads > 1:
            self._due = now
            self._shared_since = self._shared_since or began
            if now - self._shared_since >= SHARED_MIN_S:
                self._shared_since = None
                self._change(self.threads - 1)
                self._trial_due = now + self._trial_interval_s
        else:
            self._shared_since = None

    def _end_trial(self, now: float, *, is_shared: bool) -> None:
        if is_shared:
            self._trial_interval_s = min(2 * self._trial_interval_s, TRIAL_INTERVAL_MAX_S)
            self._trial_due = now + self._trial_interval_s
            self._use(self.threads)
        else:
            self._trial_interval_s = TRIAL_INTERVAL_MIN_S
            self._change(self.threads + 1)

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._use(threads)
        log.debug("%d of %d threads compute", threads, self._most)


def waited_s(tasks: Path = _TASKS) -> float:
    """Seconds that the threads of this process were ready to run and waited for a core; 0 where the system says none.

    Args:
        tasks: directory with one directory per thread, whose `schedstat` has nanoseconds.
    """
    waited_ns = 0
    try:
        names = os.listdir(tasks)  # noqa: PTH208 - with paths it takes twice as long
    except OSError:
        return 0.0
    for name in names:
        try:
            with open(f"{tasks}/{name}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123 - likewise
                waited_ns += int(file.read(100).split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended
            continue
    return waited_ns / 1e9
