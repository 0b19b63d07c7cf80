"""Latent semantic analysis (Deerwester et al. 1990).

It says where token embeddings start, and which documents are alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Factors(NamedTuple):
    """A truncated singular value decomposition ``U S V^T`` of the document x token matrix."""

    tokens: NDArray[Any]
    """``V sqrt(S)``, ``[V, K]``."""
    documents: NDArray[Any]
    """``U S``, ``[N, K]``: inner products approximate the tf-idf cosines of the documents."""


def factorise(documents: list[list[int]], vocab: int, rank: int, seed: int) -> Factors:
    """Decompose the tf-idf matrix: (1 + log tf) * log((N + 1) / (df + 1)), rows of unit length.

    Args:
        documents: Token ids of each of ``N`` documents.
        vocab: Size ``V`` of the vocabulary.
        rank: Singular values ``K`` to keep, fewer than ``N`` and ``V``.
        seed: Seed of the solver's starting vector.
    """
    from scipy.sparse import csr_matrix
    from scipy.sparse.linalg import svds

    rows = np.repeat(np.arange(len(documents)), [len(ids) for ids in documents])
    columns = np.concatenate([np.array(ids) for ids in documents])
    counts = np.ones(len(columns), np.float32)
    matrix = csr_matrix((counts, (rows, columns)), shape=(len(documents), vocab))
    matrix.sum_duplicates()
    document_frequency = np.bincount(matrix.indices, minlength=vocab)
    idf = np.log((len(documents) + 1) / (document_frequency + 1))
    matrix.data = (1 + np.log(matrix.data)) * idf[matrix.indices]
    squared_length = matrix.multiply(matrix).sum(1)
    matrix = csr_matrix(matrix.multiply(1 / np.sqrt(squared_length + 1e-6)))
    start = np.random.default_rng(seed).standard_normal(min(matrix.shape)).astype(np.float32)
    u, s, vt = svds(matrix, k=rank, random_state=seed, v0=start)
    return Factors(tokens=vt.T * np.sqrt(s), documents=u * s)
