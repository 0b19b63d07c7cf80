"""This project's engine, through the same object that the service uses."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.seam import Phase, Setup

if TYPE_CHECKING:
    from embedder import Embedder


class Packed:
    """An `Embedder` with the service's defaults, but for type and batches under way."""

    cancels = True
    attention_copies = 0

    def __init__(self, embedder: Embedder, detail: str) -> None:
        self._embedder = embedder
        self.detail = detail
        self.dtype = embedder.label.split(", ")[1]

    async def embed(self, texts: Sequence[str], *, query: bool, max_length: int, dense_only: bool = False) -> None:
        """One job of the pool."""
        from embedder import Priority
        from embedder.errors import ModelFailure
        from embedder.vectors import Outputs

        results = await self._embedder.embed(
            texts,
            Outputs(dense=True, sparse=not dense_only, colbert=not dense_only),
            max_length=max_length,
            priority=Priority.QUERY if query else Priority.PASSAGE,
        )
        failures = [result for result in results if isinstance(result, ModelFailure)]
        if failures:
            raise RuntimeError(f"{len(failures)} of {len(texts)} texts failed: {failures[0]}")

    async def close(self) -> None:
        """Stop the worker threads."""
        self._embedder.close()


class _Heard(logging.Handler):
    """A log handler that keeps the embedder's messages while it loads."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


async def load(setup: Setup, phase: Phase) -> Packed:
    """Loaded, warmed and its token budget measured, as a worker is before its first job."""
    from embedder import Embedder, ModelOptions

    heard = _Heard()
    logger = logging.getLogger("embedder")
    logger.setLevel(logging.INFO)
    logger.addHandler(heard)
    phase("imported")
    options = ModelOptions(str(setup.checkpoint), dtype=setup.dtype, device=setup.device, batches_per_gpu=setup.lanes)
    embedder = Embedder.load(options)
    phase("loaded")
    logger.removeHandler(heard)
    return Packed(embedder, "; ".join(heard.messages))
