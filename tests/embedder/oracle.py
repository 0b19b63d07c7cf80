"""FlagEmbedding's public interface as the oracle, and how two sets of vectors are compared."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.engines import Engine, TokenBatch
from embedder.tokenizer import Tokenizer
from embedder.vectors import Embedding, Outputs, SparseVector

TOLERANCE = 2e-5
"""Most that a float32 component may differ from FlagEmbedding's."""

LEAST_COSINE = {"float32": 1 - 1e-6, "bfloat16": 0.9995, "float16": 0.9999, "int8": 0.999, "float8": 0.996}
"""Measured on the miniature: 0.99987, 0.999999, 0.9997 and 0.9984 for the last four."""

NEGLIGIBLE = 1e-6
"""A sparse weight above it must be found by both sides."""


class Oracle:
    """`BGEM3FlagModel.encode` on the CPU in float32, its answer as our values."""

    def __init__(self, checkpoint: Path) -> None:
        from FlagEmbedding import BGEM3FlagModel

        self._model: Any = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")

    def encode(self, texts: Sequence[str], max_length: int) -> list[Embedding]:
        """All three vectors of each text. `truncated` is False throughout: the oracle does not say."""
        found = self._model.encode(
            list(texts), return_dense=True, return_sparse=True, return_colbert_vecs=True, max_length=max_length
        )
        return [
            Embedding(dense, _sparse(weights), colbert, tokens=len(colbert) + 1, truncated=False)
            for dense, weights, colbert in zip(
                found["dense_vecs"], found["lexical_weights"], found["colbert_vecs"], strict=True
            )
        ]


def _sparse(weights: dict[str, np.float32]) -> SparseVector:
    ids = sorted(int(token_id) for token_id in weights)
    return SparseVector(
        np.array(ids, dtype=np.uint32), np.array([weights[str(token_id)] for token_id in ids], dtype=np.float32)
    )


def embed(
    engine: Engine, tokenizer: Tokenizer, texts: Sequence[str], max_length: int, outputs: Outputs | None = None
) -> list[Embedding]:
    """The vectors of texts from one batch through the `Engine` seam, without a pool."""
    encoded = tokenizer.encode(texts, max_length)
    batch = TokenBatch.of([text.ids for text in encoded])
    vectors = engine.encode(batch, outputs or Outputs())
    rows = batch.offsets - np.arange(len(encoded) + 1)
    return [
        Embedding(
            dense=None if vectors.dense is None else vectors.dense[b],
            sparse=None if vectors.sparse is None else vectors.sparse[b],
            colbert=None if vectors.colbert is None else vectors.colbert[rows[b] : rows[b + 1]],
            tokens=len(text),
            truncated=text.truncated,
        )
        for b, text in enumerate(encoded)
    ]


def assert_same(ours: Sequence[Embedding], theirs: Sequence[Embedding], tolerance: float = TOLERANCE) -> None:
    """Fail unless both hold the same vectors of the same texts, component by component."""
    assert len(ours) == len(theirs)
    for one, other in zip(ours, theirs, strict=True):
        assert one.tokens == other.tokens
        _assert_close(one.dense, other.dense, tolerance)
        _assert_close(one.colbert, other.colbert, tolerance)
        assert (one.sparse is None) == (other.sparse is None)
        if one.sparse is not None and other.sparse is not None:
            _assert_same_weights(weights_of(one.sparse), weights_of(other.sparse), tolerance)


def assert_well_formed(embedding: Embedding) -> None:
    """Fail unless the vectors have the types, shapes and norms that `Embedding` promises."""
    if embedding.dense is not None:
        assert embedding.dense.dtype == np.float32
        assert embedding.dense.ndim == 1
        assert abs(np.linalg.norm(embedding.dense) - 1) < TOLERANCE
    if embedding.sparse is not None:
        indices, values = embedding.sparse.indices, embedding.sparse.values
        assert indices.dtype == np.uint32
        assert values.dtype == np.float32
        assert len(indices) == len(values)
        assert (np.diff(indices.astype(np.int64)) > 0).all()
        assert (values > 0).all()
    if embedding.colbert is not None:
        assert embedding.colbert.dtype == np.float32
        assert len(embedding.colbert) == embedding.tokens - 1
        assert (np.abs(np.linalg.norm(embedding.colbert, axis=1) - 1) < TOLERANCE).all()


def cosines(one: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine per row of two matrices, or of two vectors."""
    a, b = np.atleast_2d(one).astype(np.float64), np.atleast_2d(other).astype(np.float64)
    found: NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return found


def weights_of(sparse: SparseVector) -> dict[int, float]:
    """Token id to weight."""
    return dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def _assert_close(one: NDArray[Any] | None, other: NDArray[Any] | None, tolerance: float) -> None:
    assert (one is None) == (other is None)
    if one is not None and other is not None:
        assert one.shape == other.shape
        assert np.abs(one - other).max(initial=0.0) <= tolerance


def _assert_same_weights(ours: dict[int, float], theirs: dict[int, float], tolerance: float) -> None:
    for token_id in ours.keys() | theirs.keys():
        one, other = ours.get(token_id, 0.0), theirs.get(token_id, 0.0)
        assert abs(one - other) <= tolerance
        assert max(one, other) <= NEGLIGIBLE or (token_id in ours and token_id in theirs)
