"""The way of a batch through a GPU: what is launched on which stream, and how the results come back.

Nothing here waits for the device: a batch is copied there, computed and copied back in the order of its stream, and
`wait` blocks until the last copy is done. Three streams:

    urgent   queries and small batches, of high priority: the GPU's scheduler starts their blocks before others
    patient  large batches of passages
    copies   the results of large batches, so that the next batch does not wait for them
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.engines.devices import device_errors
from embedder.engines.engine import EncodedBatch, TokenBatch, YieldPoint
from embedder.engines.inputs import Inputs, Ints
from embedder.engines.outputs import HeadInputs
from embedder.engines.page_locked import PageLocked
from embedder.model.attention import Packing
from embedder.model.graphs import BUCKETS_TOKENS, Graphs, capture
from embedder.model.kernels import normalised_rows, text_spans_of, tile_count_max, tiles_of
from embedder.model.model import Model
from embedder.vectors import Outputs

_TILE_QUERIES = 64
"""Queries of a tile of attention in a small batch, which has few texts of more."""
_ALIGNED_INTS = 4
"""Parts of a copy begin at multiples of 16 bytes, so that kernels are compiled for one alignment."""


class CudaLauncher:
    """Launches the batches of one model on its GPU. Any thread may call it.

    Args:
        model: on a GPU.
        graphs: whether small batches are replayed from CUDA graphs.
    """

    def __init__(self, model: Model, *, graphs: bool) -> None:
        self._model = model
        self._device = model.device
        with torch.cuda.device(model.device):
            self._urgent = torch.cuda.Stream(model.device, priority=-1)  # type: ignore[no-untyped-call]
            self._patient = torch.cuda.Stream(model.device, priority=0)  # type: ignore[no-untyped-call]
            self._copies = torch.cuda.Stream(model.device, priority=0)  # type: ignore[no-untyped-call]
        self._results = PageLocked()
        self._small_lock = threading.Lock()  # the buffer that graphs read holds one batch at a time
        self._small: _SmallBatches | None = _SmallBatches(model, self._urgent) if graphs and model.tiled else None

    def capture(self) -> None:
        """Capture the graphs of all sizes, as far as the time allows; the others are captured when they are needed."""
        if self._small is not None:
            with self._small_lock, torch.cuda.stream(self._urgent):
                self._small.graphs.capture_all()

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None) -> PendingCudaBatch:
        """Launch a batch; see `Engine.launch`."""
        torch.cuda.set_device(self._device)  # for good: a switch back could touch a device that is lost
        inputs = Inputs.of(batch, self._model.config.pad_id)
        heads = HeadInputs.of(inputs, outputs, self._model.heads)
        bucket = None if self._small is None else self._small.graphs.bucket(len(batch.ids))
        if self._small is not None and bucket is not None:
            with self._small_lock, torch.cuda.stream(self._urgent):
                return self._fetched(heads, self._small.launch(bucket, inputs, heads), len(batch), self._urgent)
        stream = self._urgent if yield_point is None else self._patient
        with torch.cuda.stream(stream):
            on_device = _on_device({"ids": inputs.ids, "positions": inputs.positions} | heads.indices, self._device)
            packing = Packing.of(inputs.lengths, self._device, flash=self._model.flash, tiled=self._model.tiled)
            states = self._model.states(on_device["ids"], on_device["positions"], packing, yield_point or _never_yield)
            tensors = heads.launch(self._model.heads, states, on_device)
            return self._fetched(heads, tensors, len(batch), stream if yield_point is None else self._copies)

    def _fetched(
        self, heads: HeadInputs, tensors: dict[str, Tensor], texts: int, stream: torch.cuda.Stream
    ) -> PendingCudaBatch:
        """Copy the results to the host on this stream, after what the current one computes."""
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            staged = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in tensors.items()
            }
            done = torch.cuda.Event(blocking=stream is self._copies)  # type: ignore[no-untyped-call]
            done.record(stream)
        return PendingCudaBatch(self._device, heads, texts, tensors, staged, done, self._results)


@dataclass(slots=True, eq=False)
class PendingCudaBatch:
    """A batch that its GPU computes; see `PendingBatch`.

    Attributes:
        device: that computes it.
        heads: what was asked for.
        texts: number of texts.
        tensors: the results on the device, kept until they are copied.
        staged: the results in page-locked memory.
        done: behind the last copy.
        results: who lends page-locked memory to results.
    """

    device: str
    heads: HeadInputs
    texts: int
    tensors: dict[str, Tensor]
    staged: dict[str, Tensor]
    done: torch.cuda.Event
    results: PageLocked

    def wait(self) -> EncodedBatch:
        """See `PendingBatch.wait`."""
        with device_errors(self.device):
            self.done.synchronize()
        self.tensors.clear()
        arrays = {name: self.results.lent(tensor) for name, tensor in self.staged.items()}
        self.staged.clear()
        return self.heads.batch(arrays, self.texts)


class _SmallBatches:
    """Small batches by graphs: each number of tokens is rounded up to a bucket, whose pass is captured once.

    What is behind a batch's own tokens is computed as well and read by nobody: no token sees another outside its
    text.

    Args:
        model: on a GPU.
        stream: on which graphs are captured and replayed; its priority is that of their kernels.
    """

    def __init__(self, model: Model, stream: torch.cuda.Stream) -> None:
        self._model = model
        self._stream = stream
        self._pool = torch.cuda.graph_pool_handle()
        self.graphs: Graphs[dict[str, Tensor]] = Graphs(BUCKETS_TOKENS, self._captured)
        _, ints = _offsets(_sizes(BUCKETS_TOKENS[-1]))
        with torch.cuda.stream(stream):
            self._buffer = torch.zeros(ints, dtype=torch.int32, device=model.device)

    def launch(self, bucket: int, inputs: Inputs, heads: HeadInputs) -> dict[str, Tensor]:
        """Replay the pass of a bucket; what `HeadInputs.launch` gives. The next replay overwrites it."""
        replay = self.graphs.replay(bucket)  # before the batch is in the buffer: a capture overwrites it
        sizes = _sizes(bucket)
        offsets, ints = _offsets(sizes)
        staging = torch.zeros(ints, dtype=torch.int32, pin_memory=True)  # rows of zeros are no tiles
        staging.numpy()[offsets["slots"] : offsets["slots"] + sizes["slots"]] = -1
        arrays = {
            "ids": inputs.ids,
            "positions": inputs.positions,
            "text_spans": text_spans_of(inputs.lengths),
            "tiles": tiles_of(inputs.lengths, _TILE_QUERIES),
        }
        _fill(staging, arrays | heads.indices, offsets)
        self._buffer[:ints].copy_(staging, non_blocking=True)
        replayed = replay()
        tensors: dict[str, Tensor] = {}
        if heads.outputs.dense:
            tensors["dense"] = replayed["dense"][: len(inputs.first)]
        if heads.entries is not None:
            tensors["sparse"] = replayed["sparse"][: len(heads.entries)]
        if heads.outputs.colbert:
            rows = self._buffer[offsets["rows"] : offsets["rows"] + heads.indices["rows"].size]
            tensors["colbert"], tensors["finite"] = normalised_rows(replayed["projected"], rows, heads.colbert_type)
        return tensors

    def _captured(self, bucket: int) -> Callable[[], dict[str, Tensor]]:
        """The pass of a bucket: all that does not depend on the type of ColBERT rows, whoever asks for what."""
        self._buffer.zero_()  # in the order of another bucket its numbers are no token ids
        sizes = _sizes(bucket)
        offsets, _ = _offsets(sizes)
        static = {name: self._buffer[offsets[name] : offsets[name] + size] for name, size in sizes.items()}
        tiles, text_spans = static["tiles"].view(-1, 4), static["text_spans"].view(-1, 2)
        packing = Packing.of_tiles(bucket, tiles, text_spans, block=_TILE_QUERIES)
        heads = self._model.heads

        def work() -> dict[str, Tensor]:
            states = self._model.states(static["ids"], static["positions"], packing, _never_yield)
            return {
                "dense": heads.dense(states, static["first"]),
                "sparse": heads.sparse(states, static["slots"], bucket),
                "projected": heads.colbert_linear(states),
            }

        return capture(work, self._stream, self._pool)


def _sizes(bucket: int) -> dict[str, int]:
    """Numbers that a batch of a bucket brings along, by name; a text has two tokens at least."""
    tiles = 4 * tile_count_max(bucket, _TILE_QUERIES)
    tokens = {"ids": bucket, "positions": bucket, "text_spans": 2 * bucket, "slots": bucket, "rows": bucket}
    return tokens | {"tiles": tiles, "first": bucket // 2}


def _on_device(arrays: Mapping[str, NDArray[np.int32]], device: str) -> dict[str, Tensor]:
    """Arrays as tensors on a GPU, by one copy."""
    offsets, total = _offsets({name: array.size for name, array in arrays.items()})
    staging = torch.empty(total, dtype=torch.int32, pin_memory=True)
    _fill(staging, arrays, offsets)
    moved = staging.to(device, non_blocking=True)
    return {name: moved[offsets[name] : offsets[name] + array.size] for name, array in arrays.items()}


def _offsets(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """Where each part begins in one buffer of int32, and its size."""
    offsets, end = {}, 0
    for name, size in sizes.items():
        offsets[name] = end
        end += -(-size // _ALIGNED_INTS) * _ALIGNED_INTS
    return offsets, max(end, 1)


def _fill(staging: Tensor, arrays: Mapping[str, Ints], offsets: Mapping[str, int]) -> None:
    buffer = staging.numpy()
    for name, array in arrays.items():
        buffer[offsets[name] : offsets[name] + array.size] = array.reshape(-1)


def _never_yield() -> None:
    """The yield point of an urgent batch."""
