"""The packed encoder: XLM-RoBERTa and the three heads of BGE-M3 over texts without padding.

All token-wise layers run once over the concatenated tokens of the batch, [T, H]; only attention looks
at sequences. It runs for each group of texts of one length, so nothing is ever padded or masked.

The computation is that of FlagEmbedding 1.4 (`EncoderOnlyEmbedderM3ModelForInference`):

    dense   = normalize(h_<s>)
    sparse  = per token id, max over its tokens of relu(w . h_t + b); special ids removed; > 0 kept
    colbert = normalize(W h_t + c) for every token but <s>
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from embedder.checkpoint import EncoderConfig, read_encoder, read_head
from embedder.engine import EncodedBatch, SparseBatch, TokenBatch, offsets_of
from embedder.errors import ConfigurationError
from embedder.linear import Linear, prepare
from embedder.vectors import Outputs

_STORED = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "int8": torch.float32,  # what is not a linear layer stays float32
}


@dataclass(frozen=True, slots=True)
class _Norm:
    """Layer norm over the last axis."""

    weight: Tensor  # [H]
    bias: Tensor  # [H]
    epsilon: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.epsilon)


@dataclass(frozen=True, slots=True)
class _Layer:
    """One transformer layer, post-norm; query, key and value are one product."""

    qkv: Linear  # [T, H] -> [T, 3 H]
    attended: Linear  # [T, H] -> [T, H]
    attention_norm: _Norm
    up: Linear  # [T, H] -> [T, F], GELU included
    down: Linear  # [T, F] -> [T, H]
    output_norm: _Norm

    def __call__(self, x: Tensor, groups: list[tuple[int, int]], heads: int) -> Tensor:
        x = self.attention_norm(x + self.attended(_attention(self.qkv(x), groups, heads)))
        return self.output_norm(x + self.down(self.up(x)))


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
        self._dropped = torch.tensor(sorted(dropped_ids), device=device)
        with torch.inference_mode():
            self._load(checkpoint)

    def encode(self, batch: TokenBatch, outputs: Outputs) -> EncodedBatch:
        """See `Engine.encode`. Float32 results equal FlagEmbedding's within 2e-5."""
        order = np.argsort(batch.lengths, kind="stable")  # texts of one length become neighbours
        ordered = _permuted(batch, order)
        with torch.inference_mode():
            ids = torch.from_numpy(ordered.ids).to(self.device)  # [T]
            positions = torch.from_numpy(_position_ids(ordered, self.config.pad_id)).to(self.device)
            states = self._states(ids, positions, _groups(ordered.lengths))  # [T, H]
            return self._heads(states, ids, ordered, order, outputs)

    def _states(self, ids: Tensor, positions: Tensor, groups: list[tuple[int, int]]) -> Tensor:
        x = functional.embedding(ids, self._words) + functional.embedding(positions, self._positions)
        x = self._embedding_norm(x)
        for layer in self._layers:
            x = layer(x, groups, self.config.heads)
        return x

    def _heads(
        self, states: Tensor, ids: Tensor, ordered: TokenBatch, order: np.ndarray, outputs: Outputs
    ) -> EncodedBatch:
        back = np.argsort(order, kind="stable")
        offsets = ordered.offsets
        dense = sparse = colbert = None
        if outputs.dense:
            first = torch.from_numpy(offsets[:-1][back]).to(self.device)
            dense = functional.normalize(states[first].float(), dim=-1).cpu().numpy()
        if outputs.sparse:
            text = np.repeat(order, ordered.lengths)  # [T], which text of the caller a token is of
            sparse = self._sparse(states, ids, torch.from_numpy(text).to(self.device), len(order))
        if outputs.colbert:
            kept = torch.from_numpy(_colbert_rows(offsets, back)).to(self.device)
            colbert = functional.normalize(self._colbert(states[kept]).float(), dim=-1).cpu().numpy()
        return EncodedBatch(dense, sparse, colbert)

    def _sparse(self, states: Tensor, ids: Tensor, text: Tensor, texts: int) -> SparseBatch:
        """Aggregate token weights to one maximum per text and token id, by sorting (text, id) pairs."""
        weights = torch.relu(states.float() @ self._sparse_weight + self._sparse_bias)  # [T]
        kept = ~(weights <= 0) & ~torch.isin(ids, self._dropped)  # NaN stays, so that it is noticed
        pairs = text[kept] * self.config.vocabulary + ids[kept]
        unique, place = torch.unique(pairs, return_inverse=True)  # ascending: by text, then by id
        values = torch.zeros(len(unique), device=weights.device).scatter_reduce_(0, place, weights[kept], "amax")
        owners = torch.bincount(unique // self.config.vocabulary, minlength=texts)
        return SparseBatch(
            offsets_of(owners.cpu().numpy().astype(np.int32)),
            (unique % self.config.vocabulary).cpu().numpy().astype(np.uint32),
            values.cpu().numpy(),
        )

    def _load(self, checkpoint: Path) -> None:
        stored = _STORED[self.dtype]
        weights = read_encoder(checkpoint, lambda tensor: tensor.to(self.device, stored))

        hidden, intermediate = self.config.hidden, self.config.intermediate

        def pop(name: str, *shape: int) -> Tensor:
            if name not in weights:
                raise ConfigurationError(f"MODEL_ID: the checkpoint lacks the weight {name}")
            return _shaped(weights.pop(name), name, *shape)

        def linear(*names: str, width: int = hidden, out: int = hidden, gelu: bool = False) -> Linear:
            weight = torch.cat([pop(f"{name}.weight", out, width) for name in names])
            bias = torch.cat([pop(f"{name}.bias", out) for name in names])
            return prepare(weight, bias, dtype=self.dtype, gelu=gelu)

        def norm(name: str) -> _Norm:
            return _Norm(pop(f"{name}.weight", hidden), pop(f"{name}.bias", hidden), self.config.epsilon)

        def layer(prefix: str) -> _Layer:
            attention = f"{prefix}.attention"
            return _Layer(
                qkv=linear(*(f"{attention}.self.{part}" for part in ("query", "key", "value"))),
                attended=linear(f"{attention}.output.dense"),
                attention_norm=norm(f"{attention}.output.LayerNorm"),
                up=linear(f"{prefix}.intermediate.dense", out=intermediate, gelu=True),
                down=linear(f"{prefix}.output.dense", width=intermediate),
                output_norm=norm(f"{prefix}.output.LayerNorm"),
            )

        self._words = pop("embeddings.word_embeddings.weight", self.config.vocabulary, hidden)
        # BGE-M3 has a single token type: its embedding is a constant of every position.
        positions = pop("embeddings.position_embeddings.weight", self.config.positions, hidden)
        self._positions = positions + pop("embeddings.token_type_embeddings.weight", 1, hidden)
        self._embedding_norm = norm("embeddings.LayerNorm")
        self._layers = [layer(f"encoder.layer.{n}") for n in range(self.config.layers)]
        if any(name.startswith("encoder.layer.") for name in weights):
            raise ConfigurationError(
                f"MODEL_ID: config.json has num_hidden_layers={self.config.layers}, the weights have more layers"
            )

        weight, bias = read_head(checkpoint, "sparse_linear")
        # float32: it costs nothing and ranks exactly
        self._sparse_weight = _shaped(weight, "sparse_linear.weight", 1, hidden)[0].to(self.device)  # [H]
        self._sparse_bias = _shaped(bias, "sparse_linear.bias", 1)[0].to(self.device)
        weight, bias = read_head(checkpoint, "colbert_linear")
        self.colbert_size = len(bias)
        weight = _shaped(weight, "colbert_linear.weight", self.colbert_size, hidden)
        self._colbert = prepare(weight.to(self.device, stored), bias.to(self.device, stored), dtype=self.dtype)


def _shaped(weight: Tensor, name: str, *shape: int) -> Tensor:
    """The weight, if it has the shape that config.json implies."""
    if weight.shape != shape:
        raise ConfigurationError(
            f"MODEL_ID: the weight {name} has shape {list(weight.shape)}, config.json implies {list(shape)}"
        )
    return weight


def _attention(qkv: Tensor, groups: list[tuple[int, int]], heads: int) -> Tensor:
    """Softmax attention within each text.

    Args:
        qkv: [T, 3 H], texts of one length adjacent.
        groups: (number of texts, their length), in order; they cover T.
        heads: number of attention heads.

    Returns:
        [T, H].
    """
    tokens, width = qkv.shape
    out = torch.empty(tokens, width // 3, dtype=qkv.dtype, device=qkv.device)
    start = 0
    for texts, length in groups:
        end = start + texts * length
        # each of q, k, v is [n, heads, L, H / heads]
        q, k, v = qkv[start:end].view(texts, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v)
        out[start:end].view(texts, length, heads, -1).copy_(attended.transpose(1, 2))
        start = end
    return out


def _groups(lengths: np.ndarray) -> list[tuple[int, int]]:
    """Runs of equal lengths as (count, length): [3, 3, 5] -> [(2, 3), (1, 5)]."""
    return [(len(list(run)), length) for length, run in itertools.groupby(lengths.tolist())]


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
