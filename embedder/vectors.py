"""The values that the embedder produces: frozen, numpy, independent of torch and of the store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Kind = Literal["dense", "sparse", "colbert"]
ColbertType = Literal["float32", "float16"]
KINDS: tuple[Kind, ...] = ("dense", "sparse", "colbert")


@dataclass(frozen=True, slots=True)
class Outputs:
    """The kinds of vectors to compute, at least one.

    Attributes:
        dense: whether to compute the dense vector.
        sparse: whether to compute the lexical weights.
        colbert: whether to compute the ColBERT rows.
        colbert_type: type in which ColBERT rows leave the device and are handed out.
        also_float16: of a batch whose jobs want both types, whether its float32 rows leave the device in float16 as
            well.
    """

    dense: bool = True
    sparse: bool = True
    colbert: bool = True
    colbert_type: ColbertType = "float32"
    also_float16: bool = False

    def __post_init__(self) -> None:
        if not (self.dense or self.sparse or self.colbert):
            raise ValueError("at least one of dense, sparse, colbert must be asked for")

    @classmethod
    def of(
        cls, kinds: tuple[Kind, ...] | list[Kind] | frozenset[Kind], colbert_type: ColbertType = "float32"
    ) -> Outputs:
        """The outputs named by `kinds`."""
        return cls("dense" in kinds, "sparse" in kinds, "colbert" in kinds, colbert_type)

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The names asked for, in the order of the wire."""
        return tuple(kind for kind in KINDS if getattr(self, kind))

    def __or__(self, other: Outputs) -> Outputs:
        """The outputs that serve both: ColBERT in the types that are asked for."""
        asked = [outputs for outputs in (self, other) if outputs.colbert]
        types = {outputs.colbert_type for outputs in asked}
        return Outputs(
            self.dense or other.dense,
            self.sparse or other.sparse,
            self.colbert or other.colbert,
            "float16" if types == {"float16"} else "float32",
            len(types) > 1 or any(outputs.also_float16 for outputs in asked),
        )


@dataclass(frozen=True, slots=True, eq=False)
class SparseVector:
    """Weights per token id.

    Attributes:
        indices: uint32 [N], unique, ascending token ids.
        values: float32 [N], one weight > 0 per index.
    """

    indices: NDArray[np.uint32]
    values: NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Embedding:
    """The vectors of one text; a kind that was not asked for is None.

    The arrays may be views of those of a whole batch (see `embedder.scheduling.runner.run`): a single text keeps the
    batch in memory, and all texts of a job at most twice their own vectors. Copy a text that is kept for long.

    Attributes:
        dense: float32 [H], L2 norm 1, H the model's hidden size.
        sparse: lexical weights.
        colbert: float32 or float16 [tokens - 1, H], rows of L2 norm 1, in the type asked for.
        tokens: length of the encoded text, special tokens included.
        truncated: whether the text was longer than the limit and was cut.
    """

    dense: NDArray[np.float32] | None
    sparse: SparseVector | None
    colbert: NDArray[Any] | None
    tokens: int
    truncated: bool
