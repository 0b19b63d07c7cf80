"""Stores and an engine that fail on purpose: real implementations of the seams around real ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from threading import Event, Lock

import numpy as np

from embedder.checkpoint import MINI
from embedder.embedder import Embedder
from embedder.encoder import PackedEngine
from embedder.engine import EncodedBatch, GiveWay, TokenBatch
from embedder.errors import StoreUnavailable
from embedder.pool import ModelPool
from embedder.tokenizer import Tokenizer
from embedder.vectors import Kind, Outputs
from qdrant_sink.edge import EdgeStore
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Hit, Search, Stored, WithPayload
from qdrant_sink.store import Filter, Store
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
        self.label = store.label

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """See `Store.ensure`."""
        if self._left is None:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        self._store.ensure(collection, schema)

    def verify(self, collection: str, schema: CollectionSchema) -> bool:
        """See `Store.verify`."""
        if self._left is None:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        return self._store.verify(collection, schema)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """See `Store.defer_index`."""
        self._store.defer_index(collection, schema)

    def build_index(self, collection: str, schema: CollectionSchema, *, timeout_s: float) -> None:
        """See `Store.build_index`."""
        self._store.build_index(collection, schema, timeout_s=timeout_s)

    def collection_of(self, name: str) -> str | None:
        """See `Store.collection_of`."""
        return self._store.collection_of(name)

    def alias(self, alias: str, collection: str) -> None:
        """See `Store.alias`."""
        self._store.alias(alias, collection)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        with self._lock:
            if not self._left:
                raise StoreUnavailable("Qdrant does not answer: DEADLINE_EXCEEDED")
            self._left -= 1
        self._store.upsert(collection, points, insert_only=insert_only)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        return self._store.existing(collection, ids)

    def fetch(
        self, collection: str, ids: Sequence[PointId], with_payload: WithPayload, with_vectors: Sequence[Kind]
    ) -> dict[PointId, Stored]:
        """See `Store.fetch`."""
        raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """See `Store.query`."""
        raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    def delete(self, collection: str, *, ids: Sequence[PointId] = (), where: Filter | None = None) -> int:
        """See `Store.delete`."""
        raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    def count(self, collection: str, where: Filter | None = None) -> int:
        """See `Store.count`."""
        raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    def close(self) -> None:
        """See `Store.close`."""
        self._store.close()


class WatchedStore(EdgeStore):
    """Qdrant Edge that remembers what it was asked, and answers searches only while its gate is open."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.searches: list[Search] = []
        self.gate = Event()
        self.gate.set()

    def query(self, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
        """See `Store.query`."""
        self.searches += searches
        self.gate.wait(PATIENCE)
        return super().query(collection, searches)


class WatchedEngine:
    """The packed engine on `mini`, which remembers its batches and works only while its gate is open.

    Args:
        tokenizer: of `mini`.
        poison: a word; texts with it get a dense vector of NaN.
    """

    name = "packed"
    device = "cpu"
    dtype = "float32"

    def __init__(self, tokenizer: Tokenizer, poison: str) -> None:
        self._engine = PackedEngine(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
        self._poison = int(tokenizer.encode([poison], 8)[0].ids[1])
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

    def encode(self, batch: TokenBatch, outputs: Outputs, give_way: GiveWay | None = None) -> EncodedBatch:
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
        """One lane, and a budget of 4096 tokens."""
        tokenizer = Tokenizer(MINI)
        engine = WatchedEngine(tokenizer, poison)
        pool = ModelPool([engine], lanes=1, token_budget=4096, queue_tokens=100_000)
        return cls(engine, pool, Embedder(tokenizer, [engine], pool))
