"""The memory that requests may hold together, beside the model: reserved before the work that needs it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, Token
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from embedder import InvalidRequest, Overloaded

BUDGET_SHARE: Final = 0.5
"""Share of the container's memory that all requests may take together where `MEMORY_BUDGET_MB` is unset."""

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


_CURRENT: ContextVar[Reservation | None] = ContextVar("reservation", default=None)
"""The reservation of the request that the current task or thread works for."""


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
        if size_bytes:
            reservation.grow(size_bytes)
        return reservation

    def joined(self) -> AbstractContextManager[Reservation]:
        """The reservation of the request that the caller works for, or a new one for the block if there is none.

        A transport reserves with `reserve` in a `with` block that ends when the answer is sent. What works for the
        request meanwhile, also in other tasks and threads, joins it.
        """
        current = _CURRENT.get()
        if current is not None and current.is_of(self):
            return nullcontext(current)
        return Reservation(self)

    def grow(self, size_bytes: int) -> None:
        """Reserve further bytes for the request that the caller works for.

        Raises:
            InvalidRequest: its reservation would exceed the whole budget.
            Overloaded: the bytes do not fit beside the other reservations.
            LookupError: the caller works for no request.
        """
        current = _CURRENT.get()
        if current is None or not current.is_of(self):
            raise LookupError("no request is under way here")
        current.grow(size_bytes)

    def reserve_for_task(self) -> None:
        """Let all that the current task does join a new reservation, which is given back when the task ends."""
        task = asyncio.current_task()
        if task is None:
            raise LookupError("no task is under way here")
        reservation = Reservation(self)
        _CURRENT.set(reservation)
        task.add_done_callback(lambda _: reservation.release())

    def lower(self, size_bytes: int) -> None:
        """Set further bytes aside for what no request reserves."""
        with self._lock:
            self.total_bytes -= size_bytes

    def _take(self, size_bytes: int, held_bytes: int) -> None:
        """Count further bytes beside those that the caller holds. The lock must be held."""
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


class Reservation:
    """The memory of one request, given back at the end of a `with` block or by `release`. Thread-safe.

    Within the block it is what `MemoryBudget.joined` gives.

    Args:
        budget: the budget that it is taken from.
    """

    __slots__ = ("_budget", "_released", "_size_bytes", "_token")

    def __init__(self, budget: MemoryBudget) -> None:
        self._budget = budget
        self._size_bytes = 0
        self._released = False
        self._token: Token[Reservation | None] | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes that are reserved now."""
        return self._size_bytes

    def is_of(self, budget: MemoryBudget) -> bool:
        """Whether it is taken from a budget, and not released."""
        return self._budget is budget and not self._released

    def grow(self, size_bytes: int) -> None:
        """Reserve further bytes.

        Raises:
            InvalidRequest: this reservation would exceed the whole budget.
            Overloaded: the bytes do not fit beside the other reservations.
        """
        budget = self._budget
        with budget._lock:  # noqa: SLF001 - the two are one account, with one lock
            if self._released:
                raise ValueError("the reservation is released")
            budget._take(size_bytes, self._size_bytes)  # noqa: SLF001
            self._size_bytes += size_bytes

    def shrink(self, size_bytes: int) -> None:
        """Give bytes back that are not needed any more, at most those that are reserved."""
        with self._budget._lock:  # noqa: SLF001
            self._set(self._size_bytes - min(size_bytes, self._size_bytes))

    def settle(self, size_bytes: int) -> None:
        """Hold just so many bytes, which exist already: those of an answer. This never fails for a lack of memory."""
        with self._budget._lock:  # noqa: SLF001
            if not self._released:
                self._set(size_bytes)

    def release(self) -> None:
        """Give everything back. Idempotent."""
        with self._budget._lock:  # noqa: SLF001
            self._released = True
            self._set(0)

    def _set(self, size_bytes: int) -> None:
        self._budget._reserved_bytes += size_bytes - self._size_bytes  # noqa: SLF001
        self._size_bytes = size_bytes

    def __enter__(self) -> Self:
        self._token = _CURRENT.set(self)
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        if self._token is not None:
            _CURRENT.reset(self._token)
            self._token = None
        self.release()


class SharedReservation:
    """Memory that several requests use together, of which no more than a maximum is ever reserved. Thread-safe.

    Args:
        budget: the budget that it is taken from.
        max_bytes: maximum that all of them use together.
    """

    def __init__(self, budget: MemoryBudget, max_bytes: int) -> None:
        self._budget = budget
        self._max_bytes = max_bytes
        self._wanted_bytes = 0

    @contextmanager
    def used(self, size_bytes: int) -> Iterator[None]:
        """Reserve what a request adds to that of the others until the end of the block.

        Args:
            size_bytes: what the request would use if it were alone.

        Raises:
            InvalidRequest: it exceeds the whole budget.
            Overloaded: it does not fit beside the other reservations.
        """
        size_bytes, budget = min(size_bytes, self._max_bytes), self._budget
        with budget._lock:  # noqa: SLF001 - they are one account, with one lock
            added = self._bytes(self._wanted_bytes + size_bytes) - self._bytes(self._wanted_bytes)
            budget._take(added, size_bytes - added)  # noqa: SLF001
            self._wanted_bytes += size_bytes
        try:
            yield
        finally:
            with budget._lock:  # noqa: SLF001
                left = self._wanted_bytes - size_bytes
                budget._reserved_bytes -= self._bytes(self._wanted_bytes) - self._bytes(left)  # noqa: SLF001
                self._wanted_bytes = left

    def _bytes(self, wanted_bytes: int) -> int:
        return min(wanted_bytes, self._max_bytes)
