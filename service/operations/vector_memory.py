"""The memory that texts and their vectors take at most, from their numbers of tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from embedder import Outputs

TEXT_BYTES: Final = 1024
"""Memory of a text in bytes beside its characters and vectors: its tokens, results and fields of the answer."""

ARRAYS_FACTOR: Final = 2
"""Memory of vectors by their own size: those of a job may be views of arrays that are twice as large."""

_NUMBER_BYTES: Final = 4
_ID_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class VectorMemory:
    """The sizes of the model's vectors.

    Attributes:
        hidden_size: numbers of a dense vector.
        colbert_size: numbers of a ColBERT row.
    """

    hidden_size: int
    colbert_size: int

    def token_bytes(self, outputs: Outputs) -> int:
        """Maximum memory of a token in bytes: its id, its row and its weight."""
        row = self.colbert_size * (2 if outputs.colbert_type == "float16" else _NUMBER_BYTES)
        weight = _ID_BYTES + _NUMBER_BYTES
        return _ID_BYTES + ARRAYS_FACTOR * (row * outputs.colbert + weight * outputs.sparse)

    def max_bytes(self, texts: int, tokens: int, outputs: Outputs) -> int:
        """Maximum memory of texts and their vectors in bytes.

        Args:
            texts: number of texts.
            tokens: number of tokens of all texts, or more.
            outputs: the vectors.
        """
        dense = ARRAYS_FACTOR * self.hidden_size * _NUMBER_BYTES * outputs.dense
        return texts * (TEXT_BYTES + dense) + tokens * self.token_bytes(outputs)

    def of(self, tokens: Sequence[int], outputs: Outputs) -> int:
        """Maximum memory in bytes of texts with these numbers of tokens."""
        return self.max_bytes(len(tokens), sum(tokens), outputs)
