"""CUDA graphs: the passes of small batches, whose kernels are shorter than their launches, as one launch each."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from embedder.errors import whereabouts

log = logging.getLogger(__name__)

T = TypeVar("T")

BUCKETS_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096)
"""Tokens of the batches that have a graph. Above, a batch takes longer than its launches do."""

CAPTURE_MAX_S = 3.0
"""Seconds that a start may spend on captures; each takes about 20 ms."""


class Graphs(Generic[T]):
    """The captured passes, by bucket. Not thread-safe: they share what they read and write.

    Args:
        buckets: tokens, ascending.
        capture: makes the pass of a bucket; what it returns runs it and returns its result.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        buckets: Sequence[int],
        capture: Callable[[int], Callable[[], T]],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._buckets = tuple(buckets)
        self._capture = capture
        self._clock = clock
        self._passes: dict[int, Callable[[], T]] = {}

    def bucket(self, tokens: int) -> int | None:
        """The smallest bucket that holds so many tokens; None if they are too many."""
        return next((bucket for bucket in self._buckets if bucket >= tokens), None)

    def replay(self, bucket: int) -> Callable[[], T]:
        """What runs the pass of a bucket, which is captured now if it was not before."""
        if bucket not in self._passes:
            self._passes[bucket] = self._capture(bucket)
        return self._passes[bucket]

    def capture_all(self, *, seconds: float = CAPTURE_MAX_S) -> None:
        """Capture what is not captured yet, largest first, until so much time is spent."""
        ends = self._clock() + seconds
        for bucket in reversed(self._buckets):  # what the smaller ones need fits into the memory of the largest
            if bucket not in self._passes and self._clock() < ends:
                self.replay(bucket)


def capture(work: Callable[[], T], stream: Any, pool: Any) -> Callable[[], T]:
    """Capture some work on a GPU; what is returned replays it and returns the same tensors.

    Where the capture fails, the work itself is returned, and the log says so.

    Args:
        work: launches kernels that read and write the same memory at each call, and waits for none.
        stream: on which it is captured; its priority is that of the kernels.
        pool: whose memory all graphs share: only one of them runs at a time, and its result is used before the next.
    """
    import torch

    for _ in range(2):  # kernels are compiled and chosen at the first call, which cannot be captured
        work()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: other threads of this process may allocate meanwhile
        with torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            result = work()
    except RuntimeError as error:
        log.warning("a CUDA graph could not be captured, its batches are launched instead: %s", whereabouts(error))
        return work

    def replay() -> T:
        graph.replay()
        return result

    return replay
