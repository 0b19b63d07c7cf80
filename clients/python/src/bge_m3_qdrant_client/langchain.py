"""LangChain's interfaces over a worker: embeddings, sparse embeddings and a reranking compressor.

from bge_m3_qdrant_client import Client
from bge_m3_qdrant_client.langchain import BGEM3Vectors

vectors = BGEM3Vectors(Client("http://localhost:8000"))
store = QdrantVectorStore(
    qdrant, "notes", embedding=vectors.dense, sparse_embedding=vectors.sparse, retrieval_mode=RetrievalMode.HYBRID
)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict

try:
    from langchain_core.callbacks import Callbacks
    from langchain_core.documents import BaseDocumentCompressor, Document
    from langchain_core.embeddings import Embeddings
    from langchain_qdrant import SparseEmbeddings, SparseVector
except ImportError as error:
    raise ImportError(
        f"{__name__} needs langchain-core and langchain-qdrant: pip install 'bge-m3-qdrant-client[langchain]'"
    ) from error

from bge_m3_qdrant_client.answers import SparseAnswer
from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.kept_vectors import KEPT_MAX_BYTES, KeptVectors
from bge_m3_qdrant_client.sync_client import Client
from bge_m3_qdrant_client.text_ranking import Ranking, TextRanking
from bge_m3_qdrant_client.text_vectors import TextVectors

__all__ = ["BGEM3Embeddings", "BGEM3Rerank", "BGEM3SparseEmbeddings", "BGEM3Vectors"]


class BGEM3Embeddings(Embeddings):
    """Dense vectors: documents are embedded as passages, queries as queries.

    Args:
        client: the client of the worker.
        async_client: the client of the async methods; without one they run `client` in a thread.
        kept: where sparse vectors are kept for `BGEM3SparseEmbeddings` with the same object, as in `BGEM3Vectors`.

    Every method raises `ClientError`. For a text that the model cannot encode the error names its index.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, *, kept: KeptVectors | None = None
    ) -> None:
        self._vectors = TextVectors(client, async_client, kept)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The dense vectors of passages."""
        return self._vectors.dense(texts, is_passage=True)

    def embed_query(self, text: str) -> list[float]:
        """The dense vector of a query."""
        return self._vectors.dense([text], is_passage=False)[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        """See `embed_documents`."""
        return await self._vectors.adense(texts, is_passage=True)

    async def aembed_query(self, text: str) -> list[float]:
        """See `embed_query`."""
        return (await self._vectors.adense([text], is_passage=False))[0]


class BGEM3SparseEmbeddings(SparseEmbeddings):
    """Sparse vectors (lexical weights): documents are embedded as passages, queries as queries.

    Args:
        client: the client of the worker.
        async_client: the client of the async methods; without one they run `client` in a thread.
        kept: where `BGEM3Embeddings` with the same object keeps sparse vectors, as in `BGEM3Vectors`.

    Every method raises `ClientError`. For a text that the model cannot encode the error names its index.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, *, kept: KeptVectors | None = None
    ) -> None:
        self._vectors = TextVectors(client, async_client, kept)

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """The sparse vectors of passages."""
        return [_sparse(vector) for vector in self._vectors.sparse(texts, is_passage=True)]

    def embed_query(self, text: str) -> SparseVector:
        """The sparse vector of a query."""
        return _sparse(self._vectors.sparse([text], is_passage=False)[0])

    async def aembed_documents(self, texts: list[str]) -> list[SparseVector]:
        """See `embed_documents`."""
        return [_sparse(vector) for vector in await self._vectors.asparse(texts, is_passage=True)]

    async def aembed_query(self, text: str) -> SparseVector:
        """See `embed_query`."""
        return _sparse((await self._vectors.asparse([text], is_passage=False))[0])


class BGEM3Vectors:
    """Dense and sparse embeddings that share requests.

    A store asks first for the dense and then for the sparse vectors of the same texts. The first request computes both,
    and the sparse vectors are kept until the second one, in at most `kept_max_bytes`.

    Args:
        client: the client of the worker.
        async_client: the client of the async methods; without one they run `client` in a thread.
        kept_max_bytes: maximum bytes of the texts and sparse vectors that are kept.

    Attributes:
        dense: the dense embeddings.
        sparse: the sparse embeddings.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, *, kept_max_bytes: int = KEPT_MAX_BYTES
    ) -> None:
        kept = KeptVectors(kept_max_bytes)
        self.dense = BGEM3Embeddings(client, async_client, kept=kept)
        self.sparse = BGEM3SparseEmbeddings(client, async_client, kept=kept)


class BGEM3Rerank(BaseDocumentCompressor):
    """A compressor that ranks documents by their relevance to the query, best first.

    The documents that it returns are copies with the relevance, from 0 to 1, as `relevance_score` in their metadata.
    Every method raises `ClientError`.

    Attributes:
        client: the client of the worker.
        async_client: the client of the async method; without one it runs `client` in a thread.
        top_n: number of documents that are returned; None for all.
        weights: the weights of dense, sparse and ColBERT scores; None for those of the worker.
        max_tokens_per_doc: tokens beyond which a document is truncated; None for the worker's limit of passages.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True, extra="forbid")

    client: Client
    async_client: AsyncClient | None = None
    top_n: int | None = None
    weights: Sequence[float] | None = None
    max_tokens_per_doc: int | None = None

    def compress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """Rank the documents; the callbacks are those of LangChain, and are not called."""
        del callbacks
        return _ranked(documents, self._ranking().rank(query, _texts(documents), self.top_n))

    async def acompress_documents(
        self, documents: Sequence[Document], query: str, callbacks: Callbacks | None = None
    ) -> Sequence[Document]:
        """See `compress_documents`."""
        del callbacks
        return _ranked(documents, await self._ranking().arank(query, _texts(documents), self.top_n))

    def _ranking(self) -> TextRanking:
        return TextRanking(
            self.client, self.async_client, weights=self.weights, max_tokens_per_doc=self.max_tokens_per_doc
        )


def _sparse(vector: SparseAnswer) -> SparseVector:
    return SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


def _texts(documents: Sequence[Document]) -> list[str]:
    return [document.page_content for document in documents]


def _ranked(documents: Sequence[Document], ranking: Ranking) -> list[Document]:
    ranked = []
    for index, score in ranking:
        metadata: dict[str, Any] = {**documents[index].metadata, "relevance_score": score}
        ranked.append(documents[index].model_copy(update={"metadata": metadata}))
    return ranked
