"""The workloads: each sends requests to a contender and returns an outcome."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from benchmarks.memory import Watch
from benchmarks.plan import Limits
from benchmarks.results import Outcome
from benchmarks.seam import Contender
from benchmarks.shape import Shape
from benchmarks.texts import Texts

QUERY_LENGTH = 512
"""Most tokens of a query, as the service cuts them."""
PASSAGES_ON_CPU, PASSAGES_ON_CUDA = 4, 64
"""512-token passages of one request: enough to occupy the device."""
BULK_JOB = 64
"""512-token passages of one job of bulk work, where the contender can cancel it."""
_PAUSE = (0.02, 0.15)
"""Seconds between queries beside bulk work, drawn at random so that they do not fall in step with batches."""

Clock = Callable[[], float]


class NotRunError(Exception):
    """A workload does not apply, or would take too long; the message says why."""


@dataclass(slots=True)
class Bench:
    """A loaded contender and what it is measured with.

    Attributes:
        ceiling: measures matrix products, operations per second by way; None to leave it out.
        memory: bytes available; attention that needs more is not tried.
        outcomes: of the workloads so far.
    """

    contender: Contender
    texts: Texts
    shape: Shape
    limits: Limits
    device: str = "cpu"
    ceiling: Callable[[], dict[str, float]] | None = None
    memory: float = float("inf")
    clock: Clock = time.perf_counter
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    async def run(self, name: str) -> Outcome:
        """Run one workload and keep its outcome; a failure is an outcome too."""
        try:
            outcome = await WORKLOADS[name](self)
        except NotRunError as reason:
            outcome = Outcome("not run", str(reason))
        except Exception as error:  # noqa: BLE001 - whatever a contender raises is a result of the benchmark
            outcome = Outcome("failed", f"{type(error).__name__}: {error}")
        self.outcomes[name] = outcome
        return outcome

    async def timed(self, texts: Sequence[str], *, query: bool = False, dense_only: bool = False) -> float:
        """Seconds that one request took."""
        started = self.clock()
        limit = min(QUERY_LENGTH if query else 8192, self.shape.max_length)
        await self.contender.embed(texts, query=query, max_length=limit, dense_only=dense_only)
        return self.clock() - started

    async def repeat(self, call: Callable[[], Awaitable[float]], limit: float, least: int) -> tuple[list[float], float]:
        """Calls one after the other until `limit` seconds have passed; all durations, and the time in all.

        At least one, and at least `least` unless they take four times the limit.
        """
        started = self.clock()
        durations: list[float] = []
        while True:
            durations.append(await call())
            spent = self.clock() - started
            if spent >= limit * (1 if len(durations) >= least else 4):
                return durations, spent

    def needed(self, workload: str) -> Outcome:
        """The outcome of an earlier workload that this one builds on."""
        outcome = self.outcomes.get(workload)
        if outcome is None or outcome.status != "ok":
            raise NotRunError(f"it needs the figures of {workload}")
        return outcome

    def expect_long(self) -> float:
        """Seconds that one 8192-token passage should take, from the 512-token ones and the arithmetic of both."""
        short = self.needed("passages-512")
        growth = self.shape.flops(8192) / self.shape.flops(512)
        return short.p50 / short.tokens * 8192 * growth


async def _query(bench: Bench) -> Outcome:
    """One query after the other, nothing else running."""
    queries = itertools.cycle(bench.texts.queries)
    for _ in range(bench.limits.least):
        await bench.timed([next(queries)], query=True)  # warm
    durations, seconds = await bench.repeat(
        lambda: bench.timed([next(queries)], query=True), bench.limits.query, bench.limits.least
    )
    return Outcome.of(durations, seconds=seconds, tokens=_mean(bench.texts.lengths["queries"]))


async def _concurrent(bench: Bench, clients: int) -> Outcome:
    """Clients that each send the next query when the last one is answered; all are awaited."""
    queries = itertools.cycle(bench.texts.queries)
    durations: list[float] = []
    started = bench.clock()

    async def client() -> None:
        while True:
            durations.append(await bench.timed([next(queries)], query=True))
            if bench.clock() - started >= bench.limits.concurrent:
                return

    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = bench.clock() - started
    return Outcome.of(durations, seconds=seconds, tokens=_mean(bench.texts.lengths["queries"]))


async def _mixed(bench: Bench) -> Outcome:
    """All passages of mixed lengths as one request."""
    texts = bench.texts.mixed
    durations, seconds = await bench.repeat(lambda: bench.timed(texts), bench.limits.passages, bench.limits.least)
    return Outcome.of(durations, seconds=seconds, texts=len(texts), tokens=sum(bench.texts.lengths["mixed"]))


async def _passages(bench: Bench) -> Outcome:
    """512-token passages, between two measurements of the ceiling."""
    count = PASSAGES_ON_CPU if bench.device == "cpu" else PASSAGES_ON_CUDA
    texts = bench.texts.passages[:count]
    before = bench.ceiling() if bench.ceiling else {}
    durations, seconds = await bench.repeat(lambda: bench.timed(texts), bench.limits.passages, bench.limits.least)
    after = bench.ceiling() if bench.ceiling else {}
    return Outcome.of(
        durations,
        seconds=seconds,
        texts=count,
        tokens=sum(bench.texts.lengths["passages"][:count]),
        figures={f"ceiling, {way}": max(rate, after[way]) for way, rate in before.items()},
    )


async def _long(bench: Bench) -> Outcome:
    """One passage of 8192 tokens at a time."""
    _refuse_long(bench)
    durations, seconds = await bench.repeat(lambda: bench.timed(bench.texts.longs[:1]), bench.limits.long / 2, 1)
    return Outcome.of(durations, seconds=seconds, tokens=8192)


def _refuse_long(bench: Bench) -> None:
    if not bench.texts.longs:
        raise NotRunError(f"the checkpoint takes {bench.shape.max_length} tokens")
    expected = bench.expect_long()
    if expected > bench.limits.long:
        raise NotRunError(f"one passage would take about {expected:.0f} s, the limit is {bench.limits.long:.0f} s")
    wanted = bench.contender.attention_copies * bench.shape.attention_bytes(8192)
    if wanted > bench.memory:
        raise NotRunError(
            f"its attention would need about {wanted / 2**30:.0f} GiB, {bench.memory / 2**30:.0f} are free"
        )


async def _beside_passages(bench: Bench) -> Outcome:
    passages = bench.texts.passages[: BULK_JOB if bench.contender.cancels else PASSAGES_ON_CPU]
    bench.needed("passages-512")
    return await _beside(bench, passages)


async def _beside_long(bench: Bench) -> Outcome:
    _refuse_long(bench)
    expected = 2 * bench.expect_long()  # a query waits for one passage, and the end of the work is another
    if not bench.contender.cancels and expected > bench.limits.long:
        raise NotRunError(f"it would take about {expected:.0f} s, the limit is {bench.limits.long:.0f} s")
    return await _beside(bench, bench.texts.longs if bench.contender.cancels else bench.texts.longs[:1])


async def _beside(bench: Bench, passages: Sequence[str]) -> Outcome:
    """Queries one at a time while passages are embedded: bulk requests follow each other until the probe ends."""
    idle = bench.needed("query")
    queries = itertools.cycle(bench.texts.queries)
    pauses = random.Random(0)
    ended = asyncio.Event()

    async def bulk() -> None:
        while not ended.is_set():
            await bench.timed(passages)

    async def probe() -> float:
        await asyncio.sleep(pauses.uniform(*_PAUSE))
        return await bench.timed([next(queries)], query=True)

    work = asyncio.create_task(bulk())
    try:
        await asyncio.sleep(_PAUSE[1])
        durations, seconds = await bench.repeat(probe, bench.limits.beside, bench.limits.least)
        if work.done():
            work.result()
    finally:
        ended.set()
        if bench.contender.cancels:
            work.cancel()
        await asyncio.gather(work, return_exceptions=True)
    await bench.timed([next(queries)], query=True)  # whatever was under way is done when this is answered
    return Outcome.of(
        durations,
        seconds=seconds,
        tokens=_mean(bench.texts.lengths["queries"]),
        figures={"idle p50": idle.p50, "bulk texts per request": len(passages)},
    )


async def _growth(bench: Bench) -> Outcome:
    """Dense vectors of ever more short texts; a size runs only if the last one says that there is time."""
    figures: dict[str, float] = {}
    durations: list[float] = []
    reason = ""
    each = 0.0
    started = bench.clock()
    for size in bench.limits.growth_sizes:
        texts = bench.texts.shorts[:size]
        if each * size > bench.limits.growth:
            reason = f"{size} texts: not run, would take about {each * size:.0f} s"
            break
        with Watch() as watch:
            call = partial(bench.timed, texts, dense_only=True)
            durations, _ = await bench.repeat(call, bench.limits.growth / 50, 1)
        best = min(durations)
        each = best / size
        figures |= {f"seconds of {size}": best, f"calls of {size}": len(durations), f"peak rss of {size}": watch.most}
    return Outcome.of(
        durations,
        seconds=bench.clock() - started,
        texts=len(texts),
        tokens=sum(bench.texts.lengths["shorts"][: len(texts)]),
        figures=figures,
        reason=reason,
    )


def _mean(lengths: Sequence[int]) -> float:
    return sum(lengths) / len(lengths)


WORKLOADS: dict[str, Callable[[Bench], Awaitable[Outcome]]] = {
    "query": _query,
    "concurrent-8": partial(_concurrent, clients=8),
    "concurrent-32": partial(_concurrent, clients=32),
    "concurrent-128": partial(_concurrent, clients=128),
    "mixed": _mixed,
    "passages-512": _passages,
    "passages-8192": _long,
    "beside-512": _beside_passages,
    "beside-8192": _beside_long,
    "growth": _growth,
}
