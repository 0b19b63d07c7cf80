"""The packed encoder: BGE-M3 on one device, over texts without padding.

The layers are in `embedder.transformer`, the three heads in `embedder.heads`; here are the weights and the
way of a batch onto the device and back.
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
from torch.nn import functional

from embedder.checkpoint import EncoderConfig, read_head
from embedder.devices import device_errors, memory_share
from embedder.engine import EncodedBatch, GiveWay, SparseBatch, TokenBatch, offsets_of
from embedder.errors import ConfigurationError
from embedder.flash import flash_kernel
from embedder.heads import Heads
from embedder.linear import Linear, prepare
from embedder.transformer import Layer, Norm, Packing
from embedder.vectors import Outputs
from embedder.weights import Weights, shaped

_STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # what is not a linear layer stays float32
}
_COLBERT = {"float32": torch.float32, "float16": torch.float16}


class PackedEngine:
    """BGE-M3 on one device, with one set of weights that any number of threads may use.

    Args:
        checkpoint: a folder in the published layout.
        device: `cpu` or `cuda:N`.
        dtype: `float32`, `bfloat16`, `float16`, or on the CPU `int8`.
        dropped_ids: token ids that carry no sparse weight.

    Raises:
        ConfigurationError: the files do not fit together, or the type does not fit the device.
    """

    name = "packed"

    def __init__(self, checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> None:
        if dtype == "int8" and device != "cpu":
            raise ConfigurationError(f"DTYPE=int8 runs on the CPU only, not on {device}; use auto or float16")
        self.device = device
        self.dtype = dtype
        self.config = EncoderConfig.read(checkpoint)
        self.hidden_size = self.config.hidden
        self.max_length = self.config.max_length
        self._streams = threading.local()
        self._flash = flash_kernel(device, _STORED[dtype], self.config.hidden // self.config.heads)
        with torch.inference_mode():
            self._load(checkpoint)
            self._heads = self._load_heads(checkpoint, dropped_ids)
        if device != "cpu":
            torch.cuda.synchronize(device)  # the lanes' streams do not wait for this one

    def encode(self, batch: TokenBatch, outputs: Outputs, give_way: GiveWay | None = None) -> EncodedBatch:
        """See `Engine.encode`. Float32 results equal FlagEmbedding's within 2e-5.

        On CUDA a batch that gives way runs on a stream of lower priority, and `give_way` is not called.
        """
        with device_errors(self.device), torch.inference_mode(), self._on_stream(urgent=give_way is None):
            return self._encode(batch, outputs, give_way if give_way and self.device == "cpu" else _stay)

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        return 0.0 if self.device == "cpu" else memory_share(self.device, lambda: self.encode(batch, Outputs()))

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`: one layer."""
        with device_errors(self.device), torch.inference_mode(), self._on_stream(urgent=False):
            packing = Packing.of(np.sort(batch.lengths), self.device, flash=self._flash)
            x = torch.ones(len(batch.ids), self.hidden_size, dtype=_STORED[self.dtype], device=self.device)
            self._layers[0](x, packing, _stay)
            if self.device != "cpu":
                torch.cuda.current_stream().synchronize()

    def _encode(self, batch: TokenBatch, outputs: Outputs, give_way: GiveWay) -> EncodedBatch:
        order = np.argsort(batch.lengths, kind="stable")  # texts of one length become neighbours
        back = np.argsort(order, kind="stable")
        batch = _permuted(batch, order)
        packing = Packing.of(batch.lengths, self.device, flash=self._flash)
        ids = self._placed(batch.ids)
        positions = self._placed(_position_ids(batch, self.config.pad_id))
        x = functional.embedding(ids, self._words).to(_STORED[self.dtype])
        x = x.add_(functional.embedding(positions, self._positions))
        x = self._embedding_norm(x)
        for layer in self._layers:
            x = layer(x, packing, give_way)

        found: dict[str, Tensor] = {}
        if outputs.dense:
            found["dense"] = self._heads.dense(x, self._placed(batch.offsets[:-1][back]))
        if outputs.sparse:
            text = self._placed(np.repeat(order, batch.lengths))
            found["counts"], found["indices"], found["values"] = self._heads.sparse(x, ids, text, len(order))
        if outputs.colbert:
            rows = self._placed(_colbert_rows(batch.offsets, back))
            found["colbert"] = self._heads.colbert(x, rows, _COLBERT[outputs.colbert_type])
        return _encoded(self._fetched(found))

    def _placed(self, array: NDArray[np.integer]) -> Tensor:
        tensor = torch.from_numpy(array)
        return tensor if self.device == "cpu" else tensor.pin_memory().to(self.device, non_blocking=True)

    def _fetched(self, found: dict[str, Tensor]) -> dict[str, NDArray[Any]]:
        """Copy the results to the host: all under way at once, then one wait."""
        if self.device != "cpu":
            copies = {
                name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for name, tensor in found.items()
            }
            torch.cuda.current_stream().synchronize()
            found = copies
        return {name: tensor.numpy() for name, tensor in found.items()}

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

    def _load(self, checkpoint: Path) -> None:
        stored = _STORED[self.dtype]
        weights = Weights.open(checkpoint)
        hidden, intermediate = self.config.hidden, self.config.intermediate

        def read(name: str, *shape: int) -> Tensor:
            return weights.read(name, *shape, dtype=stored, device=self.device)

        def linear(
            *names: str, width: int = hidden, out: int = hidden, gelu: bool = False, after_gelu: bool = False
        ) -> Linear:
            weight = weights.read_rows([f"{n}.weight" for n in names], out, width, dtype=stored, device=self.device)
            bias = weights.read_rows([f"{n}.bias" for n in names], out, dtype=stored, device=self.device)
            return prepare(weight, bias, dtype=self.dtype, gelu=gelu, after_gelu=after_gelu)

        def norm(name: str) -> Norm:
            return Norm(read(f"{name}.weight", hidden), read(f"{name}.bias", hidden), self.config.epsilon)

        def layer(prefix: str) -> Layer:
            attention = f"{prefix}.attention"
            return Layer(
                qkv=linear(*(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
                attended=linear(f"{attention}.output.dense"),
                attention_norm=norm(f"{attention}.output.LayerNorm"),
                up=linear(f"{prefix}.intermediate.dense", out=intermediate, gelu=True),
                down=linear(f"{prefix}.output.dense", width=intermediate, after_gelu=True),
                output_norm=norm(f"{prefix}.output.LayerNorm"),
                heads=self.config.heads,
            )

        # On a CPU the largest table, of which a request touches a few rows, stays in the file: nearly half of the
        # weights are neither read nor converted before the first answer, and take no memory until they are used.
        words = ("embeddings.word_embeddings.weight", self.config.vocabulary, hidden)
        self._words = weights.mapped(*words) if self.device == "cpu" else read(*words)
        # BGE-M3 has a single token type: its embedding is a constant of every position.
        positions = read("embeddings.position_embeddings.weight", self.config.positions, hidden)
        self._positions = positions.add_(read("embeddings.token_type_embeddings.weight", 1, hidden))
        self._embedding_norm = norm("embeddings.LayerNorm")
        self._layers = [layer(f"encoder.layer.{n}") for n in range(self.config.layers)]
        if any(_layer_of(name) >= self.config.layers for name in weights.names):
            raise ConfigurationError(
                f"MODEL_ID: config.json has num_hidden_layers={self.config.layers}, the weights have more layers"
            )

    def _load_heads(self, checkpoint: Path, dropped_ids: frozenset[int]) -> Heads:
        hidden, stored = self.config.hidden, _STORED[self.dtype]
        weight, bias = read_head(checkpoint, "sparse_linear")
        sparse_weight = shaped(weight, "sparse_linear.weight", 1, hidden)[0].to(self.device)
        sparse_bias = shaped(bias, "sparse_linear.bias", 1)[0].to(self.device)
        weight, bias = read_head(checkpoint, "colbert_linear")
        self.colbert_size = len(bias)
        weight = shaped(weight, "colbert_linear.weight", self.colbert_size, hidden)
        colbert = prepare(weight.to(self.device, stored), bias.to(self.device, stored), dtype=self.dtype)
        dropped = torch.tensor(sorted(dropped_ids), device=self.device)
        return Heads(sparse_weight, sparse_bias, colbert, dropped, self.config.vocabulary)


def _layer_of(name: str) -> int:
    """The number in `encoder.layer.N...`; -1 for any other weight."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layer"] and parts[2].isdigit() else -1


def _stay() -> None:
    """An urgent batch gives way to nobody."""


def _encoded(found: dict[str, NDArray[Any]]) -> EncodedBatch:
    sparse = None
    if "values" in found:
        sparse = SparseBatch(
            offsets_of(found["counts"].astype(np.int32)), found["indices"].astype(np.uint32), found["values"]
        )
    return EncodedBatch(found.get("dense"), sparse, found.get("colbert"))


def _permuted(batch: TokenBatch, order: np.ndarray) -> TokenBatch:
    offsets = batch.offsets
    return TokenBatch(np.concatenate([batch.ids[offsets[b] : offsets[b + 1]] for b in order]), batch.lengths[order])


def _position_ids(batch: TokenBatch, pad_id: int) -> np.ndarray:
    """int64 [T]: counted from pad_id + 1 within a text; a literal `<pad>` takes pad_id and is not counted.

    As `create_position_ids_from_input_ids` of transformers.
    """
    counted = batch.ids != pad_id
    running = np.concatenate([[0], np.cumsum(counted)])
    before = np.repeat(running[batch.offsets[:-1]], batch.lengths)
    return np.where(counted, running[1:] - before, 0).astype(np.int64) + pad_id


def _colbert_rows(offsets: np.ndarray, back: np.ndarray) -> np.ndarray:
    """int64 [T - B]: tokens other than `<s>`, in the caller's order of texts."""
    return np.concatenate([np.arange(offsets[b] + 1, offsets[b + 1]) for b in back])
