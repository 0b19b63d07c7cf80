"""FlagEmbedding's public interface as the oracle, and comparisons of two sets of vectors."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.engines import Engine, TokenBatch
from embedder.tokenizer import Tokenizer
from embedder.vectors import Embedding, Outputs, SparseVector

TOLERANCE = 2e-5
"""Maximum difference of a float32 component from FlagEmbedding's."""

COSINE_MIN = {"float32": 1 - 1e-6, "bfloat16": 0.9995, "float16": 0.9999, "int8": 0.999, "float8": 0.996}
"""Minimum cosine to float32 by type. Measured: 0.99987, 0.999999, 0.9997 and 0.9984 for the last four, on `mini`."""

NEGLIGIBLE = 1e-6
"""Both sides must report a sparse weight above this value."""


class Oracle:
    """`BGEM3FlagModel.encode` on the CPU in float32, with its results converted to `Embedding`."""

    def __init__(self, checkpoint: Path) -> None:
        gc.disable()  # as in `tests/conftest.py`: a third of a second for each full collection
        from FlagEmbedding import BGEM3FlagModel

        gc.enable()
        gc.freeze()
        self._model: Any = BGEM3FlagModel(str(checkpoint), use_fp16=False, devices="cpu")

    def encode(self, texts: Sequence[str], max_length: int) -> list[Embedding]:
        """Return all three vectors of each text; `truncated` is always False, as the oracle does not report it."""
        vectors = self._model.encode(
            list(texts), return_dense=True, return_sparse=True, return_colbert_vecs=True, max_length=max_length
        )
        return [
            Embedding(dense, _sparse(weights), colbert, tokens=len(colbert) + 1, truncated=False)
            for dense, weights, colbert in zip(
                vectors["dense_vecs"], vectors["lexical_weights"], vectors["colbert_vecs"], strict=True
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
    """Embed texts as one batch through the `Engine` interface, without a pool."""
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
    """Assert that both lists hold the same vectors for the same texts, component by component."""
    assert len(ours) == len(theirs)
    for our, their in zip(ours, theirs, strict=True):
        assert our.tokens == their.tokens
        _assert_close(our.dense, their.dense, tolerance)
        _assert_close(our.colbert, their.colbert, tolerance)
        assert (our.sparse is None) == (their.sparse is None)
        if our.sparse is not None and their.sparse is not None:
            _assert_same_weights(weights_of(our.sparse), weights_of(their.sparse), tolerance)


def assert_well_formed(embedding: Embedding) -> None:
    """Assert that the vectors have the types, shapes and norms that `Embedding` promises."""
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


def cosines(left: NDArray[Any], right: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine per row of two matrices, or of two vectors."""
    a, b = np.atleast_2d(left).astype(np.float64), np.atleast_2d(right).astype(np.float64)
    values: NDArray[np.float64] = (a * b).sum(axis=1) / (np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1))
    return values


def weights_of(sparse: SparseVector) -> dict[int, float]:
    """Map each token id of the sparse vector to its weight."""
    return dict(zip(sparse.indices.tolist(), sparse.values.tolist(), strict=True))


def _assert_close(ours: NDArray[Any] | None, theirs: NDArray[Any] | None, tolerance: float) -> None:
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert ours.shape == theirs.shape
        assert np.abs(ours - theirs).max(initial=0.0) <= tolerance


def _assert_same_weights(ours: dict[int, float], theirs: dict[int, float], tolerance: float) -> None:
    for token_id in ours.keys() | theirs.keys():
        our_weight, their_weight = ours.get(token_id, 0.0), theirs.get(token_id, 0.0)
        assert abs(our_weight - their_weight) <= tolerance
        assert max(our_weight, their_weight) <= NEGLIGIBLE or (token_id in ours and token_id in theirs)
