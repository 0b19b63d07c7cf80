"""An engine whose vectors have the sizes of BGE-M3's and drawn numbers."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

from embedder import Outputs
from embedder.engines import BlockingEngine, EncodedBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of

SIZE: Final = 1024
"""Components of a dense vector and of a ColBERT row."""

VOCABULARY: Final = 250_002
"""Number of token ids, each of which may be an index of a sparse vector."""

_WEIGHT: Final = 0.1
"""Mean of the sparse weights."""


class FullSizeEngine(BlockingEngine):
    """An engine that draws unit vectors, and a weight per different token: for a text always the same."""

    name = "drawn"
    device = "cpu"
    dtype = "float32"
    hidden_size = SIZE
    colbert_size = SIZE
    max_length = 8192

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`."""

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        texts = [batch.ids[start:end] for start, end in pairwise(batch.offsets)]
        drawn = [np.random.default_rng(ids.astype(np.uint32)) for ids in texts]
        counts = [len(np.unique(ids)) for ids in texts]
        pairs = list(zip(drawn, counts, strict=True))
        sparse = SparseBatch(
            offsets_of(np.array(counts, dtype=np.int32)),
            np.concatenate([np.sort(rng.choice(VOCABULARY, count, replace=False)) for rng, count in pairs]).astype(
                "u4"
            ),
            np.concatenate([rng.exponential(_WEIGHT, count) for rng, count in pairs]).astype(np.float32),
        )
        rows = [_unit(rng, 1 if not outputs.colbert else len(ids)) for rng, ids in zip(drawn, texts, strict=True)]
        return EncodedBatch(
            np.stack([vectors[0] for vectors in rows]) if outputs.dense else None,
            sparse if outputs.sparse else None,
            np.concatenate([vectors[1:] for vectors in rows]).astype(outputs.colbert_type) if outputs.colbert else None,
        )


def _unit(rng: np.random.Generator, rows: int) -> NDArray[np.float32]:
    drawn = rng.standard_normal((rows, SIZE))
    vectors: NDArray[np.float32] = (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)
    return vectors
