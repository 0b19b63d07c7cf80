"""The CPU quota of the container: the processors' time that its control groups allow, in processors."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_GROUPS: Final = Path("/proc/self/cgroup")
"""The control groups of this process, a line `NUMBER:CONTROLLERS:PATH` each; version 2 has no controllers there."""

_MOUNT: Final = Path("/sys/fs/cgroup")
"""Mount point of the control groups. In a container it often shows the container's own group as the root."""


def cpu_quota(groups: Path = _GROUPS, mount: Path = _MOUNT) -> float | None:
    """The least quota of this process's control groups and of those above them in processors; None without one.

    Args:
        groups: file that names the control groups of the process.
        mount: directory under which they are mounted.
    """
    quotas = [quota for folder in _folders(groups, mount) if (quota := _quota(folder)) is not None]
    return min(quotas, default=None)


def present_processors() -> int:
    """The number of processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def usable_processors(present: int, quota: float | None) -> int:
    """The number of threads that can compute all the time: the processors, or the rounded quota if it is less.

    Args:
        present: number of processors that the process may run on.
        quota: CPU quota in processors; None without one.
    """
    return present if quota is None else min(present, max(1, math.floor(quota + 0.5)))


def _folders(groups: Path, mount: Path) -> Iterator[Path]:
    """The directories of the groups that may have a quota, innermost first, and always the roots."""
    for line in (_text(groups) or "").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mount / controllers
        folder = root / path.lstrip("/")
        if ".." not in folder.parts:  # else the group is outside of what the container sees
            yield from (parent for parent in (folder, *folder.parents) if parent.is_relative_to(root))
    yield from (mount, mount / "cpu")


def _quota(folder: Path) -> float | None:
    """The quota of one group, of version 2 or 1."""
    text = _text(folder / "cpu.max")  # "max 100000" or "150000 100000", in microseconds
    if text is None:
        text = f"{_text(folder / 'cpu.cfs_quota_us')} {_text(folder / 'cpu.cfs_period_us')}"
    try:
        quota, period = map(int, text.split())
    except ValueError:
        return None
    return quota / period if quota > 0 and period > 0 else None


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        return None
