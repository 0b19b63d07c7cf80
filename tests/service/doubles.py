"""Stores and an engine that fail on purpose: real implementations of the seams around real ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from embedder.checkpoint import MINI
from embedder.embedder import Embedder
from embedder.encoder import PackedEngine
from embedder.engine import EncodedBatch, TokenBatch
from embedder.errors import StoreUnavailable
from embedder.pool import ModelPool
from embedder.tokenizer import Tokenizer
from embedder.vectors import Outputs
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Hit, Search
from qdrant_sink.store import Filter, Store


class FailingStore:
    """A store that stops answering after a number of upserts, or before the first `ensure`.

    Args:
        store: does the work until then.
        upserts: how many upserts succeed; None: not even `ensure` does.
    """

    def __init__(self, store: Store, upserts: int | None) -> None:
        self._store = store
        self._left = upserts
        self.label = store.label

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """See `Store.ensure`."""
        if self._left is None:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")
        self._store.ensure(collection, schema)

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """See `Store.upsert`."""
        if not self._left:
            raise StoreUnavailable("Qdrant does not answer: DEADLINE_EXCEEDED")
        self._left -= 1
        self._store.upsert(collection, points, insert_only=insert_only)

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:
        """See `Store.existing`."""
        return self._store.existing(collection, ids)

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


class SpoilingEngine:
    """The packed engine on `mini`, except that texts with a certain token get a dense vector of NaN."""

    name = "packed"
    device = "cpu"
    dtype = "float32"

    def __init__(self, tokenizer: Tokenizer, poison: str) -> None:
        self._engine = PackedEngine(MINI, device="cpu", dtype="float32", dropped_ids=tokenizer.dropped_ids)
        self._poison = int(tokenizer.encode([poison], 8)[0].ids[1])
        self.hidden_size = self._engine.hidden_size
        self.colbert_size = self._engine.colbert_size
        self.max_length = self._engine.max_length

    def encode(self, batch: TokenBatch, outputs: Outputs) -> EncodedBatch:
        """See `Engine.encode`."""
        encoded = self._engine.encode(batch, outputs)
        if encoded.dense is None:
            return encoded
        dense = np.array(encoded.dense)
        for text, (start, end) in enumerate(zip(batch.offsets, batch.offsets[1:], strict=False)):
            if self._poison in batch.ids[start:end]:
                dense[text] = np.nan
        return EncodedBatch(dense, encoded.sparse, encoded.colbert)


def spoiling_embedder(poison: str) -> Embedder:
    """An embedder over a `SpoilingEngine`."""
    tokenizer = Tokenizer(MINI)
    engine = SpoilingEngine(tokenizer, poison)
    return Embedder(tokenizer, [engine], ModelPool([engine], lanes=1, token_budget=4096, queue_tokens=100_000))
