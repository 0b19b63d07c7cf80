"""LangChain's interfaces of models over the embedder, for tests with langchain-qdrant."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from langchain_core.embeddings import Embeddings
from langchain_qdrant import SparseEmbeddings, SparseVector

from embedder import Priority
from embedder.embedder import Embedder
from embedder.vectors import Embedding, Outputs


class Model:
    """A model for one call at a time.

    Attributes:
        embedder: the loaded model.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder

    def __call__(self, texts: Sequence[str], priority: Priority = Priority.PASSAGE) -> list[Embedding]:
        """Compute all three vectors of each text."""
        embeddings = asyncio.run(self.embedder.embed(texts, Outputs(), max_length=512, priority=priority))
        return [embedding for embedding in embeddings if isinstance(embedding, Embedding)]


class Dense(Embeddings):
    """LangChain's `Embeddings` interface over the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Dense vectors of passages."""
        return [embedding.dense.tolist() for embedding in self._model(texts) if embedding.dense is not None]

    def embed_query(self, text: str) -> list[float]:
        """The dense vector of a query."""
        return self.embed_documents([text])[0]


class Sparse(SparseEmbeddings):
    """The `SparseEmbeddings` interface of langchain-qdrant over the model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Lexical weights of passages."""
        return [
            SparseVector(indices=embedding.sparse.indices.tolist(), values=embedding.sparse.values.tolist())
            for embedding in self._model(texts)
            if embedding.sparse is not None
        ]

    def embed_query(self, text: str) -> SparseVector:
        """Lexical weights of a query."""
        return self.embed_documents([text])[0]
