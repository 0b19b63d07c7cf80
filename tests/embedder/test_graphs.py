"""Which captured pass a small batch takes, and when it is captured; on a double of the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from embedder.model.graphs import BUCKETS_TOKENS, Graphs


class Captures:
    """Captures nothing, and remembers what it was asked for."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.run: list[int] = []

    def __call__(self, bucket: int) -> Callable[[], int]:
        """The pass of a bucket, which gives its size."""
        self.captured.append(bucket)

        def replay() -> int:
            self.run.append(bucket)
            return bucket

        return replay


@pytest.mark.parametrize(("tokens", "bucket"), [(2, 16), (16, 16), (17, 32), (40, 64), (64, 64), (65, None)])
def test_a_batch_takes_the_smallest_bucket_that_holds_it(tokens: int, bucket: int | None) -> None:
    """A batch is rounded up as little as possible; a larger one than the largest bucket has no graph."""
    assert Graphs((16, 32, 64), Captures()).bucket(tokens) == bucket


def test_a_bucket_is_captured_once() -> None:
    """The first batch of a size pays for the capture, the others replay it."""
    captures = Captures()
    graphs = Graphs((16, 32), captures)
    assert [graphs.replay(bucket)() for bucket in (16, 32, 16)] == [16, 32, 16]
    assert captures.captured == [16, 32]
    assert captures.run == [16, 32, 16]


def test_a_start_captures_all_sizes_and_runs_none() -> None:
    """After a start no request waits for a capture; the largest comes first, whose memory the others use."""
    captures = Captures()
    graphs = Graphs((16, 32, 64), captures)
    graphs.replay(32)()
    graphs.capture_all()
    graphs.capture_all()
    assert captures.captured == [32, 64, 16]
    assert captures.run == [32]


def test_captures_at_a_start_take_no_longer_than_they_may() -> None:
    """On a slow device a start captures what it can; the rest is captured when a batch needs it."""
    captures = Captures()
    ticks = itertools.count()
    graphs = Graphs((16, 32, 64), captures, clock=lambda: float(next(ticks)))
    graphs.capture_all(seconds=2.5)
    assert captures.captured == [64, 32]
    assert graphs.replay(16)() == 16
    assert captures.captured == [64, 32, 16]


def test_rounding_up_wastes_less_than_half() -> None:
    """A batch of more than 16 tokens is never computed at twice its size, and a large one at most at 1.5 times."""
    pairs = list(itertools.pairwise(BUCKETS_TOKENS))
    assert all(large <= 2 * small for small, large in pairs)
    assert all(large <= 1.5 * small for small, large in pairs if small >= 1024)
