"""FlagEmbedding behind the same seam: the oracle, and `ENGINE=flagembedding` for those who want it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np

from embedder.checkpoint import EncoderConfig, readable
from embedder.engine import EncodedBatch, GiveWay, SparseBatch, TokenBatch, offsets_of
from embedder.errors import ConfigurationError
from embedder.vectors import Outputs

_PADDED_TOKENS = 16_384
"""Most tokens of one padded forward pass, so that one long text does not pad many short ones."""


class ReferenceEngine:
    """FlagEmbedding's own model, run on the pool's batches.

    The forward pass is the library's, padding included; what it does per text around it (probing the
    batch size by running the first batch twice, Python loops over tokens) is left out.

    Args:
        checkpoint: a folder in the published layout.
        device: `cpu` or `cuda:N`.
        dtype: `float32`, `bfloat16` or `float16`.
        dropped_ids: token ids that carry no sparse weight.
    """

    name = "flagembedding"

    def __init__(self, checkpoint: Path, *, device: str, dtype: str, dropped_ids: frozenset[int]) -> None:
        if dtype == "int8":
            raise ConfigurationError("DTYPE=int8 needs ENGINE=packed; FlagEmbedding has no int8")
        if device == "cpu" and dtype != "float32":
            raise ConfigurationError(f"DTYPE={dtype}: FlagEmbedding computes in float32 on the CPU; use float32")
        from FlagEmbedding import BGEM3FlagModel

        self.device = device
        self.dtype = dtype
        config = EncoderConfig.read(checkpoint)
        self.hidden_size = config.hidden
        self.max_length = config.max_length
        self._dropped = np.array(sorted(dropped_ids))
        with readable("the checkpoint"):
            self._flag: Any = BGEM3FlagModel(
                str(checkpoint), use_fp16=dtype == "float16", use_bf16=dtype == "bfloat16", devices=device
            )
        self._flag.model.to(device).eval()
        self.colbert_size = int(self._flag.model.colbert_linear.out_features)
        self._lock = threading.Lock()  # its tokenizer, which pads, is not thread-safe

    def encode(self, batch: TokenBatch, outputs: Outputs, give_way: GiveWay | None = None) -> EncodedBatch:
        """See `Engine.encode`. Gives way between its padded groups."""
        from embedder.devices import device_errors

        order = np.argsort(batch.lengths, kind="stable")
        parts: dict[int, dict[str, np.ndarray]] = {}
        for texts in _padded_groups(order, batch.lengths):
            with device_errors(self.device):
                parts |= zip(texts, self._forward(batch, texts, outputs), strict=True)
            if give_way is not None:
                give_way()
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
        from embedder.devices import memory_share

        return 0.0 if self.device == "cpu" else memory_share(self.device, lambda: self.encode(batch, Outputs()))

    def probe(self, batch: TokenBatch) -> None:
        """See `Engine.probe`: all of it, since the library runs nothing less."""
        self.encode(batch, Outputs())

    def _forward(self, batch: TokenBatch, texts: list[int], outputs: Outputs) -> list[dict[str, np.ndarray]]:
        import torch
        from FlagEmbedding.utils.tokenizer_compat import pad_with_compat

        offsets = batch.offsets
        ids = [batch.ids[offsets[text] : offsets[text + 1]].tolist() for text in texts]
        features = [{"input_ids": one, "attention_mask": [1] * len(one)} for one in ids]
        with self._lock, torch.inference_mode():
            padded = pad_with_compat(self._flag.tokenizer, features, padding=True, return_tensors="pt")
            out = self._flag.model(
                padded.to(self.device),
                return_dense=outputs.dense,
                return_sparse=outputs.sparse,
                return_colbert_vecs=outputs.colbert,
            )
        arrays = {name: tensor.float().cpu().numpy() for name, tensor in out.items()}
        found: list[dict[str, np.ndarray]] = [{} for _ in texts]
        for row, one in enumerate(ids):
            if outputs.dense:
                found[row]["dense"] = arrays["dense_vecs"][row]
            if outputs.sparse:
                found[row]["weights"] = arrays["sparse_vecs"][row, : len(one), 0]
            if outputs.colbert:
                found[row]["colbert"] = arrays["colbert_vecs"][row, : len(one) - 1]
        return found

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
    """Texts, shortest first, in groups that pad to at most `_PADDED_TOKENS` each."""
    groups: list[list[int]] = [[]]
    for text in order.tolist():
        if groups[-1] and (len(groups[-1]) + 1) * int(lengths[text]) > _PADDED_TOKENS:
            groups.append([])
        groups[-1].append(text)
    return groups
