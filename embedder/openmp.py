"""The number of OpenMP's threads, which multiply matrices on a CPU; it is read from the environment as torch loads."""

from __future__ import annotations

import math
import os
from collections.abc import MutableMapping

from embedder.cpu_quota import cpu_quota


def configure(
    environment: MutableMapping[str, str], *, quota: float | None = None, processors: int | None = None
) -> None:
    """Set `OMP_NUM_THREADS` where a quota allows fewer processors than there are, unless the user has set it.

    OpenMP itself counts processors and knows no quota: more threads than it allows are stopped by the system in the
    middle of a product, for which the others wait. It has an effect until torch is imported. Processes that this one
    starts inherit it.

    Args:
        environment: variables of this process, which are changed.
        quota: CPU quota in processors; None reads that of the control groups.
        processors: number of processors that this process may run on; None asks the system.
    """
    if environment.get("OMP_NUM_THREADS"):
        return
    quota = cpu_quota() if quota is None else quota
    processors = _processors() if processors is None else processors
    if quota is not None and (threads := max(1, math.floor(quota + 0.5))) < processors:
        environment["OMP_NUM_THREADS"] = str(threads)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
