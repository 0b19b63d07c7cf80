"""The number of threads of a pass on a CPU: fewer than the cores while other processes keep some of them busy.

The threads of a product wait for each other. If one of them shares its core with another process, all wait for it, a
slice of the scheduler at a time, and a query takes 2 to 10 times as long. With a thread less that core is left to the
other process. How long the threads wait for a core is known to the system, which is asked a few times per second.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Final

import torch

from embedder.engines.core_waits import join_team, others_computed_s, team_waited_s, usable_processors

log = logging.getLogger(__name__)

WAITED_MAX_SHARE: Final = 0.3
"""Seconds per second that the threads of passes together may wait for a core; a core that two share costs 0.5."""

SAMPLE_MIN_S: Final = 0.01
"""Least time of passes in which that is measured."""

SAMPLE_INTERVAL_S: Final = 0.2
"""Time between two measurements."""

EVIDENCE_MIN_S: Final = 0.2
"""Least time of passes that is measured, after a measurement above the share, before there is a thread less.

Two threads that began on the same core need up to 0.05 s until the system moves one.
"""

TRIAL_INTERVAL_MIN_S: Final = 0.25
"""Time until another thread is tried again; doubled after each trial that fails, up to `TRIAL_INTERVAL_MAX_S`."""

TRIAL_INTERVAL_MAX_S: Final = 4.0
"""Longest time between two trials: for so long a query may take longer after the other processes have ended."""

BLIND_TRIAL_INTERVAL_S: Final = 60.0
"""Time after which a thread is tried even if no core was free: its users may give way to this process."""

TRIAL_SETTLING_S: Final = 0.05
"""Time that a new thread has to come to a core of its own before it is measured."""

TRIAL_FREE_MIN_CORES: Final = 0.5
"""Part of another core that must have been free for a trial: one that fails makes requests wait."""


@dataclass(frozen=True, slots=True)
class _Sample:
    """When a measurement began, and how long the threads had waited by then, in seconds."""

    began: float
    waited_s: float


@dataclass(frozen=True, slots=True)
class System:
    """What the system is asked for, and told.

    Attributes:
        waited: seconds that the threads of passes have waited for a core so far, all together.
        others: seconds that other processes have computed so far on the cores of this one.
        use: has the calling thread compute with a number of threads.
        clock: seconds.
    """

    waited: Callable[[], float] = team_waited_s
    others: Callable[[], float] = others_computed_s
    use: Callable[[int], None] = torch.set_num_threads
    clock: Callable[[], float] = time.perf_counter


class SharedCores:
    """Chooses the threads of passes; the threads of all models of a process share its cores (`shared_cores`).

    `OMP_DYNAMIC=false`, OpenMP's own variable for it, leaves their number as it is.

    Args:
        most: number of threads while no other process computes.
        cores: number of processors that this process may run on.
        system: for tests, a system of their own.

    Attributes:
        threads: number of threads of the next pass.
    """

    def __init__(self, most: int, cores: int, system: System | None = None) -> None:
        self._most = self.threads = most
        self._cores = cores
        self._system = system or System()
        self._fixed = self._most == 1 or os.environ.get("OMP_DYNAMIC", "").strip().lower() == "false"
        self._passing = threading.Lock()
        self._of_thread = threading.local()
        self._sample: _Sample | None = None
        self._measured_s = self._lost_s = 0.0
        self._needed_s = SAMPLE_MIN_S
        self._due = 0.0
        self._is_trial = False
        self._trial_due = 0.0
        self._trial_interval_s = TRIAL_INTERVAL_MIN_S
        self._tried = 0.0
        self._others_since: tuple[float, float] = (0.0, 0.0)

    @contextmanager
    def measured(self, yield_point: Callable[[], None]) -> Iterator[Callable[[], None]]:
        """A pass in the block, which is measured now and then, and the yield point that it has to use.

        A pass that begins at a yield point of another one, or beside it, counts as a part of that one.

        Args:
            yield_point: what else is to be done between two pieces of the pass.
        """
        self._use()
        if self._fixed or not self._passing.acquire(blocking=False):
            yield yield_point
            return
        try:
            self._begin()

            def measuring() -> None:
                if self._sample is None:
                    self._begin()
                elif self._system.clock() - self._sample.began >= SAMPLE_INTERVAL_S:  # a long pass need not end for it
                    self._end()
                yield_point()

            yield measuring
        finally:
            self._end()
            self._passing.release()

    def _use(self) -> None:
        """Have the calling thread compute with the number of threads, which OpenMP keeps for each thread apart."""
        threads = self.threads + self._is_trial
        if not hasattr(self._of_thread, "threads"):
            join_team()
        elif self._of_thread.threads == threads:
            return
        self._of_thread.threads = threads
        self._system.use(threads)

    def _begin(self) -> None:
        now = self._system.clock()
        if now < self._due:
            return
        if self.threads < self._most and not self._is_trial and now >= self._trial_due and self._may_try(now):
            self._is_trial = True
            self._tried = now
            self._restart(now + TRIAL_SETTLING_S)
            self._use()
            return
        self._sample = _Sample(now, self._system.waited())

    def _may_try(self, now: float) -> bool:
        """Whether a part of another core was free since the last time this was asked, or nothing was tried for long."""
        since, before_s = self._others_since
        computed_s = self._system.others()
        self._others_since = now, computed_s
        self._trial_due = now + TRIAL_INTERVAL_MIN_S
        busy = (computed_s - before_s) / max(now - since, 1e-9)
        has_free_core = self._cores - self.threads - busy >= TRIAL_FREE_MIN_CORES
        return has_free_core or now - self._tried >= BLIND_TRIAL_INTERVAL_S

    def _end(self) -> None:
        if self._sample is None:
            return
        now = self._system.clock()
        self._measured_s += now - self._sample.began
        self._lost_s += self._system.waited() - self._sample.waited_s
        self._sample = None
        if self._measured_s < self._needed_s:
            return
        is_shared = self._lost_s > WAITED_MAX_SHARE * self._measured_s
        is_evidence = self._needed_s >= EVIDENCE_MIN_S
        self._restart(now + SAMPLE_INTERVAL_S)
        if self._is_trial:
            self._end_trial(now, is_shared=is_shared)
        elif is_shared and is_evidence:
            self._change(self.threads - 1)
            self._tried = now
            self._others_since = now, self._system.others()
            self._trial_due = now + self._trial_interval_s
        elif is_shared and self.threads > 1:
            self._needed_s = EVIDENCE_MIN_S
            self._due = now

    def _end_trial(self, now: float, *, is_shared: bool) -> None:
        self._is_trial = False
        if is_shared:
            self._trial_interval_s = min(2 * self._trial_interval_s, TRIAL_INTERVAL_MAX_S)
            self._trial_due = now + self._trial_interval_s
            self._use()
        else:
            self._trial_interval_s = TRIAL_INTERVAL_MIN_S
            self._change(self.threads + 1)

    def _restart(self, due: float) -> None:
        """Begin the next measurement at this time at the earliest."""
        self._measured_s = self._lost_s = 0.0
        self._needed_s = SAMPLE_MIN_S
        self._due = due

    def _change(self, threads: int) -> None:
        self.threads = threads
        self._use()
        log.debug("%d of %d threads compute", threads, self._most)


@cache
def shared_cores() -> SharedCores:
    """That of this process; its first call takes torch's number of threads as the most."""
    return SharedCores(torch.get_num_threads(), len(usable_processors()))
