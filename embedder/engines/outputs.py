"""Vectors of a batch from its last hidden states: the heads on the device, the rest on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.engines.engine import EncodedBatch, SparseBatch, offsets_of
from embedder.engines.inputs import Inputs
from embedder.model.heads import Heads, SparseSlots, sparse_slots
from embedder.vectors import Kind, Outputs

_COLBERT_TYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, slots=True, eq=False)
class HeadInputs:
    """Inputs of the requested heads beside the states.

    Attributes:
        outputs: the vectors to compute.
        indices: int32, by name: `first` [B] for dense, `slots` [T] for sparse, `rows` [R] for ColBERT.
        entries: of the sparse vectors; None if there are none.
    """

    outputs: Outputs
    indices: dict[str, NDArray[np.int32]]
    entries: SparseSlots | None

    @classmethod
    def of(cls, inputs: Inputs, outputs: Outputs, heads: Heads) -> HeadInputs:
        """The inputs of one batch."""
        indices: dict[str, NDArray[np.int32]] = {}
        entries = sparse_slots(inputs.ids, inputs.texts, heads.dropped_ids) if outputs.sparse else None
        if outputs.dense:
            indices["first"] = inputs.first
        if entries is not None:
            indices["slots"] = entries.slots
        if outputs.colbert:
            indices["rows"] = inputs.rows
        return cls(outputs, indices, entries)

    def launch(self, heads: Heads, states: Tensor, indices: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Start the heads.

        Args:
            heads: of the model.
            states: [T, H], of the texts in the model's order.
            indices: those of this value, on the device.

        Returns:
            `dense` float32 [B, H], `sparse` float32 [U], and what `rows` gives.
        """
        tensors: dict[str, Tensor] = {}
        if self.outputs.dense:
            tensors["dense"] = heads.dense(states, indices["first"])
        if self.entries is not None:
            tensors["sparse"] = heads.sparse(states, indices["slots"], len(self.entries))
        if self.outputs.colbert:
            tensors |= self.rows(*heads.colbert(states, indices["rows"], self.colbert_type))
        return tensors

    def rows(self, rows: Tensor, finite: Tensor) -> dict[str, Tensor]:
        """ColBERT rows in each type that is asked for: `colbert`, `colbert_float16` [R, C] and `finite` bool [R]."""
        tensors = {"colbert": rows, "finite": finite}
        if self.outputs.also_float16:
            tensors["colbert_float16"] = rows.to(torch.float16)
        return tensors

    @property
    def colbert_type(self) -> torch.dtype:
        """Type in which the heads make ColBERT rows."""
        return _COLBERT_TYPES[self.outputs.colbert_type]

    def batch(self, arrays: Mapping[str, NDArray[Any]], texts: int) -> EncodedBatch:
        """The batch of so many texts, from what `launch` gave, on the host."""
        return EncodedBatch(
            dense=arrays.get("dense"),
            sparse=None if self.entries is None else _weighted(self.entries, arrays["sparse"], texts),
            colbert=arrays.get("colbert"),
            finite=_finite_kinds(arrays),
            colbert_float16=arrays.get("colbert_float16"),
        )


def _finite_kinds(arrays: Mapping[str, NDArray[Any]]) -> frozenset[Kind]:
    """Dense, if no row begins with NaN, and ColBERT by its flags: see `normalised_rows`."""
    kinds: dict[Kind, bool] = {
        "dense": "dense" in arrays and bool(np.isfinite(arrays["dense"][:, 0]).all()),
        "colbert": "finite" in arrays and bool(arrays["finite"].all()),
    }
    return frozenset(kind for kind, finite in kinds.items() if finite)


def _weighted(entries: SparseSlots, values: NDArray[np.float32], texts: int) -> SparseBatch:
    """The entries whose weight is above zero. NaN stays, so that it is noticed."""
    kept = ~(values <= 0)
    counts = np.bincount(entries.texts[kept], minlength=texts).astype(np.int32)
    return SparseBatch(offsets_of(counts), entries.ids[kept].astype(np.uint32), values[kept])
