"""The three heads of BGE-M3, from the last hidden states of concatenated texts.

    dense   = normalize(h_<s>)
    sparse  = per token id, max over its tokens of relu(w . h_t + b); special ids removed; > 0 kept
    colbert = normalize(W h_t + c) for every token but <s>

As FlagEmbedding 1.4 computes them (`EncoderOnlyEmbedderM3ModelForInference`). No shape depends on the states, so that
nothing waits for the device: which tokens share a sparse weight is known from their ids (`sparse_slots`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from embedder.model import kernels
from embedder.model.linear import Linear
from embedder.model.row_pieces import row_pieces

COLBERT_PIECE_ROWS: Final = 512
"""Rows that a CPU multiplies together for ColBERT, as in the layers."""


@dataclass(frozen=True, slots=True, eq=False)
class SparseSlots:
    """The entries that the sparse vectors of a batch can have, and whose they are.

    Attributes:
        slots: int32 [T], the entry of each token; -1 for a dropped id.
        texts: int64 [U], the text of each entry, ascending.
        ids: int64 [U], its token id, ascending and unique within a text.
    """

    slots: NDArray[np.int32]
    texts: NDArray[np.int64]
    ids: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.texts)


def sparse_slots(
    ids: NDArray[np.integer], text_of_token: NDArray[np.integer], dropped: NDArray[np.integer]
) -> SparseSlots:
    """One entry per text and token id, by sorting (text, id, token) in one integer each.

    Args:
        ids: int [T], token ids, not negative.
        text_of_token: int [T], the text of each token, not negative.
        dropped: token ids that carry no weight.
    """
    kept = np.flatnonzero(np.isin(ids, dropped, invert=True)).astype(np.int64)
    slots = np.full(len(ids), -1, dtype=np.int32)
    if not len(kept):
        return SparseSlots(slots, kept, kept)
    id_bits, token_bits = int(ids.max()).bit_length(), len(ids).bit_length()
    keys = (text_of_token[kept].astype(np.int64) << id_bits | ids[kept]) << token_bits | kept
    keys.sort()
    pairs = keys >> token_bits
    first = np.ones(len(pairs), dtype=bool)
    np.not_equal(pairs[1:], pairs[:-1], out=first[1:])
    slots[keys & ((1 << token_bits) - 1)] = np.cumsum(first) - 1
    entries = pairs[first]
    return SparseSlots(slots, entries >> id_bits, entries & ((1 << id_bits) - 1))


@dataclass(frozen=True, slots=True)
class Heads:
    """The heads' weights on their device.

    Attributes:
        sparse_weight: float32 [H]; exact in any `DTYPE`, since it costs nothing and ranks.
        sparse_bias: float32 scalar.
        colbert_linear: [T, H] -> [T, C].
        colbert_size: C, width of a ColBERT row.
        dropped_ids: int32, token ids that carry no sparse weight, on the host.
    """

    sparse_weight: Tensor
    sparse_bias: Tensor
    colbert_linear: Linear
    colbert_size: int
    dropped_ids: NDArray[np.int32]

    def dense(self, states: Tensor, first: Tensor) -> Tensor:
        """Float32 [B, H] of norm 1, from states [T, H] and the index [B] of each text's first token."""
        return kernels.normalised_rows(states, first, torch.float32)[0]

    def sparse(self, states: Tensor, slots: Tensor, size: int) -> Tensor:
        """The weight of each entry: float32 [U], not negative, or NaN if a token of it has no number.

        Args:
            states: [T, H].
            slots: int32 [T], the entry of each token, -1 for none (`sparse_slots`).
            size: U, number of entries.
        """
        return kernels.entry_maxima(states, self.sparse_weight, self.sparse_bias, slots, size)

    def colbert(self, states: Tensor, rows: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Rows of norm 1, [R, C] of `dtype`, and bool [R], whether a row is finite.

        Args:
            states: [T, H].
            rows: int [R], indices of the tokens that have a row.
            dtype: float32 or float16.
        """
        if states.is_cuda:  # nearly all tokens have a row: to gather them twice costs more than to compute the others
            return kernels.normalised_rows(self.colbert_linear(states), rows, dtype)
        return kernels.unit_rows(self._colbert_in_pieces(states, rows), dtype)

    def _colbert_in_pieces(self, states: Tensor, rows: Tensor) -> Tensor:
        pieces = row_pieces(len(rows), COLBERT_PIECE_ROWS)
        beyond = pieces[-1].stop - len(rows)
        if len(pieces) == 1 and not beyond:
            return self.colbert_linear(states[rows])
        padded = functional.pad(rows, (0, beyond))
        if len(pieces) == 1:
            return self.colbert_linear(states[padded])[: len(rows)]
        product = torch.empty(len(padded), self.colbert_size, dtype=states.dtype)
        for piece in pieces:
            self.colbert_linear(states[padded[piece]], out=product[piece])
        return product[: len(rows)]
