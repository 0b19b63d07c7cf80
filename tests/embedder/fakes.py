"""Engines without a model: implementations of `Engine` whose vectors identify their text."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from embedder.engines import (
    EncodedBatch,
    PendingBatch,
    ReadyBatch,
    SparseBatch,
    TokenBatch,
    YieldPoint,
    offsets_of,
)
from embedder.tokenizer import EncodedText
from embedder.vectors import Outputs

WAIT_MAX_S = 30.0
"""Timeout in seconds after which a hanging test fails. No measurement depends on it."""

WIDTH = 4


def text(number: int, length: int = 3) -> EncodedText:
    """Return a text of `length` tokens that `CountingEngine` identifies by its number."""
    return EncodedText(np.array([0, *[number] * (length - 2), 2], dtype=np.int32), truncated=False)


class CountingEngine:
    """An engine that computes vectors from the text's number alone and records every batch.

    Args:
        device: `cpu` computes a batch when it is launched, any other device when it is awaited.
        broken: the numbers of the texts on which a pass fails.
        error: creates the exception of a failing pass.
        spoiled: the numbers of the texts whose vectors are not finite.
        spoil: the kind of vector that is not finite.
    """

    name = "packed"
    dtype = "float32"
    hidden_size = WIDTH
    colbert_size = WIDTH
    max_length = 64

    def __init__(
        self,
        *,
        device: str = "cpu",
        broken: Collection[int] = (),
        error: Callable[[], BaseException] = lambda: RuntimeError("secret words of a user"),
        spoiled: Collection[int] = (),
        spoil: str = "dense",
    ) -> None:
        self.device = device
        self.batches: list[list[int]] = []
        self._broken = set(broken)
        self._error = error
        self._spoiled = set(spoiled)
        self._spoil = spoil
        self._started = threading.Semaphore(0)
        self._open = threading.Event()
        self._open.set()
        self._lock = threading.Lock()

    @property
    def seen(self) -> list[int]:
        """Return the numbers of all texts of all batches, in order."""
        return [number for batch in self.batches for number in batch]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Block every pass that starts inside the context until the context ends."""
        self._open.clear()
        try:
            yield
        finally:
            self._open.set()

    def wait_for_pass(self) -> None:
        """Wait until one more pass has started."""
        assert self._started.acquire(timeout=WAIT_MAX_S)

    def another_pass_starts(self) -> bool:
        """Return whether one more pass starts soon; only a pass that must not start costs the full wait."""
        return self._started.acquire(timeout=0.3)

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> PendingBatch:
        """See `Engine.launch`."""
        if self.device == "cpu":
            return ReadyBatch(self.encode(batch, outputs, yield_point))
        return _Launched(self, batch, outputs, self._start(batch))

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        return self.finish(batch, outputs, self._start(batch))

    def warm(self) -> None:
        """See `Engine.warm`."""

    def prepare(self, tokens: int) -> None:
        """See `Engine.prepare`."""

    def _start(self, batch: TokenBatch) -> list[int]:
        numbers: list[int] = batch.ids[batch.offsets[:-1] + 1].tolist()
        with self._lock:
            self.batches.append(numbers)
        self._started.release()
        return numbers

    def finish(self, batch: TokenBatch, outputs: Outputs, texts: list[int]) -> EncodedBatch:
        """Return the vectors of the texts with these numbers."""
        assert self._open.wait(WAIT_MAX_S)
        if self._broken.intersection(texts):
            raise self._error()
        numbers = np.array(texts)
        return EncodedBatch(
            dense=self._rows(numbers, "dense") if outputs.dense else None,
            sparse=self._sparse(numbers) if outputs.sparse else None,
            colbert=self._rows(np.repeat(numbers, batch.lengths - 1), "colbert").astype(outputs.colbert_type)
            if outputs.colbert
            else None,
        )

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`."""
        self.encode(batch, Outputs())

    def _rows(self, numbers: np.ndarray, kind: str) -> np.ndarray:
        rows = np.cos(numbers[:, None] * np.arange(1, WIDTH + 1)).astype(np.float32)
        if kind == self._spoil:
            rows[np.isin(numbers, list(self._spoiled)), -1] = np.inf
        return rows

    def _sparse(self, numbers: np.ndarray) -> SparseBatch:
        values = (1 / numbers).astype(np.float32)
        if self._spoil == "sparse":
            values[np.isin(numbers, list(self._spoiled))] = np.nan
        return SparseBatch(offsets_of(np.ones(len(numbers), dtype=np.int32)), numbers.astype(np.uint32), values)


@dataclass(frozen=True)
class _Launched:
    """A batch that computes on a device while its engine accepts others."""

    engine: CountingEngine
    batch: TokenBatch
    outputs: Outputs
    numbers: list[int]

    def wait(self) -> EncodedBatch:
        """See `PendingBatch.wait`."""
        return self.engine.finish(self.batch, self.outputs, self.numbers)
