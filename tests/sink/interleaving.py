"""Threads that take turns at the calls of a store, in an order that a test chooses, and can be killed at any call."""

from __future__ import annotations

import threading
from collections.abc import Callable

PATIENCE_S = 30.0


class Killed(BaseException):
    """The thread was killed before a call. It does not reach handlers of `Exception`, like the end of a process."""


class Turns:
    """Runs functions in threads of which only one is active, and which stop before every call of `wait`.

    Args:
        choose: function that chooses the next of several threads, by its index among those that are waiting.
        killed_at: number of the call before which a thread is killed, by the thread's index.
    """

    def __init__(self, choose: Callable[[int], int], killed_at: dict[int, int]) -> None:
        self._choose = choose
        self._killed_at = killed_at
        self._here = threading.local()
        self._stopped = threading.Semaphore(0)
        self._go: list[threading.Semaphore] = []
        self._calls: list[int] = []
        self._done: list[bool] = []
        self._ended = False

    @property
    def index(self) -> int:
        """Index of the current thread."""
        index: int = getattr(self._here, "index", -1)
        return index

    def wait(self) -> None:
        """Stop until it is the turn of this thread. Other threads return immediately."""
        index = self.index
        if index < 0:
            return
        self._stopped.release()
        assert self._go[index].acquire(timeout=PATIENCE_S)
        self._calls[index] += 1
        if self._ended or self._calls[index] == self._killed_at.get(index):
            raise Killed

    def run(self, functions: list[Callable[[], object]]) -> None:
        """Run all functions to their ends. If `choose` raises, the threads are killed."""
        threads = [threading.Thread(target=self._thread, args=each, daemon=True) for each in enumerate(functions)]
        self._go = [threading.Semaphore(0) for _ in threads]
        self._calls = [0] * len(threads)
        self._done = [False] * len(threads)
        for thread in threads:
            thread.start()
        for _ in threads:
            assert self._stopped.acquire(timeout=PATIENCE_S)
        try:
            while waiting := [index for index, done in enumerate(self._done) if not done]:
                self._go[waiting[self._choose(len(waiting))]].release()
                assert self._stopped.acquire(timeout=PATIENCE_S)
        finally:
            self._ended = True
            for go in self._go:
                go.release()
            for thread in threads:
                thread.join(PATIENCE_S)

    def _thread(self, index: int, function: Callable[[], object]) -> None:
        self._here.index = index
        try:
            self.wait()
            function()
        except Killed:
            pass
        finally:
            self._done[index] = True
            self._stopped.release()
