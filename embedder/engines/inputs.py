"""A batch as the model takes it: texts in order of their length, and where each head reads. Pure numpy, all int32.

Everything that depends on the texts alone is computed here, on the host, while the device computes the batch before:
the model's own work has shapes that are known when it is launched.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embedder.engines.engine import TokenBatch, offsets_of

Ints = NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class Inputs:
    """One batch, its texts shortest first: those of one length are neighbours.

    Attributes:
        lengths: int32 [B], tokens per text, ascending.
        ids: int32 [T], token ids.
        positions: int32 [T], position ids.
        texts: int64 [T], the text of each token, by its number in the caller's order.
        first: int32 [B], the first token of each text, in the caller's order.
    """

    lengths: Ints
    ids: Ints
    positions: Ints
    texts: NDArray[np.int64]
    first: Ints

    @classmethod
    def of(cls, batch: TokenBatch, pad_id: int) -> Inputs:
        """Order the texts of a batch."""
        if len(batch) == 1:  # it is in order, and a query that is alone waits for every call of numpy
            start = np.zeros(1, dtype=np.int64)
            positions = _position_ids(batch.ids, start, batch.lengths, pad_id)
            return cls(batch.lengths, batch.ids, positions, np.zeros(len(batch.ids), np.int64), start.astype(np.int32))
        order = np.argsort(batch.lengths, kind="stable")
        lengths = batch.lengths[order]
        starts = offsets_of(lengths)[:-1]
        # where each token of the new order stands in the old one
        moved = np.repeat(batch.offsets[:-1][order] - starts, lengths) + np.arange(len(batch.ids))
        ids = batch.ids[moved]
        first = np.empty(len(order), dtype=np.int32)
        first[order] = starts
        return cls(lengths, ids, _position_ids(ids, starts, lengths, pad_id), np.repeat(order, lengths), first)

    @property
    def rows(self) -> Ints:
        """int32 [T - B]: the tokens other than `<s>`, in the caller's order of texts."""
        if len(self.lengths) == 1:
            return np.arange(1, len(self.ids), dtype=np.int32)
        lengths = np.empty_like(self.lengths)
        lengths[np.argsort(self.first)] = self.lengths
        counts = lengths - 1
        starts = offsets_of(counts)[:-1]
        rows: Ints = np.arange(counts.sum(), dtype=np.int32)
        rows += np.repeat(self.first + 1 - starts.astype(np.int32), counts)
        return rows


def _position_ids(ids: Ints, starts: NDArray[np.int64], lengths: Ints, pad_id: int) -> Ints:
    """int32 [T]: counted from pad_id + 1 within a text; a literal `<pad>` takes pad_id and is not counted.

    As `create_position_ids_from_input_ids` of transformers.
    """
    counted = ids != pad_id
    running = np.zeros(len(ids) + 1, dtype=np.int32)
    np.cumsum(counted, out=running[1:])
    positions: Ints = np.where(counted, running[1:] - np.repeat(running[starts], lengths), 0).astype(np.int32)
    positions += pad_id
    return positions
