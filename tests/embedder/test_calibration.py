"""The token budget is measured within the time limit, on the engine's own clock."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import pytest
import torch

from embedder.engines import EncodedBatch, TokenBatch, YieldPoint
from embedder.engines.calibration import calibrate, product_rates, products_attend_faster
from embedder.vectors import Outputs
from tests.embedder.fakes import CountingEngine


class TimedEngine(CountingEngine):
    """An engine that takes a given time for a number of tokens, on a clock of its own."""

    def __init__(
        self,
        seconds: Callable[[int], float],
        *,
        device: str = "cpu",
        max_length: int = 512,
        memory: int = 1 << 30,
    ) -> None:
        super().__init__(device=device)
        self.max_length = max_length
        self.now = 0.0
        self.tokens: list[int] = []
        self.lengths: list[int] = []
        self._seconds = seconds
        self._memory = memory

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        tokens = len(batch.ids)
        if tokens > self._memory:
            raise MemoryError
        self.tokens.append(tokens)
        self.lengths.extend(batch.lengths.tolist())
        self.now += self._seconds(tokens)
        return super().encode(batch, outputs, yield_point)

    def calibrated(self, seconds: float = 1e9) -> int:
        """Return the budget that calibration chooses."""
        return calibrate(self, seconds=seconds, clock=lambda: self.now)


@pytest.mark.parametrize(("device", "largest"), [("cpu", 16_384), ("cuda:0", 32_768)])
def test_the_budget_grows_while_the_rate_does(device: str, largest: int) -> None:
    """If a larger batch is always faster per token, the largest size is chosen."""
    assert TimedEngine(lambda tokens: tokens**0.5, device=device).calibrated() == largest


@pytest.mark.parametrize("plateau", [512, 1024, 4096])
def test_the_budget_stops_where_the_rate_does(plateau: int) -> None:
    """The budget stops at the size where the rate becomes constant, as queries would only wait longer."""
    assert TimedEngine(lambda tokens: max(tokens, plateau) / 1000).calibrated() == plateau


def test_a_gain_below_five_per_cent_is_not_worth_it() -> None:
    """A rate that grows by 4 % for double the batch stops the search."""
    assert TimedEngine(lambda tokens: tokens / 1.04 ** (tokens.bit_length() - 1)).calibrated() == 512


@pytest.mark.parametrize("allowed", [0.1, 1.0, 3.0])
def test_the_time_allowed_is_kept(allowed: float) -> None:
    """The search ends before `seconds` are exceeded by more than one smallest batch."""
    engine = TimedEngine(lambda tokens: tokens**0.5 / 100)
    assert engine.calibrated(allowed) == engine.tokens[-1] < 16_384
    assert engine.now <= max(allowed, 512**0.5 / 100)


def test_a_slow_machine_gets_the_smallest_budget_after_one_batch() -> None:
    """If one small batch takes all the time allowed, it is not repeated."""
    engine = TimedEngine(lambda tokens: tokens / 10)
    assert engine.calibrated(2.0) == 512
    assert engine.tokens == [512]


def test_a_device_with_little_memory_gets_what_fits() -> None:
    """A batch that does not fit ends the search instead of the worker."""
    assert TimedEngine(lambda tokens: tokens**0.5, device="cuda:0", memory=5000).calibrated() == 4096


@pytest.mark.parametrize("max_length", [10, 64, 8192])
def test_measuring_respects_the_model(max_length: int) -> None:
    """Warming and measuring use no text longer than the model's limit."""
    engine = TimedEngine(lambda tokens: 1.0, max_length=max_length)
    engine.warm()
    engine.calibrated()
    assert max(engine.lengths) == min(max_length, 128)


def test_the_batches_of_all_streams_fit_together() -> None:
    """On a GPU the budget is halved until a batch per stream fits into the free memory."""

    class Small(TimedEngine):
        def memory_share(self, batch: TokenBatch) -> float:
            return len(batch.ids) / 100_000

    engine = Small(lambda tokens: tokens**0.5, device="cuda:0")
    assert calibrate(engine, batches=1, seconds=1e9, clock=lambda: engine.now) == 32_768
    assert calibrate(engine, batches=4, seconds=1e9, clock=lambda: engine.now) == 16_384


def test_a_hiccup_does_not_end_the_search() -> None:
    """A size that was slowed down once by something else is measured again."""

    class Stuttering(TimedEngine):
        def probe(self, batch: TokenBatch) -> None:
            super().probe(batch)
            if self.tokens.count(2048) == 1 and self.tokens[-1] == 2048:
                self.now += 1000

    assert Stuttering(lambda tokens: tokens**0.5).calibrated() == 16_384


def test_the_rate_of_a_product_is_its_arithmetic_over_its_time() -> None:
    """The rate is 2 x rows x 1024 x 4096 operations over the fastest run; every round runs each type once."""
    seconds = [0.5, 9.0, 0.25, 7.0, 1.0, 8.0]
    ticks = chain.from_iterable((10.0 * n, 10.0 * n + took) for n, took in enumerate(seconds))
    rates = product_rates(["float32", "bfloat16"], rows=8, rounds=3, clock=lambda: next(ticks))
    assert rates == {"float32": 2 * 8 * 1024 * 4096 / 0.25, "bfloat16": 2 * 8 * 1024 * 4096 / 7}


def test_measuring_a_product_leaves_the_threads_as_they_were() -> None:
    """One core is measured, and the configured number of threads is restored afterwards."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert product_rates(["float32"], rows=1, clock=torch.get_num_threads) == {"float32": 2 * 1024 * 4096 / 1e-9}
        with pytest.raises(ZeroDivisionError):
            product_rates(["float32"], rows=1, clock=lambda: 1 / (torch.get_num_threads() - 1))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("kernel", "faster"), [(1.5, True), (1.2, False), (0.5, False)])
def test_attention_by_products_must_be_faster_by_a_third(kernel: float, faster: bool) -> None:
    """The way that rounds scores is taken where it is decisively faster, and not for a small difference."""
    ticks = chain.from_iterable((10.0 * n, 10.0 * n + took) for n, took in enumerate([1.0, kernel] * 3))
    assert products_attend_faster(tokens=8, clock=lambda: next(ticks)) is faster
