"""Wrappers around a store and an engine that call back, or change results, for tests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from embedder import Embedder, Kind, Outputs
from embedder.checkpoint import MINI, revision_of
from embedder.engines import BlockingEngine, EncodedBatch, Engine, TokenBatch, YieldPoint
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import Point, PointId, Store, Stored, WithPayload


class ObservedEngine(BlockingEngine):
    """An engine that calls back before each batch.

    Args:
        engine: the engine that computes.
        before: callback with the number of the batch, from 1, in the worker thread.
    """

    def __init__(self, engine: Engine, before: Callable[[int], None]) -> None:
        self._engine = engine
        self._before = before
        self._numbers = count(1)
        self.name = engine.name
        self.device = engine.device
        self.dtype = engine.dtype
        self.hidden_size = engine.hidden_size
        self.colbert_size = engine.colbert_size
        self.max_length = engine.max_length

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return self._engine.memory_share(batch)

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`."""
        self._engine.probe(batch)

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        self._before(next(self._numbers))
        return self._engine.encode(batch, outputs, yield_point)


@contextmanager
def embedder_over(engine: Engine, *, token_budget: int = 4096, queue_tokens: int = 100_000) -> Iterator[Embedder]:
    """Yield an embedder with its own pool over an engine of `mini`."""
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=token_budget, queue_tokens=queue_tokens)
    embedder = Embedder(Tokenizer(MINI), [engine], pool, revision_of(MINI))
    try:
        yield embedder
    finally:
        embedder.close()


class ObservedStore:
    """A store that calls back after each upsert, whether it succeeds or fails.

    Args:
        store: the store that does the work.
        after: callback in the thread of the upsert.
    """

    def __init__(self, store: Store, after: Callable[[], None]) -> None:
        self._store = store
        self._after = after

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        try:
            self._store.upsert(collection, points, insert_only=insert_only)
        finally:
            self._after()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


class SpoiledStore:
    """A store that returns points with NaN in their dense vectors.

    Args:
        store: the store with the points.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def fetch(
        self,
        collection: str,
        ids: Sequence[PointId],
        with_payload: WithPayload,
        with_vectors: Sequence[Kind],
        **options: Any,
    ) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        points = self._store.fetch(collection, ids, with_payload, with_vectors, **options)
        return {identity: _spoiled(stored) for identity, stored in points.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def _spoiled(stored: Stored) -> Stored:
    vectors = stored.vectors
    if vectors is None or vectors.dense is None:
        return stored
    return replace(stored, vectors=replace(vectors, dense=np.full_like(vectors.dense, np.nan)))
