"""The packed engine: BGE-M3 on one device, over texts without padding.

The model is `embedder.model`; here is the way of a batch onto the device and back.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.engines.devices import device_errors, memory_share
from embedder.engines.engine import EncodedBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of
from embedder.model.attention import DEFAULT_PIECES, Packing, PieceSizes
from embedder.model.heads import SparseSlots, sparse_slots
from embedder.model.model import Model, load_model
from embedder.vectors import Outputs

_COLBERT_TYPES = {"float32": torch.float32, "float16": torch.float16}


class PackedEngine:
    """An `Engine` over one model, which any number of threads may call.

    Args:
        model: on its device.
        pieces: sizes of the pieces of a pass on a CPU.
    """

    name = "packed"

    def __init__(self, model: Model, *, pieces: PieceSizes = DEFAULT_PIECES) -> None:
        self.device = model.device
        self.dtype = model.dtype
        self.hidden_size = model.config.hidden
        self.colbert_size = model.heads.colbert_size
        self.max_length = model.config.max_length
        self._model = model
        self._pieces = pieces
        self._streams = threading.local()

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> PackedEngine:
        """An engine over the model of a checkpoint; arguments and errors are those of `load_model`."""
        return cls(load_model(checkpoint, device=device, dtype=dtype, dropped_ids=dropped_ids))

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`. Float32 results equal FlagEmbedding's within 2e-5.

        On CUDA a batch with a yield point runs on a stream of lower priority, and the yield point is not called.
        """
        with device_errors(self.device), torch.inference_mode(), self._on_stream(urgent=yield_point is None):
            return self._encode(batch, outputs, yield_point if yield_point and self.device == "cpu" else _never_yield)

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0 if self.device == "cpu" else memory_share(self.device, lambda: self.encode(batch, Outputs()))

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`: one layer."""
        with device_errors(self.device), torch.inference_mode(), self._on_stream(urgent=False):
            x = torch.ones(len(batch.ids), self.hidden_size, dtype=self._model.state_type, device=self.device)
            self._model.layers[0](x, self._packing(np.sort(batch.lengths)), _never_yield)
            if self.device != "cpu":
                torch.cuda.current_stream().synchronize()

    def _encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint) -> EncodedBatch:
        model = self._model
        order = np.argsort(batch.lengths, kind="stable")  # texts of one length become neighbours
        back = np.argsort(order, kind="stable")
        batch = _permuted(batch, order)
        ids = self._on_device(batch.ids)
        positions = self._on_device(_position_ids(batch, model.config.pad_id))
        states = model.states(ids, positions, self._packing(batch.lengths), yield_point)

        tensors: dict[str, Tensor] = {}
        slots: SparseSlots | None = None
        if outputs.dense:
            tensors["dense"] = model.heads.dense(states, self._on_device(batch.offsets[:-1][back]))
        if outputs.sparse:
            slots = sparse_slots(batch.ids, np.repeat(order, batch.lengths), model.heads.dropped_ids)
            tensors["values"] = model.heads.sparse(states, self._on_device(slots.slots), len(slots))
        if outputs.colbert:
            rows = self._on_device(_colbert_rows(batch.offsets, back))
            tensors["colbert"], _ = model.heads.colbert(states, rows, _COLBERT_TYPES[outputs.colbert_type])
        return _encoded(self._on_host(tensors), slots, len(order))

    def _packing(self, lengths: NDArray[np.int32]) -> Packing:
        return Packing.of(lengths, self.device, flash=self._model.flash, tiled=self._model.tiled, pieces=self._pieces)

    def _on_device(self, array: NDArray[np.integer]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _on_host(self, tensors: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Copy the results to the host: all copies run concurrently, then one wait.

        They arrive in page-locked memory, which is scarce and never given back to the system, and are copied out of
        it once, since results are views that live as long as a request.
        """
        if self.device == "cpu":
            return {name: tensor.numpy() for name, tensor in tensors.items()}
        staged = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
            for name, tensor in tensors.items()
        }
        torch.cuda.current_stream().synchronize()
        return {name: tensor.numpy().copy() for name, tensor in staged.items()}

    @contextmanager
    def _on_stream(self, *, urgent: bool) -> Iterator[None]:
        """This thread's own CUDA stream, of the higher priority if urgent."""
        if self.device == "cpu":
            yield
            return
        name = "urgent" if urgent else "patient"
        stream = getattr(self._streams, name, None)
        if stream is None:
            stream = torch.cuda.Stream(self.device, priority=-1 if urgent else 0)  # type: ignore[no-untyped-call]
            setattr(self._streams, name, stream)
        torch.cuda.set_device(self.device)  # for good: a switch back could touch a device that is lost
        with torch.cuda.stream(stream):
            yield


def _never_yield() -> None:
    """The yield point of an urgent batch."""


def _encoded(arrays: dict[str, NDArray[Any]], slots: SparseSlots | None, texts: int) -> EncodedBatch:
    sparse = None
    if slots is not None:
        kept = ~(arrays["values"] <= 0)  # NaN stays, so that it is noticed
        counts = np.bincount(slots.texts[kept], minlength=texts).astype(np.int32)
        sparse = SparseBatch(offsets_of(counts), slots.ids[kept].astype(np.uint32), arrays["values"][kept])
    return EncodedBatch(arrays.get("dense"), sparse, arrays.get("colbert"))


def _permuted(batch: TokenBatch, order: np.ndarray) -> TokenBatch:
    offsets = batch.offsets
    return TokenBatch(np.concatenate([batch.ids[offsets[b] : offsets[b + 1]] for b in order]), batch.lengths[order])


def _position_ids(batch: TokenBatch, pad_id: int) -> np.ndarray:
    """int32 [T]: counted from pad_id + 1 within a text; a literal `<pad>` takes pad_id and is not counted.

    As `create_position_ids_from_input_ids` of transformers.
    """
    counted = batch.ids != pad_id
    running = np.concatenate([[0], np.cumsum(counted)])
    before = np.repeat(running[batch.offsets[:-1]], batch.lengths)
    return np.where(counted, running[1:] - before, 0).astype(np.int32) + np.int32(pad_id)


def _colbert_rows(offsets: np.ndarray, back: np.ndarray) -> np.ndarray:
    """int64 [T - B]: tokens other than `<s>`, in the caller's order of texts."""
    return np.concatenate([np.arange(offsets[b] + 1, offsets[b + 1]) for b in back])
