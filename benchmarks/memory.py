"""Resident memory of this process, in bytes."""

from __future__ import annotations

import resource
import sys
import threading
from pathlib import Path
from typing import Self

_STATUS = Path("/proc/self/status")
_INTERVAL = 0.02


def peak() -> int:
    """The most that was ever resident.

    Linux gives it per address space. `getrusage`, used elsewhere, may count the process that started this one.
    """
    if _STATUS.is_file():
        for line in _STATUS.read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def ready() -> dict[str, float]:
    """Resident now, and how much of it is this process's alone."""
    import psutil

    info = psutil.Process().memory_full_info()
    return {"ready rss": float(info.rss), "ready uss": float(info.uss)}


class Watch:
    """The most that is resident while the context lasts."""

    def __init__(self) -> None:
        import psutil

        self._process = psutil.Process()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.most = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _sample(self) -> None:
        self._look()
        while not self._ended.wait(_INTERVAL):
            self._look()

    def _look(self) -> None:
        self.most = max(self.most, self._process.memory_info().rss)
