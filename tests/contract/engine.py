"""The engines of the contract test: the stub as an `Engine`, and `mini`, which all scenarios share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import pairwise
from typing import Final

import numpy as np

from embedder import DeviceLost, Embedder, Outputs
from embedder.engines import BlockingEngine, EncodedBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of
from embedder.tokenizer import Tokenizer
from tests.contract import stub

POISON: Final = "zebra"
"""A word; the stub gives texts with it a dense vector of NaN."""

WAIT_MAX_S: Final = 30.0
"""Time that a test waits for another thread before it fails."""


class StubEngine(BlockingEngine):
    """An engine with the vectors of `tests.contract.stub`.

    Args:
        tokenizer: the tokenizer of `mini`.
        lost: whether the device is lost.
    """

    name = "stub"
    device = "cpu"
    dtype = "float32"
    hidden_size = stub.SIZE
    colbert_size = stub.SIZE
    max_length = 512

    def __init__(self, tokenizer: Tokenizer, *, lost: bool = False) -> None:
        self._dropped = tokenizer.dropped_ids
        self._poison = tokenizer.encode([POISON], 16)[0].ids[1:-1].tolist()
        self._lost = lost
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`."""

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""
        self.begun.set()
        if not self.gate.wait(WAIT_MAX_S):
            raise TimeoutError
        if self._lost:
            raise DeviceLost("the device computes no more")
        bounds = batch.offsets.tolist()
        texts = [batch.ids[start:end].tolist() for start, end in pairwise(bounds)]
        dense = np.stack([stub.dense(ids) for ids in texts])
        dense[[_within(self._poison, ids) for ids in texts]] = np.nan
        weights = [stub.sparse(ids, self._dropped) for ids in texts]
        sparse = SparseBatch(
            offsets_of(np.array([len(indices) for indices, _ in weights], dtype=np.int32)),
            np.concatenate([indices for indices, _ in weights]),
            np.concatenate([values for _, values in weights]),
        )
        colbert = np.concatenate([stub.colbert(ids) for ids in texts]).astype(outputs.colbert_type)
        return EncodedBatch(
            dense if outputs.dense else None,
            sparse if outputs.sparse else None,
            colbert if outputs.colbert else None,
        )


def _within(part: Sequence[int], whole: Sequence[int]) -> bool:
    return any(whole[start : start + len(part)] == part for start in range(len(whole)))


class SharedEmbedder(Embedder):
    """The `mini` embedder, which outlives the operations that use it."""

    def close(self) -> None:
        """Do nothing: the world closes the model."""

    def end(self) -> None:
        """Close the model."""
        super().close()
