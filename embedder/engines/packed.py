"""The packed engine: BGE-M3 on one device, over texts without padding.

The model is `embedder.model`; here is the way of a batch through it on a CPU, in `embedder.engines.cuda` on a GPU.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

from embedder.engines.calibration import products_attend_faster
from embedder.engines.cuda import CudaLauncher
from embedder.engines.devices import device_errors, memory_share
from embedder.engines.engine import EncodedBatch, PendingBatch, ReadyBatch, TokenBatch, YieldPoint
from embedder.engines.freed_memory import FreedMemory, keep_freed_memory
from embedder.engines.inputs import Inputs
from embedder.engines.outputs import HeadInputs
from embedder.engines.shared_cores import shared_cores
from embedder.model.attention import DEFAULT_PIECES, Packing, PieceSizes
from embedder.model.model import Model, load_model
from embedder.model.processor import has_onednn
from embedder.openmp import require_whole_teams
from embedder.vectors import Outputs


class PackedEngine:
    """An `Engine` over one model, which any number of threads may call.

    Args:
        model: on its device.
        pieces: sizes of the pieces of a pass on a CPU.
        graphs: whether a GPU replays passes from CUDA graphs, after `prepare`; their results are the same without.
        freed: the freed memory of a CPU; None leaves it to malloc.
    """

    name = "packed"

    def __init__(
        self,
        model: Model,
        *,
        pieces: PieceSizes = DEFAULT_PIECES,
        graphs: bool = True,
        freed: FreedMemory | None = None,
    ) -> None:
        self.device = model.device
        self.dtype = model.dtype
        self.hidden_size = model.config.hidden
        self.colbert_size = model.heads.colbert_size
        self.max_length = model.config.max_length
        self._model = model
        self._pieces = pieces
        self._freed = freed or FreedMemory(None)
        self._cores = shared_cores()
        self._cuda = None if model.device == "cpu" else CudaLauncher(model, graphs=graphs)

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> PackedEngine:
        """An engine over the model of a checkpoint; arguments and errors are those of `load_model`.

        Raises:
            ConfigurationError: also if OpenMP gives fewer threads than it says (`require_whole_teams`).
        """
        if device == "cpu":
            require_whole_teams(os.environ)
        model = load_model(checkpoint, device=device, dtype=dtype, dropped_ids=dropped_ids)
        freed = keep_freed_memory() if device == "cpu" else None
        # With products in float32 or float16 everything else is exact, and stays so.
        coarse = device == "cpu" and dtype in ("bfloat16", "int8") and has_onednn("bfloat16")
        return cls(replace(model, by_products=products_attend_faster()) if coarse else model, freed=freed)

    def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> PendingBatch:
        """See `Engine.launch`."""
        if self._cuda is None:
            return ReadyBatch(self.encode(batch, outputs, yield_point))
        with device_errors(self.device), torch.inference_mode():
            return self._cuda.launch(batch, outputs, yield_point)

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`. Float32 results equal FlagEmbedding's within 2e-5."""
        if self._cuda is not None:
            return self.launch(batch, outputs, yield_point).wait()
        if yield_point is not None:  # an urgent batch does not wait for it
            self._freed.trim_if_due()
        with (
            device_errors(self.device),
            torch.inference_mode(),
            self._cores.measured(yield_point or _never_yield) as measuring,
        ):
            return self._encode_on_cpu(batch, outputs, measuring)

    def warm(self) -> None:
        """See `Engine.warm`."""
        length = min(8, self.max_length)
        self.encode(TokenBatch.of([np.arange(5, 5 + length, dtype=np.int32)]), Outputs())

    def prepare(self, tokens: int) -> None:
        """See `Engine.prepare`."""
        if self._cuda is not None:
            with device_errors(self.device), torch.inference_mode():
                self._cuda.prepare(tokens)

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0 if self.device == "cpu" else memory_share(self.device, lambda: self.encode(batch, Outputs()))

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`: one layer."""
        with device_errors(self.device), torch.inference_mode():
            packing = self._packing(np.sort(batch.lengths))
            rows = max(len(batch.ids), packing.rows[-1].stop)
            x = torch.ones(rows, self.hidden_size, dtype=self._model.state_type, device=self.device)
            self._model.layers[0](x, packing, _never_yield)
            if self.device != "cpu":
                torch.cuda.synchronize(self.device)

    def _encode_on_cpu(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint) -> EncodedBatch:
        model = self._model
        inputs = Inputs.of(batch, model.config.pad_id)
        head_inputs = HeadInputs.of(inputs, outputs, model.heads)
        packing = self._packing(inputs.lengths)
        ids, positions = torch.from_numpy(inputs.ids), torch.from_numpy(inputs.positions)
        tokens = len(ids)
        beyond = packing.rows[-1].stop - tokens
        if beyond:  # not for short queries, which are 1 ms in a small model
            ids, positions = (
                functional.pad(array, (0, beyond), value=model.config.pad_id) for array in (ids, positions)
            )
        states = model.states(ids, positions, packing, yield_point)
        states = states[:tokens] if beyond else states
        indices = {name: torch.from_numpy(array) for name, array in head_inputs.indices.items()}
        tensors = head_inputs.launch(model.heads, states, indices)
        return head_inputs.batch({name: tensor.numpy() for name, tensor in tensors.items()}, len(batch))

    def _packing(self, lengths: np.ndarray) -> Packing:
        model = self._model
        return Packing.of(
            lengths,
            self.device,
            flash=model.flash,
            tiled=model.tiled,
            by_products=model.by_products,
            pieces=self._pieces,
        )


def _never_yield() -> None:
    """The yield point of an urgent batch."""
