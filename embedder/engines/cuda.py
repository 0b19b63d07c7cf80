"""The way of a batch through a GPU: what is launched on which stream, and how the results come back.

Nothing here waits for the device: a batch is copied there, computed and copied back in the order of its stream, and
`wait` blocks until the last copy is done. Three streams:

    urgent   queries, of high priority: the GPU's scheduler starts their blocks before others
    patient  passages
    copies   ColBERT rows of passages, so that the next batch does not wait for them
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from embedder.engines.devices import device_errors
from embedder.engines.engine import EncodedBatch, TokenBatch, YieldPoint
from embedder.engines.inputs import Inputs, Ints
from embedder.engines.outputs import HeadInputs
from embedder.engines.page_locked import PageLocked
from embedder.model.attention import Packing, tile_block
from embedder.model.graphs import BUCKETS_TOKENS, Graphs, Shape, bucket_of, capture
from embedder.model.kernels import normalised_rows, text_spans_of, tile_count_max, tiles_of
from embedder.model.model import Model
from embedder.vectors import Outputs

URGENT_MAX_TOKENS = 8192
"""Largest batch of queries that has a graph: nine hundred queries of 9 tokens."""
_SMALL_BLOCK_MAX_TOKENS = 512
"""Tokens up to which a pass has small tiles of attention whatever the texts: there are too few of large ones."""
_ROWS = ("colbert", "colbert_float16")
_HANDED_OUT = ("dense", *_ROWS)
"""Arrays of which results are views; of the others they have copies."""
_ALIGNED_INTS = 4
"""Parts of a copy begin at multiples of 16 bytes, so that kernels are compiled for one alignment."""


class CudaLauncher:
    """Launches the batches of one model on its GPU. Any thread may call it.

    Args:
        model: on a GPU.
        graphs: whether passes are replayed from CUDA graphs.
    """

    def __init__(self, model: Model, *, graphs: bool) -> None:
        self._model = model
        self._device = model.device
        with torch.cuda.device(model.device):
            urgent = torch.cuda.Stream(model.device, priority=-1)  # type: ignore[no-untyped-call]
            patient = torch.cuda.Stream(model.device, priority=0)  # type: ignore[no-untyped-call]
            copies = torch.cuda.Stream(model.device, priority=0)  # type: ignore[no-untyped-call]
        captures, results = graphs and model.tiled, PageLocked()
        self._urgent = _Lane(model, urgent, urgent, results, captures=captures)
        self._patient = _Lane(model, patient, copies, results, captures=captures)

    def prepare(self, tokens: int) -> None:
        """Capture passes of up to so many tokens, as far as the time allows; the others when they are needed."""
        self._patient.capture(tokens, short_texts=False)
        self._urgent.capture(min(tokens, URGENT_MAX_TOKENS), short_texts=True)

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None) -> PendingCudaBatch:
        """Launch a batch; see `Engine.launch`."""
        torch.cuda.set_device(self._device)  # for good: a switch back could touch a device that is lost
        inputs = Inputs.of(batch, self._model.config.pad_id)
        heads = HeadInputs.of(inputs, outputs, self._model.heads)
        lane = self._urgent if yield_point is None else self._patient
        return lane.launch(inputs, heads, yield_point or _never_yield)


class _Lane:
    """A stream and the passes on it.

    Args:
        model: on a GPU.
        stream: that computes.
        copies: the stream on which ColBERT rows are copied to the host.
        results: lends page-locked memory to results.
        captures: whether passes are captured.
    """

    def __init__(
        self,
        model: Model,
        stream: torch.cuda.Stream,
        copies: torch.cuda.Stream,
        results: PageLocked,
        *,
        captures: bool,
    ) -> None:
        self._model = model
        self._stream = stream
        self._copies = copies
        self._results = results
        self._lock = threading.Lock()  # a captured pass reads and writes memory that all of them share
        self._passes: _CapturedPasses | None = None
        self._captures = captures

    def capture(self, tokens: int, *, short_texts: bool) -> None:
        """Capture passes of batches of up to so many tokens."""
        largest = bucket_of(min(tokens, BUCKETS_TOKENS[-1]))
        if self._captures and largest is not None:
            with self._lock, torch.cuda.stream(self._stream):
                self._passes = _CapturedPasses(self._model, self._stream, largest)
                self._passes.capture_all(short_texts=short_texts)

    def launch(self, inputs: Inputs, heads: HeadInputs, yield_point: YieldPoint) -> PendingCudaBatch:
        """Launch a batch by the pass that is captured for it, or kernel by kernel."""
        shape = None if self._passes is None else self._passes.shape(inputs.lengths)
        if self._passes is not None and shape is not None:
            with self._lock, torch.cuda.stream(self._stream):
                return self._fetched(heads, self._passes.launch(shape, inputs, heads), len(inputs.lengths))
        with torch.cuda.stream(self._stream):
            model = self._model
            on_device = _on_device({"ids": inputs.ids, "positions": inputs.positions} | heads.indices, model.device)
            packing = Packing.of(inputs.lengths, model.device, flash=model.flash, tiled=model.tiled)
            states = model.states(on_device["ids"], on_device["positions"], packing, yield_point)
            return self._fetched(heads, heads.launch(model.heads, states, on_device), len(inputs.lengths))

    def _fetched(self, heads: HeadInputs, tensors: dict[str, Tensor], texts: int) -> PendingCudaBatch:
        """Copy the results to the host: what the next pass overwrites in the order of the stream, rows beside it."""
        staged = {name: _copied(tensor) for name, tensor in tensors.items() if name not in _ROWS}
        if "colbert" in tensors:
            self._copies.wait_stream(self._stream)
            with torch.cuda.stream(self._copies):
                staged |= {name: _copied(tensors[name]) for name in _ROWS if name in tensors}
        last = self._copies if "colbert" in tensors else self._stream
        done = torch.cuda.Event(blocking=self._copies is not self._stream)  # type: ignore[no-untyped-call]
        done.record(last)
        return PendingCudaBatch(self._model.device, heads, texts, tensors, staged, done, self._results)


def _copied(tensor: Tensor) -> Tensor:
    """The tensor in page-locked memory, once the current stream is there."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)


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
        arrays = {
            name: self.results.lent(tensor) if name in _HANDED_OUT else tensor.numpy()
            for name, tensor in self.staged.items()
        }
        self.staged.clear()
        return self.heads.batch(arrays, self.texts)


class _CapturedPasses:
    """Passes as CUDA graphs: each number of tokens is rounded up to a bucket, whose pass is captured once.

    What is behind a batch's own tokens is computed as well and never read: no token sees another outside its
    text. All passes read one buffer, write to the same tensors and share their memory between, so one is enqueued at
    a time, with all that reads its results.

    Args:
        model: on a GPU, which attends by tiles.
        stream: on which passes are captured and replayed; its priority is that of their kernels.
        largest: tokens of the largest bucket.
    """

    def __init__(self, model: Model, stream: torch.cuda.Stream, largest: int) -> None:
        self._model = model
        self._stream = stream
        self._largest = largest
        self._pool = torch.cuda.graph_pool_handle()
        self._graphs: Graphs[None] = Graphs(self._captured)
        self._blocks = sorted({tile_block(1), tile_block(BUCKETS_TOKENS[-1])})
        ints = max(_offsets(_sizes(Shape(largest, block)))[1] for block in self._blocks)
        hidden, device = model.config.hidden, model.device
        self._buffer = torch.zeros(ints, dtype=torch.int32, device=device)
        self._dense = torch.empty(largest // 2, hidden, dtype=torch.float32, device=device)
        self._sparse = torch.empty(largest, dtype=torch.float32, device=device)
        self._projected = torch.empty(largest, model.heads.colbert_size, dtype=model.state_type, device=device)

    def capture_all(self, *, short_texts: bool) -> None:
        """Capture the passes of all buckets, those for short texts first or last, as far as the time allows."""
        means = (1, BUCKETS_TOKENS[-1]) if short_texts else (BUCKETS_TOKENS[-1], 1)
        buckets = [tokens for tokens in reversed(BUCKETS_TOKENS) if tokens <= self._largest]
        self._graphs.capture_all(Shape(tokens, _block(tokens, mean)) for mean in means for tokens in buckets)
        torch.cuda.empty_cache()  # of what ran before each capture: graphs have memory of their own

    def shape(self, lengths: Ints) -> Shape | None:
        """The pass of a batch of texts with these lengths; None if it is too large."""
        tokens = int(lengths.sum())
        bucket = bucket_of(tokens, self._largest)
        return None if bucket is None else Shape(bucket, _block(bucket, tokens / len(lengths)))

    def launch(self, shape: Shape, inputs: Inputs, heads: HeadInputs) -> dict[str, Tensor]:
        """Replay a pass; what `HeadInputs.launch` gives. The next replay overwrites all but ColBERT rows."""
        replay = self._graphs.replay(shape)  # before the batch is in the buffer: a capture overwrites it
        sizes = _sizes(shape)
        offsets, ints = _offsets(sizes)
        staging = torch.zeros(ints, dtype=torch.int32, pin_memory=True)  # rows of zeros are no tiles
        staging.numpy()[offsets["slots"] : offsets["slots"] + sizes["slots"]] = -1
        lone = len(inputs.lengths) == 1
        text_spans, tiles = _lone_layout(len(inputs.ids), shape.block) if lone else _layout(inputs.lengths, shape.block)
        arrays = {"ids": inputs.ids, "positions": inputs.positions, "text_spans": text_spans, "tiles": tiles}
        _fill(staging, arrays | heads.indices, offsets)
        self._buffer[:ints].copy_(staging, non_blocking=True)
        replay()
        tensors: dict[str, Tensor] = {}
        if heads.outputs.dense:
            tensors["dense"] = self._dense[: len(inputs.first)]
        if heads.entries is not None:
            tensors["sparse"] = self._sparse[: len(heads.entries)]
        if heads.outputs.colbert:
            rows = self._buffer[offsets["rows"] : offsets["rows"] + heads.indices["rows"].size]
            tensors |= heads.rows(*normalised_rows(self._projected, rows, heads.colbert_type))
        return tensors

    def _captured(self, shape: Shape) -> Callable[[], None]:
        """The pass of a shape: all outputs but the type of ColBERT rows, whatever a batch requests."""
        self._buffer.zero_()  # in the order of another shape its numbers are no token ids
        sizes = _sizes(shape)
        offsets, _ = _offsets(sizes)
        static = {name: self._buffer[offsets[name] : offsets[name] + size] for name, size in sizes.items()}
        tiles, text_spans = static["tiles"].view(-1, 4), static["text_spans"].view(-1, 2)
        packing = Packing.of_tiles(shape.tokens, tiles, text_spans, block=shape.block)
        heads = self._model.heads

        def work() -> None:
            states = self._model.states(static["ids"], static["positions"], packing, _never_yield)
            self._dense[: sizes["first"]].copy_(heads.dense(states, static["first"]))
            self._sparse[: shape.tokens].copy_(heads.sparse(states, static["slots"], shape.tokens))
            heads.colbert_linear(states, out=self._projected[: shape.tokens])

        return capture(work, self._stream, self._pool)


def _block(tokens: int, mean_tokens: float) -> int:
    return tile_block(1 if tokens <= _SMALL_BLOCK_MAX_TOKENS else mean_tokens)


def _layout(lengths: Ints, block: int) -> tuple[Ints, Ints]:
    """The span of each token's text, and the tiles of attention."""
    return text_spans_of(lengths), tiles_of(lengths, block)


@lru_cache(maxsize=256)
def _lone_layout(tokens: int, block: int) -> tuple[Ints, Ints]:
    """The layout of one text, which depends on its length alone: a query waits for it, and lengths recur."""
    return _layout(np.array([tokens], dtype=np.int32), block)


def _sizes(shape: Shape) -> dict[str, int]:
    """Numbers that a batch of a shape brings along, by name; a text has two tokens at least."""
    tokens = shape.tokens
    tiles = 4 * tile_count_max(tokens, shape.block)
    of_tokens = {"ids": tokens, "positions": tokens, "text_spans": 2 * tokens, "slots": tokens, "rows": tokens}
    return of_tokens | {"tiles": tiles, "first": tokens // 2}


def _on_device(arrays: Mapping[str, NDArray[np.int32]], device: str) -> dict[str, Tensor]:
    """Arrays as tensors on a GPU, by one copy."""
    offsets, total = _offsets({name: array.size for name, array in arrays.items()})
    staging = torch.empty(total, dtype=torch.int32, pin_memory=True)
    _fill(staging, arrays, offsets)
    moved = staging.to(device, non_blocking=True)
    return {name: moved[offsets[name] : offsets[name] + array.size] for name, array in arrays.items()}


def _offsets(sizes: Mapping[str, int]) -> tuple[dict[str, int], int]:
    """The offset of each part in one buffer of int32, and the size of the buffer."""
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
