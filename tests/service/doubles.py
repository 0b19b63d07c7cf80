"""Stores and an engine that fail on purpose, which wrap real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import Any, NoReturn

import numpy as np

from embedder import Embedder, EncodedText, Outputs, Overloaded, Priority, ResultStream
from embedder.checkpoint import MINI, revision_of
from embedder.engines import BlockingEngine, EncodedBatch, TokenBatch, YieldPoint
from embedder.engines.packed import PackedEngine
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import Hit, Plan, Point, Store, StoreUnavailable
from qdrant_sink.edge import EdgeStore
from tests.service.client import PATIENCE


class FailingStore:
    """A store that stops answering after a number of upserts, or before the first `ensure`.

    Args:
        store: the store that does the work until then.
        upserts: number of upserts that succeed; None if not even `ensure` succeeds.
    """

    def __init__(self, store: Store, upserts: int | None) -> None:
        self._store = store
        self._left = upserts
        self._lock = Lock()

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        with self._lock:
            if not self._left:
                raise StoreUnavailable("Qdrant does not answer: DEADLINE_EXCEEDED")
            self._left -= 1
        self._store.upsert(collection, points, insert_only=insert_only)

    def __getattr__(self, name: str) -> Any:
        down = {"fetch", "query", "delete", "count"} | ({"ensure", "description"} if self._left is None else set())
        if name in down:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        return getattr(self._store, name)


class WatchedStore(EdgeStore):
    """Qdrant Edge that records searches, and answers them only while its gate is set.

    Attributes:
        plans: the plans of all searches.
        requests: number of calls with these plans.
        gate: event that searches wait for.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.plans: list[Plan] = []
        self.requests = 0
        self.gate = Event()
        self.gate.set()

    def query(self, collection: str, plans: Sequence[Plan]) -> list[list[Hit]]:
        """See `Store.query`."""
        self.plans += plans
        self.requests += 1
        self.gate.wait(PATIENCE)
        return super().query(collection, plans)


class WatchedEngine(BlockingEngine):
    """The packed engine on `mini`, which records its batches and computes only while its gate is set.

    Args:
        tokenizer: the tokenizer of `mini`.
        poison: a word that makes the dense vector of a text NaN.
    """

    name = "packed"
    device = "cpu"
    dtype = "float32"

    def __init__(self, tokenizer: Tokenizer, poison: str) -> None:
        self._engine = PackedEngine.load(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
        self._poison = int(
            tokenizer.encode([poison], 8)[0].ids[-2]
        )  # the last token, since the first one is shared by many words
        self.hidden_size = self._engine.hidden_size
        self.colbert_size = self._engine.colbert_size
        self.max_length = self._engine.max_length
        self.batches: list[list[int]] = []
        """The numbers of tokens of the texts of every batch."""
        self.gate = Event()
        self.gate.set()

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`."""
        self._engine.probe(batch)

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        self.batches.append(batch.lengths.tolist())
        self.gate.wait(PATIENCE)
        encoded = self._engine.encode(batch, outputs)
        if encoded.dense is None:
            return encoded
        dense = np.array(encoded.dense)
        for text, (start, end) in enumerate(pairwise(batch.offsets)):
            if self._poison in batch.ids[start:end]:
                dense[text] = np.nan
        return EncodedBatch(dense, encoded.sparse, encoded.colbert)


@dataclass(frozen=True)
class Watched:
    """An embedder over a `WatchedEngine`, with its engine and pool."""

    engine: WatchedEngine
    pool: ModelPool
    embedder: Embedder

    @classmethod
    def loaded(cls, *, poison: str = "zebra") -> Watched:
        """Build the embedder with a token budget of 4096."""
        tokenizer = Tokenizer(MINI)
        engine = WatchedEngine(tokenizer, poison)
        pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=100_000)
        return cls(engine, pool, Embedder(tokenizer, [engine], pool, revision_of(MINI)))


class RaisingStore:
    """A store with some methods that raise.

    Args:
        store: the store for all other calls.
        failures: the exceptions by name of the method.
    """

    def __init__(self, store: Store, **failures: Exception) -> None:
        self._store = store
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        if name not in self.failures:
            return getattr(self._store, name)

        def fail(*_arguments: object, **_keywords: object) -> NoReturn:
            raise self.failures[name]

        return fail


class CrowdedEmbedder(Embedder):
    """An embedder that counts jobs for which its queue is full."""

    refused = 0

    def stream(
        self, texts: Sequence[EncodedText], outputs: Outputs, *, priority: Priority, batch_size: int = 0
    ) -> ResultStream:
        """See `Embedder.stream`."""
        try:
            return super().stream(texts, outputs, priority=priority, batch_size=batch_size)
        except Overloaded:
            self.refused += 1
            raise
