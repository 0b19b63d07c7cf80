"""A contender whose answers take an exact time on a manual clock."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from benchmarks.plan import Limits
from benchmarks.shape import Shape
from benchmarks.texts import Texts
from benchmarks.workloads import Bench

LIMITS = Limits(query=1.0, concurrent=1.0, passages=2.0, long=30.0, beside=0.3, growth=5.0, give_up=10.0)
SHAPE = Shape(hidden=16, layers=2, heads=2, intermediate=32, vocabulary=100, positions=8194)


class Clock:
    """A clock in seconds that tests advance by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Return the current time in seconds."""
        return self.now


class Timed:
    """A contender that answers one request at a time, with a time per text; bulk requests never end."""

    dtype = "float32"
    detail = ""
    cancels = True
    attention_copies = 0

    def __init__(self, clock: Clock, seconds: float) -> None:
        self.clock = clock
        self.seconds = seconds
        self.requests: list[int] = []
        self.endless = False
        self.cancelled = 0
        self._turn = asyncio.Lock()

    async def embed(self, texts: Sequence[str], *, query: bool, max_length: int, dense_only: bool = False) -> None:
        """Advance the clock by the time of the texts."""
        self.requests.append(len(texts))
        if self.endless and not query:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled += 1
                raise
        async with self._turn:
            await asyncio.sleep(0)
            self.clock.now += self.seconds * len(texts)

    async def close(self) -> None:
        """Do nothing: the contender has no process to stop."""


def texts(*, longs: int = 1) -> Texts:
    """Return texts of which only the lengths count."""
    lengths = {
        "queries": [8, 10],
        "mixed": [10, 20, 30],
        "passages": [512] * 64,
        "longs": [8192] * longs,
        "shorts": [5] * 10_000,
    }
    return Texts(**{name: ["text"] * len(token_counts) for name, token_counts in lengths.items()}, lengths=lengths)


def bench(seconds: float = 0.125, *, longs: int = 1, limits: Limits = LIMITS) -> tuple[Bench, Timed]:
    """Return a bench with a timed contender and the contender itself."""
    clock = Clock()
    contender = Timed(clock, seconds)
    return Bench(contender, texts(longs=longs), SHAPE, limits, clock=clock), contender
