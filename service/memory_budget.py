"""The memory that requests may hold together, beside the model: reserved before the work that needs it."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from embedder import InvalidRequest, Overloaded

BUDGET_SHARE: Final = 0.5
"""Share of the container's memory that requests may hold together where `MEMORY_BUDGET_MB` is unset."""

_CGROUP_LIMITS: Final = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Files with the memory limit of the container in bytes, of versions 2 and 1 of control groups."""


def container_memory_bytes(limits: Sequence[Path] = _CGROUP_LIMITS) -> int:
    """The memory of the container in bytes, or that of the machine where no container limits it.

    Args:
        limits: files that may hold a limit in bytes, or `max` for none.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for path in limits:
        try:
            memory = min(memory, int(path.read_text()))
        except (OSError, ValueError):
            continue
    return memory


class MemoryBudget:
    """Counts the bytes that requests have reserved. Thread-safe.

    A request reserves an upper bound of what its next step needs and waits for nobody: what does not fit now is
    refused as `Overloaded`, and what can never fit as `InvalidRequest`.

    Args:
        total_bytes: maximum of all reservations together.

    Attributes:
        total_bytes: maximum of all reservations together.
    """

    def __init__(self, total_bytes: int) -> None:
        self.total_bytes = total_bytes
        self._reserved_bytes = 0
        self._lock = threading.Lock()

    @property
    def reserved_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._reserved_bytes

    def reserve(self, size_bytes: int = 0) -> Reservation:
        """Reserve memory for one request.

        Args:
            size_bytes: bytes to begin with; `Reservation.grow` adds to them.

        Raises:
            InvalidRequest: the size exceeds the whole budget.
            Overloaded: the size does not fit beside the other reservations.
        """
        reservation = Reservation(self)
        reservation.grow(size_bytes)
        return reservation

    def _take(self, size_bytes: int, held_bytes: int) -> None:
        with self._lock:
            if held_bytes + size_bytes > self.total_bytes:
                raise InvalidRequest(
                    f"the request must need at most {self.total_bytes} bytes of memory (MEMORY_BUDGET_MB), got "
                    f"{held_bytes + size_bytes}; send it in parts, or raise the setting"
                )
            if self._reserved_bytes + size_bytes > self.total_bytes:
                raise Overloaded(
                    f"requests hold {self._reserved_bytes} of {self.total_bytes} bytes of memory (MEMORY_BUDGET_MB), "
                    f"and this one needs {size_bytes} more; retry later"
                )
            self._reserved_bytes += size_bytes

    def _give_back(self, size_bytes: int) -> None:
        with self._lock:
            self._reserved_bytes -= size_bytes


class Reservation:
    """The memory of one request, given back at the end of a `with` block or by `release`. Thread-safe.

    Args:
        budget: the budget that it is taken from.
    """

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size_bytes = 0
        self._released = False
        self._lock = threading.Lock()

    @property
    def size_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._size_bytes

    def grow(self, size_bytes: int) -> None:
        """Reserve further bytes.

        Raises:
            InvalidRequest: this reservation would exceed the whole budget.
            Overloaded: the bytes do not fit beside the other reservations.
        """
        with self._lock:
            if self._released:
                raise ValueError("the reservation is released")
            self._budget._take(size_bytes, self._size_bytes)  # noqa: SLF001 - the two are one account
            self._size_bytes += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Give bytes back that are not needed any more, at most those that are reserved."""
        with self._lock:
            given = min(size_bytes, self._size_bytes)
            self._size_bytes -= given
            self._budget._give_back(given)  # noqa: SLF001 - the two are one account

    def release(self) -> None:
        """Give everything back. Idempotent."""
        with self._lock:
            self._released = True
        self.shrink(self._size_bytes)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        self.release()
