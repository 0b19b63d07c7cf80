"""BGE-M3 as a value: its weights on one device, and the forward pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from embedder.checkpoint.config import EncoderConfig
from embedder.checkpoint.weights import Weights, read_head, shaped
from embedder.errors import ConfigurationError
from embedder.model.attention import Flash, Packing, attends_by_tiles, flash_kernel
from embedder.model.float8 import Float8Embedding, Float8Layer, Float8Linear, Float8States, prepare_float8
from embedder.model.heads import Heads
from embedder.model.linear import Linear, prepare
from embedder.model.processor import state_type
from embedder.model.transformer import Embedding, Layer, Norm


@dataclass(frozen=True, slots=True)
class Model:
    """The weights of one BGE-M3 on one device, which any number of threads may compute with.

    Attributes:
        config: sizes of the encoder.
        device: `cpu` or `cuda:N`.
        dtype: type of the matrix products: `float32`, `bfloat16`, `float16`, `int8` or `float8`.
        embedding: of tokens and their positions.
        layers: of the encoder, in order.
        heads: dense, sparse and ColBERT.
        flash: the variable-length attention kernel, or None.
        tiled: whether attention by tiles is available.
        by_products: whether a CPU attends by products in bfloat16 (`attention_by_products`).
    """

    config: EncoderConfig
    device: str
    dtype: str
    embedding: Embedding | Float8Embedding
    layers: tuple[Layer | Float8Layer, ...]
    heads: Heads
    flash: Flash | None
    tiled: bool
    by_products: bool = False

    @property
    def state_type(self) -> torch.dtype:
        """Type of the token states."""
        return state_type(self.dtype, torch.device(self.device).type)

    def states(self, ids: Tensor, positions: Tensor, packing: Packing, yield_point: Callable[[], None]) -> Tensor:
        """The last hidden states [T, H] of concatenated texts.

        Args:
            ids: int32 [T], token ids.
            positions: int32 [T], position ids.
            packing: how the batch is cut into pieces.
            yield_point: called after each piece.
        """
        x: Any = self.embedding(ids, positions)
        for layer in self.layers:
            x = layer(x, packing, yield_point)
        states: Tensor = x.exact if isinstance(x, Float8States) else x
        return states


def load_model(checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> Model:
    """Read the weights of a checkpoint onto a device, in the type in which they compute.

    Args:
        checkpoint: a folder in the published layout.
        device: `cpu` or `cuda:N`.
        dtype: `float32`, `bfloat16`, `float16`, on the CPU `int8`, or `float8`, which a CPU computes only for tests.
        dropped_ids: token ids that carry no sparse weight.

    Raises:
        ConfigurationError: a file is damaged or cannot be read, the files do not fit together, or the type does not
            fit the device.
        MemoryError, RuntimeError: of torch, for want of memory or of a working device.
    """
    if dtype == "int8" and device != "cpu":
        raise ConfigurationError(f"DTYPE=int8 runs on the CPU only, not on {device}; use auto or float16")
    config = EncoderConfig.read(checkpoint)
    weights = Weights.open(checkpoint)
    with torch.inference_mode():
        model = _Reader(weights, config, device=device, dtype=dtype).model(checkpoint, dropped_ids)
    if any(_layer_of(name) >= config.layers for name in weights.names):
        raise ConfigurationError(
            f"MODEL_ID: config.json has num_hidden_layers={config.layers}, the weights have more layers"
        )
    if device != "cpu":
        torch.cuda.synchronize(device)  # the streams of the engine's threads do not wait for this one
    return model


class _Reader:
    """Reads the parts of a model by their published names."""

    def __init__(self, weights: Weights, config: EncoderConfig, *, device: str, dtype: str) -> None:
        self._weights = weights
        self._config = config
        self._device = device
        self._dtype = dtype
        self._linear_dtype = "bfloat16" if dtype == "float8" else dtype  # of the products that `prepare` makes
        self._stored = state_type(dtype, torch.device(device).type)

    def model(self, checkpoint: Path, dropped_ids: frozenset[int]) -> Model:
        config = self._config
        table = ("embeddings.word_embeddings.weight", config.vocabulary, config.hidden)
        # On a CPU the largest table, of which a request touches a few rows, stays in the file: nearly half of the
        # weights are neither read nor converted before the first answer, and take no memory until they are used.
        words = self._weights.mapped(*table) if self._device == "cpu" else self._tensor(*table)
        # BGE-M3 has a single token type: its embedding is a constant of every position.
        positions = self._tensor("embeddings.position_embeddings.weight", config.positions, config.hidden)
        positions = positions.add_(self._tensor("embeddings.token_type_embeddings.weight", 1, config.hidden))
        embedding = Embedding(words, positions, self._norm("embeddings.LayerNorm"))
        layer = self._float8_layer if self._dtype == "float8" else self._layer
        return Model(
            config=config,
            device=self._device,
            dtype=self._dtype,
            embedding=Float8Embedding(embedding) if self._dtype == "float8" else embedding,
            layers=tuple(layer(f"encoder.layer.{n}") for n in range(config.layers)),
            heads=self._heads(checkpoint, dropped_ids),
            flash=flash_kernel(self._device, self._stored, config.hidden // config.heads),
            tiled=attends_by_tiles(self._device, self._stored),
        )

    def _layer(self, prefix: str) -> Layer:
        hidden, intermediate = self._config.hidden, self._config.intermediate
        attention = f"{prefix}.attention"
        return Layer(
            qkv=self._linear(*(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
            attended=self._linear(f"{attention}.output.dense"),
            attention_norm=self._norm(f"{attention}.output.LayerNorm"),
            up=self._linear(f"{prefix}.intermediate.dense", shape=(intermediate, hidden), gelu=True),
            down=self._linear(f"{prefix}.output.dense", shape=(hidden, intermediate), after_gelu=True),
            output_norm=self._norm(f"{prefix}.output.LayerNorm"),
            heads=self._config.heads,
        )

    def _float8_layer(self, prefix: str) -> Float8Layer:
        hidden, intermediate = self._config.hidden, self._config.intermediate
        attention = f"{prefix}.attention"
        return Float8Layer(
            qkv=self._float8(*(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
            attended=self._linear(f"{attention}.output.dense"),
            attention_norm=self._norm(f"{attention}.output.LayerNorm"),
            up=self._float8(f"{prefix}.intermediate.dense", shape=(intermediate, hidden)),
            down=self._float8(f"{prefix}.output.dense", shape=(hidden, intermediate)),
            output_norm=self._norm(f"{prefix}.output.LayerNorm"),
            heads=self._config.heads,
        )

    def _heads(self, checkpoint: Path, dropped_ids: frozenset[int]) -> Heads:
        hidden = self._config.hidden
        weight, bias = read_head(checkpoint, "sparse_linear")
        sparse_weight = shaped(weight, "sparse_linear.weight", 1, hidden)[0].to(self._device)
        sparse_bias = shaped(bias, "sparse_linear.bias", 1)[0].to(self._device)
        weight, bias = read_head(checkpoint, "colbert_linear")
        size = bias.numel()
        weight = shaped(weight, "colbert_linear.weight", size, hidden).to(self._device, self._stored)
        bias = shaped(bias, "colbert_linear.bias", size).to(self._device, self._stored)
        return Heads(
            sparse_weight=sparse_weight,
            sparse_bias=sparse_bias,
            colbert_linear=prepare(weight, bias, dtype=self._linear_dtype),
            colbert_size=size,
            dropped_ids=np.array(sorted(dropped_ids), dtype=np.int32),
        )

    def _linear(
        self, *names: str, shape: tuple[int, int] | None = None, gelu: bool = False, after_gelu: bool = False
    ) -> Linear:
        weight, bias = self._side_by_side(names, shape, self._stored)
        return prepare(weight, bias, dtype=self._linear_dtype, gelu=gelu, after_gelu=after_gelu)

    def _float8(self, *names: str, shape: tuple[int, int] | None = None) -> Float8Linear:
        return prepare_float8(*self._side_by_side(names, shape, torch.float32))

    def _side_by_side(
        self, names: Sequence[str], shape: tuple[int, int] | None, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Weight and bias of linear layers of one shape [out, in] as one; by default [H, H]."""
        out, width = shape or (self._config.hidden, self._config.hidden)
        read_rows = partial(self._weights.read_rows, dtype=dtype, device=self._device)
        weight = read_rows([f"{name}.weight" for name in names], out, width)
        return weight, read_rows([f"{name}.bias" for name in names], out)

    def _norm(self, name: str) -> Norm:
        hidden = self._config.hidden
        return Norm(self._tensor(f"{name}.weight", hidden), self._tensor(f"{name}.bias", hidden), self._config.epsilon)

    def _tensor(self, name: str, *shape: int) -> Tensor:
        return self._weights.read(name, *shape, dtype=self._stored, device=self._device)


def _layer_of(name: str) -> int:
    """The number in `encoder.layer.N...`; -1 for any other weight."""
    parts = name.split(".")
    return int(parts[2]) if parts[:2] == ["encoder", "layer"] and parts[2].isdigit() else -1
