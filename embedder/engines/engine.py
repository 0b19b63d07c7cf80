"""The seam to the model: token ids in, three kinds of vectors out, a batch at a time.

Two implementations: `embedder.engines.packed.PackedEngine` (default) and
`embedder.engines.flagembedding.FlagEmbeddingEngine`. Both may be called by several threads concurrently.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, Outputs, SparseVector

YieldPoint = Callable[[], None]
"""Called by a pass between two pieces of its work, so that more urgent work can run there."""


@dataclass(frozen=True, slots=True, eq=False)
class TokenBatch:
    """The texts of one forward pass, concatenated without padding.

    Attributes:
        ids: int32 [T], token ids, special tokens included.
        lengths: int32 [B], tokens per text, each >= 2; they sum to T.
    """

    ids: NDArray[np.int32]
    lengths: NDArray[np.int32]

    @classmethod
    def of(cls, texts: Sequence[NDArray[np.int32]]) -> TokenBatch:
        """Concatenate the ids of several texts."""
        lengths = np.fromiter((len(ids) for ids in texts), dtype=np.int32, count=len(texts))
        return cls(np.concatenate(texts), lengths)

    @property
    def offsets(self) -> NDArray[np.int64]:
        """int64 [B + 1]: text `b` is `ids[offsets[b]:offsets[b + 1]]`."""
        return offsets_of(self.lengths)

    def __len__(self) -> int:
        return len(self.lengths)


@dataclass(frozen=True, slots=True, eq=False)
class SparseBatch:
    """The sparse vectors of a batch, concatenated: text `b` owns `offsets[b]:offsets[b + 1]`.

    Attributes:
        offsets: int64 [B + 1].
        indices: uint32 [N], ascending and unique within a text.
        values: float32 [N], all > 0.
    """

    offsets: NDArray[np.int64]
    indices: NDArray[np.uint32]
    values: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, text: int) -> SparseVector:
        part = slice(self.offsets[text], self.offsets[text + 1])
        return SparseVector(self.indices[part], self.values[part])


@dataclass(frozen=True, slots=True, eq=False)
class EncodedBatch:
    """The vectors of a forward pass; a kind that was not requested is None.

    Attributes:
        dense: float32 [B, H], rows of norm 1.
        sparse: the lexical weights of all texts.
        colbert: float32 or float16 [T - B, C], as asked for, rows of norm 1; text `b` owns `lengths[b] - 1`
            of them, in order.
        finite: the kinds of which the engine found every number to be finite where it made them, so that nobody has
            to read them again.
        colbert_float16: the rows of `colbert` rounded to float16, where both types are asked for (`also_float16`); an
            engine may leave them out.
    """

    dense: NDArray[np.float32] | None
    sparse: SparseBatch | None
    colbert: NDArray[Any] | None
    finite: frozenset[Kind] = frozenset()
    colbert_float16: NDArray[np.float16] | None = None


class PendingBatch(Protocol):
    """A batch that was launched."""

    def wait(self) -> EncodedBatch:
        """Block until the device is done; to be called once, from any thread.

        Returns:
            Arrays of the batch in memory that nothing else writes to as long as a view of them is held.

        Raises:
            DeviceLost: the device does not compute any more.
        """
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ReadyBatch:
    """A batch whose engine had computed it when it was launched."""

    encoded: EncodedBatch

    def wait(self) -> EncodedBatch:
        """See `PendingBatch.wait`."""
        return self.encoded


class Engine(Protocol):
    """One set of weights on one device."""

    @property
    def name(self) -> str:
        """`packed` or `flagembedding`."""
        ...

    @property
    def device(self) -> str:
        """`cpu`, `cuda:0`, ..."""
        ...

    @property
    def dtype(self) -> str:
        """The type of the matrix products: `float32`, `bfloat16`, `float16`, `int8` or `float8`."""
        ...

    @property
    def hidden_size(self) -> int:
        """H, the size of a dense vector."""
        ...

    @property
    def colbert_size(self) -> int:
        """C, the size of a ColBERT row."""
        ...

    @property
    def max_length(self) -> int:
        """The most tokens of one text, special tokens included."""
        ...

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> PendingBatch:
        """Start the model over the batch; only the heads that `outputs` names.

        A GPU computes while this returns; on a CPU the batch is computed before.

        Args:
            batch: at least one text.
            outputs: the vectors to compute.
            yield_point: None for an urgent batch. Otherwise the engine may call it between pieces of the work, in
                the same thread, holding nothing that another `launch` needs; what it raises ends the pass.

        Raises:
            DeviceLost: the device does not compute any more, neither this batch nor another.
            MemoryError: the batch does not fit into the device's memory.
        """
        ...

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """`launch` the batch and wait for it; errors are those of both."""
        ...

    def warm(self) -> None:
        """Do once what the first batch would wait for: allocate buffers, compile and choose kernels."""
        ...

    def prepare(self, tokens: int) -> None:
        """Do once what batches of up to so many tokens would wait for: capture graphs of them."""
        ...

    def memory_share(self, batch: TokenBatch) -> float:
        """Share of the device's free memory that `encode` takes for this batch; 0 on a CPU, over 1 if it fails."""
        ...

    def probe(self, batch: TokenBatch) -> None:
        """Do a part of `encode` whose speed depends on the size of the batch as that of the whole does.

        Raises:
            MemoryError: the batch does not fit into the device's memory.
        """
        ...


class BlockingEngine(ABC):
    """The part of an `Engine` that has computed a batch when `launch` returns, and finds nothing else to warm."""

    @abstractmethod
    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`."""

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> PendingBatch:
        """See `Engine.launch`."""
        return ReadyBatch(self.encode(batch, outputs, yield_point))

    def warm(self) -> None:
        """See `Engine.warm`: one short text."""
        self.encode(TokenBatch.of([np.array([0, 5, 2], dtype=np.int32)]), Outputs())

    def prepare(self, tokens: int) -> None:  # noqa: B027 - there is nothing to do
        """See `Engine.prepare`."""


def offsets_of(lengths: NDArray[np.int32]) -> NDArray[np.int64]:
    """Running sum that starts at 0: int64 [B + 1]."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets
