"""Stores and an engine that fail on purpose: real implementations of the seams around real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock
from typing import Any, NoReturn

import numpy as np

from embedder import Embedder, EncodedText, Outputs, Overloaded, Priority, ResultStream
from embedder.checkpoint import MINI
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
        store: does the work until then.
        upserts: how many upserts succeed; None: not even `ensure` does.
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
        down = {"fetch", "query", "delete", "count"} | ({"ensure", "verify"} if self._left is None else set())
        if name in down:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        return getattr(self._store, name)


class WatchedStore(EdgeStore):
    """Qdrant Edge that remembers what it was asked, and answers searches only while its gate is open.

    Attributes:
        plans: of all searches.
        requests: number of calls that they came in.
        gate: while it is cleared, no search is answered.
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
    """The packed engine on `mini`, which remembers its batches and works only while its gate is open.

    Args:
        tokenizer: of `mini`.
        poison: a word; texts with it get a dense vector of NaN.
    """

    name = "packed"
    device = "cpu"
    dtype = "float32"

    def __init__(self, tokenizer: Tokenizer, poison: str) -> None:
        self._engine = PackedEngine.load(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
        self._poison = int(tokenizer.encode([poison], 8)[0].ids[-2])  # its last token: the first may be of any word
        self.hidden_size = self._engine.hidden_size
        self.colbert_size = self._engine.colbert_size
        self.max_length = self._engine.max_length
        self.batches: list[list[int]] = []
        """Of every batch, the tokens of its texts."""
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
    """An embedder over a `WatchedEngine`, and what is inside it."""

    engine: WatchedEngine
    pool: ModelPool
    embedder: Embedder

    @classmethod
    def loaded(cls, *, poison: str = "zebra") -> Watched:
        """A budget of 4096 tokens."""
        tokenizer = Tokenizer(MINI)
        engine = WatchedEngine(tokenizer, poison)
        pool = ModelPool([engine], batches_per_gpu=1, token_budget=4096, queue_tokens=100_000)
        return cls(engine, pool, Embedder(tokenizer, [engine], pool))


class RaisingStore:
    """A store some of whose methods fail.

    Args:
        store: does all other calls.
        failures: by the name of a method, what a call of it raises.
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
    """An embedder that remembers how often it had no room for a job."""

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
