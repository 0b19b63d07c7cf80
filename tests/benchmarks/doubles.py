"""A contender whose answers take exactly as long as one says, on a clock that nothing else moves."""

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
    """Seconds, moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        """Seconds."""
        return self.now


class Timed:
    """Answers one request at a time, each after a time per text; bulk requests never end by themselves."""

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
        """Move the clock."""
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
        """Nothing to stop."""


def texts(*, longs: int = 1) -> Texts:
    """Texts of which only the lengths count."""
    lengths = {
        "queries": [8, 10],
        "mixed": [10, 20, 30],
        "passages": [512] * 64,
        "longs": [8192] * longs,
        "shorts": [5] * 10_000,
    }
    return Texts(**{name: ["text"] * len(found) for name, found in lengths.items()}, lengths=lengths)


def bench(seconds: float = 0.125, *, longs: int = 1, limits: Limits = LIMITS) -> tuple[Bench, Timed]:
    """A bench with such a contender."""
    clock = Clock()
    contender = Timed(clock, seconds)
    return Bench(contender, texts(longs=longs), SHAPE, limits, clock=clock), contender
