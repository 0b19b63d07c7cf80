"""What Linux says of the cores of this process: how long its passes waited for one, and how long others computed."""

from __future__ import annotations

import os
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

TEAM_NAME: Final = "bge-m3-pass"
"""Name of the threads that compute passes; those that OpenMP starts for such a thread inherit it."""

_TASKS: Final = Path("/proc/self/task")
_STAT: Final = Path("/proc/stat")
_BUSY_FIELDS: Final = (0, 2, 5, 6)
"""Among the times of a processor: users' processes, the system, and two kinds of interrupts.

What processes of low priority (`nice`) compute is left out: they give the processor to others.
"""


def join_team(tasks: Path = _TASKS) -> None:
    """Name the calling thread as one that computes passes; the main thread keeps its name, which is the process's."""
    thread = threading.get_native_id()
    if thread == os.getpid():
        return
    with suppress(OSError):
        (tasks / str(thread) / "comm").write_text(TEAM_NAME, encoding="ascii")


def team_waited_s(tasks: Path = _TASKS) -> float:
    """Seconds that the threads of passes were ready to run and waited for a core; 0 where the system says none.

    Other threads of the process do not count: a tokenizer's that waits for a core delays no product.

    Args:
        tasks: directory with one directory per thread, whose `comm` is its name and whose `schedstat` has nanoseconds.
    """
    waited_ns = 0
    try:
        names = os.listdir(tasks)  # noqa: PTH208 - with paths it takes twice as long
    except OSError:
        return 0.0
    for name in names:
        try:
            with open(f"{tasks}/{name}/comm", "rb", buffering=0) as file:  # noqa: PTH123 - likewise
                if file.read(100).strip() != TEAM_NAME.encode():
                    continue
            with open(f"{tasks}/{name}/schedstat", "rb", buffering=0) as file:  # noqa: PTH123 - likewise
                waited_ns += int(file.read(100).split()[1])
        except (OSError, ValueError, IndexError):  # the thread has ended
            continue
    return waited_ns / 1e9


def others_computed_s(stat: Path = _STAT, processors: frozenset[int] | None = None) -> float:
    """Seconds that other processes have computed on the processors that this one may use; only differences count.

    Where the system does not say it, the difference is never above 0.

    Args:
        stat: file with a line `cpuN TIME ...` per processor, in ticks.
        processors: numbers of the processors; None asks the system.
    """
    numbers = usable_processors() if processors is None else processors
    ticks = 0
    with suppress(OSError, ValueError, IndexError):
        for line in stat.read_text(encoding="ascii").splitlines():
            name, *times = line.split()
            if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in numbers:
                ticks += sum(int(times[field]) for field in _BUSY_FIELDS)
    return ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def usable_processors() -> frozenset[int]:
    """Numbers of the processors that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
