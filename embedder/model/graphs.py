"""CUDA graphs: a pass as one launch, whatever its kernels, so that a GPU never waits for the host."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from embedder.errors import whereabouts

log = logging.getLogger(__name__)

T = TypeVar("T")

BUCKETS_TOKENS = (
    *(16, 32, 64, 128, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144),
    *range(8192, 32_769, 2048),
)
"""Tokens of the passes that are captured; a batch is rounded up to the next one."""

CAPTURE_MAX_S = 4.0
"""Seconds that a start may spend on the captures of a stream; each takes 0.02 to 0.2 s."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The fixed sizes of a captured pass.

    Attributes:
        tokens: most tokens of a batch, one of `BUCKETS_TOKENS`.
        block: most queries of a tile of attention.
    """

    tokens: int
    block: int


def bucket_of(tokens: int, largest: int = BUCKETS_TOKENS[-1]) -> int | None:
    """The smallest bucket that holds so many tokens; None if none up to `largest` does."""
    return next((bucket for bucket in BUCKETS_TOKENS if tokens <= bucket <= largest), None)


class Graphs(Generic[T]):
    """The captured passes of one stream. Not thread-safe: they share what they read and write.

    Args:
        capture: makes the pass of a shape; what it returns runs it and returns its result.
        clock: monotonic seconds.
    """

    def __init__(
        self, capture: Callable[[Shape], Callable[[], T]], *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._capture = capture
        self._clock = clock
        self._passes: dict[Shape, Callable[[], T]] = {}

    def replay(self, shape: Shape) -> Callable[[], T]:
        """A function that runs the pass of a shape; the pass is captured now if it was not before."""
        if shape not in self._passes:
            self._passes[shape] = self._capture(shape)
        return self._passes[shape]

    def capture_all(self, shapes: Iterable[Shape], *, seconds: float = CAPTURE_MAX_S) -> None:
        """Capture what is not captured yet, until so much time is spent; what does not fit into the memory is left out.

        Args:
            shapes: best the largest first, in whose memory the others fit.
            seconds: after which no further one is begun.
        """
        import torch

        ends = self._clock() + seconds
        for shape in shapes:
            if shape in self._passes or self._clock() >= ends:
                continue
            try:
                self.replay(shape)
            except torch.OutOfMemoryError as error:
                log.warning("a pass of %d tokens does not fit into the memory: %s", shape.tokens, whereabouts(error))


def capture(work: Callable[[], T], stream: Any, pool: Any) -> Callable[[], T]:
    """Capture some work on a GPU; what is returned replays it and returns the same tensors.

    Where the capture fails, the work itself is returned, and the log says so.

    Args:
        work: launches kernels that read and write the same memory at each call, and waits for none.
        stream: the current one, on which it is captured; its priority is that of the kernels.
        pool: whose memory all graphs share: only one of them runs at a time, and its result is used before the next.
    """
    import torch

    work()  # kernels are compiled and chosen at the first call, which cannot be captured
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        # thread_local: other threads of this process may allocate meanwhile
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            result = work()
        finally:
            graph.capture_end()
    except RuntimeError as error:
        log.warning("a CUDA graph could not be captured, its batches are launched instead: %s", whereabouts(error))
        return work

    def replay() -> T:
        graph.replay()
        return result

    return replay
