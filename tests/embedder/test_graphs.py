"""A small batch uses the right captured pass, tested on a double of the device."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch

from embedder.model.graphs import BUCKETS_TOKENS, Graphs, Shape, bucket_of


class Captures:
    """A device double that records what it is asked to capture."""

    def __init__(self) -> None:
        self.captured: list[int] = []
        self.run: list[int] = []

    def __call__(self, shape: Shape) -> Callable[[], int]:
        """Return a pass for a shape, which returns the number of its tokens."""
        self.captured.append(shape.tokens)

        def replay() -> int:
            self.run.append(shape.tokens)
            return shape.tokens

        return replay


def of(*tokens: int) -> list[Shape]:
    """Return shapes of this many tokens."""
    return [Shape(number, 64) for number in tokens]


@pytest.mark.parametrize(
    ("tokens", "bucket"), [(2, 16), (16, 16), (17, 32), (40, 64), (8193, 10_240), (32_768, 32_768), (32_769, None)]
)
def test_a_batch_takes_the_smallest_bucket_that_holds_it(tokens: int, bucket: int | None) -> None:
    """A batch uses the smallest bucket that holds it; a batch over the largest bucket uses no graph."""
    assert bucket_of(tokens) == bucket


def test_a_device_of_small_batches_has_small_graphs() -> None:
    """No graph is captured beyond the batch sizes that the pool forms."""
    assert bucket_of(512, 1024) == 512
    assert bucket_of(1025, 1024) is None


def test_a_shape_is_captured_once() -> None:
    """The first batch of a size captures the pass, and later batches replay it."""
    captures = Captures()
    graphs = Graphs(captures)
    assert [graphs.replay(shape)() for shape in of(16, 32, 16)] == [16, 32, 16]
    assert captures.captured == [16, 32]
    assert captures.run == [16, 32, 16]


def test_a_start_captures_all_sizes_and_runs_none() -> None:
    """After the start no request waits for a capture."""
    captures = Captures()
    graphs = Graphs(captures)
    graphs.replay(*of(32))()
    graphs.capture_all(of(64, 32, 16))
    graphs.capture_all(of(64, 32, 16))
    assert captures.captured == [32, 64, 16]
    assert captures.run == [32]


def test_captures_at_a_start_take_no_longer_than_they_may() -> None:
    """A slow device captures what its time limit allows at the start, and the rest on demand."""
    captures = Captures()
    ticks = itertools.count()
    graphs = Graphs(captures, clock=lambda: float(next(ticks)))
    graphs.capture_all(of(64, 32, 16), seconds=2.5)
    assert captures.captured == [64, 32]
    assert graphs.replay(*of(16))() == 16
    assert captures.captured == [64, 32, 16]


def test_rounding_up_wastes_little() -> None:
    """A batch of over 16 tokens is padded to less than twice its size, a large one by an eighth at most."""
    pairs = list(itertools.pairwise(BUCKETS_TOKENS))
    assert all(large <= 2 * small for small, large in pairs)
    assert all(large <= 1.5 * small for small, large in pairs if small >= 1024)
    assert all(large <= 1.126 * small for small, large in pairs if small >= 16_384)


def test_a_pass_that_does_not_fit_does_not_stop_the_start() -> None:
    """Passes that exceed the device's memory have no graph; all others are captured."""
    captures = Captures()

    def capture(shape: Shape) -> Callable[[], int]:
        if shape.tokens > 32:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return captures(shape)

    Graphs(capture).capture_all(of(64, 32, 16))
    assert captures.captured == [32, 16]
