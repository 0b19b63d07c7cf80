"""Workloads count the right figures and stop within their limits."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.results import Outcome
from tests.benchmarks.doubles import SHAPE, bench


async def _run(name: str, *before: str, **options: float) -> Outcome:
    timed_bench, _ = bench(**options)  # type: ignore[arg-type]
    for earlier in before:
        await timed_bench.run(earlier)
    return await timed_bench.run(name)


def test_a_query_figure_says_how_many_calls_it_rests_on() -> None:
    """One second of queries of 125 ms each is eight calls, without the warm-up."""
    outcome = asyncio.run(_run("query"))
    assert (outcome.status, outcome.n, outcome.p50, outcome.p95, outcome.least) == ("ok", 8, 0.125, 0.125, 0.125)
    assert (outcome.calls_per_second, outcome.tokens) == (8.0, 9.0)


def test_concurrent_clients_share_what_the_contender_can_do() -> None:
    """Throughput is all answers over the total time, and every client waits for the others."""
    outcome = asyncio.run(_run("concurrent-8"))
    assert outcome.calls_per_second == 8.0
    assert outcome.n == 15  # eight in the first second, and one in flight for each of the other seven
    assert outcome.p50 == 1.0


def test_a_slow_contender_gets_fewer_repetitions_but_at_least_one() -> None:
    """There are three repetitions, unless they take more than four times the limit."""
    assert asyncio.run(_run("mixed", seconds=0.25)).n == 3
    assert asyncio.run(_run("mixed", seconds=1.0)).n == 3
    assert asyncio.run(_run("mixed", seconds=10.0)).n == 1


def test_a_rate_is_that_of_the_median_call() -> None:
    """The rate is 60 tokens in 0.75 s, the median call."""
    assert asyncio.run(_run("mixed", seconds=0.25)).tokens_per_second == 80.0


def test_the_better_of_two_measurements_is_the_ceiling() -> None:
    """The product is measured before and after the passages, and the better rate counts."""
    timed_bench, _ = bench()
    rates = iter([{"plain": 3e9}, {"plain": 5e9}])
    timed_bench.ceiling = lambda: next(rates)
    assert asyncio.run(timed_bench.run("passages-512")).figures == {"ceiling, plain": 5e9}


def test_a_long_passage_is_not_started_if_it_would_take_too_long() -> None:
    """A skipped long passage states the time estimated from the 512-token passages."""
    outcome = asyncio.run(_run("passages-8192", "passages-512", seconds=1.0))
    expected = 16 * SHAPE.flops(8192) / SHAPE.flops(512)
    assert outcome.status == "not run"
    assert outcome.reason == f"one passage would take about {expected:.0f} s, the limit is 30 s"
    assert asyncio.run(_run("passages-8192", "passages-512", seconds=0.01)).status == "ok"


def test_a_model_without_the_positions_says_so() -> None:
    """A model without 8192 positions skips the long text with a reason."""
    assert "takes 8192 tokens" in asyncio.run(_run("passages-8192", "passages-512", longs=0)).reason


def test_attention_that_would_not_fit_is_not_tried() -> None:
    """A contender whose attention matrix would exhaust memory is not run."""
    timed_bench, contender = bench(0.01)
    contender.attention_copies = 3
    timed_bench.memory = 1e9
    asyncio.run(timed_bench.run("passages-512"))
    assert "would need about 2 GiB" in asyncio.run(timed_bench.run("passages-8192")).reason


def test_bulk_work_ends_with_the_probe() -> None:
    """Queries are measured beside a bulk request, which is then cancelled."""

    async def run() -> tuple[Outcome, int]:
        timed_bench, contender = bench()
        await timed_bench.run("query")
        await timed_bench.run("passages-512")
        contender.endless = True
        return await timed_bench.run("beside-512"), contender.cancelled

    outcome, cancelled = asyncio.run(run())
    assert (outcome.n, outcome.p95, outcome.figures["idle p50"], cancelled) == (3, 0.125, 0.125, 1)


def test_a_figure_that_builds_on_another_is_not_made_up() -> None:
    """Without the idle latency its ratio is not computed."""
    assert asyncio.run(_run("beside-512")).reason == "it needs the figures of passages-512"


def test_growth_stops_before_the_size_that_would_take_too_long() -> None:
    """Growth stops before a size that would take too long and keeps the measured sizes."""
    outcome = asyncio.run(_run("growth", seconds=0.001))
    assert outcome.figures["seconds of 1000"] == pytest.approx(1.0)
    assert "seconds of 10000" not in outcome.figures
    assert outcome.reason == "10000 texts: not run, would take about 10 s"


def test_a_contender_that_fails_does_not_end_the_run() -> None:
    """A failed figure is replaced by its error, and the run goes on."""
    timed_bench, contender = bench()

    async def broken(*_: object, **__: object) -> None:
        raise ValueError("no")

    contender.embed = broken  # type: ignore[method-assign]
    outcome = asyncio.run(timed_bench.run("query"))
    assert (outcome.status, outcome.reason) == ("failed", "ValueError: no")
