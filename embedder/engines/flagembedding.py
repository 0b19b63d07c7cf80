"""The library FlagEmbedding behind the seam: `ENGINE=flagembedding`, and what our own engine is compared with."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from embedder.checkpoint.config import EncoderConfig
from embedder.engines.engine import BlockingEngine, EncodedBatch, SparseBatch, TokenBatch, YieldPoint, offsets_of
from embedder.errors import ConfigurationError
from embedder.vectors import Outputs

_PADDED_MAX_TOKENS = 16_384
"""Most tokens of one padded forward pass, so that one long text does not pad many short ones."""


class FlagEmbeddingEngine(BlockingEngine):
    """An `Engine` over FlagEmbedding's own model, run on the pool's batches.

    The forward pass is the library's, padding included; what the library does per text around it (probing the
    batch size by running the first batch twice, Python loops over tokens) is left out.

    Args:
        library: a `BGEM3FlagModel`: its `tokenizer` pads, its `model` computes on `device`.
        config: sizes of its encoder.
        colbert_size: width of its ColBERT rows.
        device: `cpu` or `cuda:N`.
        dtype: `float32`, `bfloat16` or `float16`.
        dropped_ids: token ids that carry no sparse weight.
    """

    name = "flagembedding"

    def __init__(
        self,
        library: Any,
        config: EncoderConfig,
        *,
        colbert_size: int,
        device: str,
        dtype: str,
        dropped_ids: frozenset[int],
    ) -> None:
        self.device = device
        self.dtype = dtype
        self.hidden_size = config.hidden
        self.max_length = config.max_length
        self.colbert_size = colbert_size
        self._dropped = np.array(sorted(dropped_ids))
        self._library = library
        self._lock = threading.Lock()  # its tokenizer, which pads, is not thread-safe

    @classmethod
    def load(cls, checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> FlagEmbeddingEngine:
        """An engine over a checkpoint.

        The files are opened by our own readers first, which say which of them is damaged. What the library raises
        after that keeps its type: a lack of memory, a missing package or a failing device is not a damaged file.

        Args:
            checkpoint: a folder in the published layout.
            device: `cpu` or `cuda:N`.
            dtype: `float32`, `bfloat16` or `float16`; on a CPU `float32`.
            dropped_ids: token ids that carry no sparse weight.

        Raises:
            ConfigurationError: the library does not compute in this type, or a file is damaged or cannot be read.
        """
        if dtype in {"int8", "float8"}:
            raise ConfigurationError(f"DTYPE={dtype} needs ENGINE=packed; FlagEmbedding has no {dtype}")
        if device == "cpu" and dtype != "float32":
            raise ConfigurationError(f"DTYPE={dtype}: FlagEmbedding computes in float32 on the CPU; use float32")
        from embedder.checkpoint.weights import check_files

        config = EncoderConfig.read(checkpoint)
        check_files(checkpoint)
        from FlagEmbedding import BGEM3FlagModel

        library: Any = BGEM3FlagModel(
            str(checkpoint), use_fp16=dtype == "float16", use_bf16=dtype == "bfloat16", devices=device
        )
        library.model.to(device).eval()
        size = int(library.model.colbert_linear.out_features)
        return cls(library, config, colbert_size=size, device=device, dtype=dtype, dropped_ids=dropped_ids)

    def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
        """See `Engine.encode`. Yields between its padded groups; on a GPU too it is done when `launch` returns."""
        from embedder.engines.devices import device_errors

        order = np.argsort(batch.lengths, kind="stable")
        parts: dict[int, dict[str, np.ndarray]] = {}
        for texts in _padded_groups(order, batch.lengths):
            with device_errors(self.device):
                parts |= zip(texts, self._forward(batch, texts, outputs), strict=True)
            if yield_point is not None:
                yield_point()
        each = [parts[text] for text in range(len(batch))]
        return EncodedBatch(
            dense=np.stack([part["dense"] for part in each]) if outputs.dense else None,
            sparse=self._sparse(batch, each) if outputs.sparse else None,
            colbert=np.concatenate([part["colbert"] for part in each]).astype(outputs.colbert_type, copy=False)
            if outputs.colbert
            else None,
        )

    def memory_share(self, batch: TokenBatch) -> float:
        """See `Engine.memory_share`."""
        from embedder.engines.devices import memory_share

        return 0.0 if self.device == "cpu" else memory_share(self.device, lambda: self.encode(batch, Outputs()))

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`: all of it, since the library runs nothing less."""
        self.encode(batch, Outputs())

    def _forward(self, batch: TokenBatch, texts: list[int], outputs: Outputs) -> list[dict[str, np.ndarray]]:
        import torch
        from FlagEmbedding.utils.tokenizer_compat import pad_with_compat

        offsets = batch.offsets
        ids = [batch.ids[offsets[text] : offsets[text + 1]].tolist() for text in texts]
        features = [{"input_ids": text, "attention_mask": [1] * len(text)} for text in ids]
        with self._lock, torch.inference_mode():
            padded = pad_with_compat(self._library.tokenizer, features, padding=True, return_tensors="pt")
            out = self._library.model(
                padded.to(self.device),
                return_dense=outputs.dense,
                return_sparse=outputs.sparse,
                return_colbert_vecs=outputs.colbert,
            )
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in out.items()}
        parts: list[dict[str, np.ndarray]] = [{} for _ in texts]
        for row, text in enumerate(ids):
            if outputs.dense:
                parts[row]["dense"] = arrays["dense_vecs"][row]
            if outputs.sparse:
                parts[row]["weights"] = arrays["sparse_vecs"][row, : len(text), 0]
            if outputs.colbert:
                parts[row]["colbert"] = arrays["colbert_vecs"][row, : len(text) - 1]
        return parts

    def _sparse(self, batch: TokenBatch, parts: list[dict[str, np.ndarray]]) -> SparseBatch:
        """Maximum weight per text and token id; special ids and weights <= 0 removed."""
        text = np.repeat(np.arange(len(batch)), batch.lengths)
        weights = np.concatenate([part["weights"] for part in parts])
        kept = ~(weights <= 0) & ~np.isin(batch.ids, self._dropped)  # NaN stays, so that it is noticed
        text, ids, weights = text[kept], batch.ids[kept], weights[kept]
        order = np.lexsort((-weights, ids, text))
        text, ids, weights = text[order], ids[order], weights[order]
        first = np.ones(len(ids), dtype=bool)
        first[1:] = (text[1:] != text[:-1]) | (ids[1:] != ids[:-1])
        counts = np.bincount(text[first], minlength=len(batch)).astype(np.int32)
        return SparseBatch(offsets_of(counts), ids[first].astype(np.uint32), weights[first].astype(np.float32))


def _padded_groups(order: np.ndarray, lengths: np.ndarray) -> list[list[int]]:
    """Texts, shortest first, in groups that pad to at most `_PADDED_MAX_TOKENS` each."""
    groups: list[list[int]] = [[]]
    for text in order.tolist():
        if groups[-1] and (len(groups[-1]) + 1) * int(lengths[text]) > _PADDED_MAX_TOKENS:
            groups.append([])
        groups[-1].append(text)
    return groups
