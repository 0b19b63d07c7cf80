"""Turns of the event loop: bodies in many small chunks are parsed bit by bit, so that nobody else waits for them."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Final, Protocol

TURN_S: Final = 0.002
"""Time for which bodies in chunks are parsed before everything else that is ready has its turn."""


class Waiting(Protocol):
    """What waits for a turn."""

    def proceed(self) -> None:
        """Do one bit of work, and wait for another turn if there is more."""


class Turns:
    """Gives connections one turn after another. All methods must be called in one event loop.

    Args:
        turn_s: time for which there are turns before everything else that is ready.

    Attributes:
        count: number of bits of work so far.
    """

    def __init__(self, turn_s: float = TURN_S) -> None:
        self.count = 0
        self._turn_s = turn_s
        self._waiting: deque[Waiting] = deque()
        self._present: set[Waiting] = set()
        self._is_scheduled = False

    def wait(self, one: Waiting) -> None:
        """Let a connection proceed when it is its turn. Has no effect if it waits already."""
        if one in self._present:
            return
        self._waiting.append(one)
        self._present.add(one)
        self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            asyncio.get_running_loop().call_soon(self._run)

    def _run(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + self._turn_s
        while self._waiting:
            one = self._waiting.popleft()
            self._present.discard(one)
            self.count += 1
            one.proceed()
            if loop.time() >= end:
                break
        self._is_scheduled = False
        if self._waiting:
            self._schedule()
