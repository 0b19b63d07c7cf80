"""LlamaIndex's interfaces over a worker: an embedding, sparse functions and a reranking postprocessor.

from bge_m3_qdrant_client import Client
from bge_m3_qdrant_client.llama_index import BGEM3Vectors

vectors = BGEM3Vectors(Client("http://localhost:8000"))
store = QdrantVectorStore(
    "notes",
    client=qdrant,
    enable_hybrid=True,
    sparse_doc_fn=vectors.sparse_doc_fn,
    sparse_query_fn=vectors.sparse_query_fn,
)
index = VectorStoreIndex.from_vector_store(store, embed_model=vectors.dense)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

try:
    from llama_index.core.base.embeddings.base import BaseEmbedding
    from llama_index.core.bridge.pydantic import ConfigDict, Field, PrivateAttr
    from llama_index.core.instrumentation.events.rerank import ReRankEndEvent, ReRankStartEvent
    from llama_index.core.postprocessor.types import BaseNodePostprocessor
    from llama_index.core.schema import MetadataMode, NodeWithScore, QueryBundle
    from llama_index_instrumentation import get_dispatcher
except ImportError as error:
    raise ImportError(f"{__name__} needs llama-index-core: pip install 'bge-m3-qdrant-client[llama-index]'") from error

from bge_m3_qdrant_client.answers import SparseAnswer
from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.core import TEXTS_PER_REQUEST
from bge_m3_qdrant_client.errors import InvalidOption
from bge_m3_qdrant_client.kept_vectors import KEPT_MAX_BYTES, KeptVectors
from bge_m3_qdrant_client.sync_client import Client
from bge_m3_qdrant_client.text_ranking import Ranking, TextRanking
from bge_m3_qdrant_client.text_vectors import TextVectors

__all__ = ["BGEM3Embedding", "BGEM3Rerank", "BGEM3Vectors"]

MODEL_NAME = "BAAI/bge-m3"
"""The name of the model in LlamaIndex's events. The worker decides which model it serves."""

_dispatcher = get_dispatcher(__name__)


class _InProcess:
    """A component that is not pickled: LlamaIndex would leave its client out, and the copy would fail when it runs."""

    def __getstate__(self) -> dict[Any, Any]:
        raise TypeError(
            f"{type(self).__name__} has connections and stays in its process: make one in each process, and use an "
            "ingestion without num_workers"
        )


class BGEM3Embedding(_InProcess, BaseEmbedding):
    """Dense vectors: texts are embedded as passages, queries as queries.

    Args:
        client: the client of the worker.
        async_client: the client of the async methods; without one they run `client` in a thread.
        kept: where sparse vectors are kept for the sparse functions, as in `BGEM3Vectors`.
        model_name: the name of the model in LlamaIndex's events.
        embed_batch_size: texts of one call.
        **fields: further fields of LlamaIndex's `BaseEmbedding`; others are refused.

    Every method raises `ClientError`. For a text that the model cannot encode the error names its index in the call.
    """

    model_config = ConfigDict(extra="forbid")

    _vectors: TextVectors = PrivateAttr()

    def __init__(
        self,
        client: Client,
        async_client: AsyncClient | None = None,
        *,
        kept: KeptVectors | None = None,
        model_name: str = MODEL_NAME,
        embed_batch_size: int = TEXTS_PER_REQUEST,
        **fields: Any,
    ) -> None:
        super().__init__(model_name=model_name, embed_batch_size=embed_batch_size, **fields)
        self._vectors = TextVectors(client, async_client, kept)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in LlamaIndex's events."""
        return "BGEM3Embedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return self._vectors.dense([query], is_passage=False)[0]

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return (await self._vectors.adense([query], is_passage=False))[0]

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._vectors.dense([text], is_passage=True)[0]

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return (await self._vectors.adense([text], is_passage=True))[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return self._vectors.dense(texts, is_passage=True)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await self._vectors.adense(texts, is_passage=True)


class BGEM3Vectors:
    """An embedding and sparse functions that share requests.

    An index asks first for the dense and then for the sparse vectors of the same texts. The first request computes
    both, and the sparse vectors are kept until the second one, in at most `kept_max_bytes`. So a query that is awaited
    does not wait for a sparse function, which LlamaIndex has no way to await.

    Args:
        client: the client of the worker. The sparse functions use it alone.
        async_client: the client of the async methods; without one they run `client` in a thread.
        kept_max_bytes: maximum bytes of the texts and sparse vectors that are kept.

    Attributes:
        dense: the embedding.
    """

    def __init__(
        self, client: Client, async_client: AsyncClient | None = None, *, kept_max_bytes: int = KEPT_MAX_BYTES
    ) -> None:
        kept = KeptVectors(kept_max_bytes)
        self.dense = BGEM3Embedding(client, async_client, kept=kept)
        self._vectors = TextVectors(client, kept=kept)

    def sparse_doc_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """The indices and the values of the sparse vectors of passages.

        Raises:
            ClientError: the request failed; for a text that the model cannot encode the error names its index.
        """
        return _columns(self._vectors.sparse(texts, is_passage=True))

    def sparse_query_fn(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        """The indices and the values of the sparse vectors of queries.

        Raises:
            ClientError: the request failed; for a text that the model cannot encode the error names its index.
        """
        return _columns(self._vectors.sparse(texts, is_passage=False))


class BGEM3Rerank(_InProcess, BaseNodePostprocessor):
    """A postprocessor that ranks nodes by their relevance to the query, best first.

    A node is ranked by what is embedded of it: its text, and its metadata without `excluded_embed_metadata_keys`. The
    scores of the nodes that are returned are the relevance, from 0 to 1.

    Args:
        client: the client of the worker.
        async_client: the client of the async method; without one it runs `client` in a thread.
        top_n: number of nodes that are returned; None for all.
        weights: the weights of dense, sparse and ColBERT scores; None for those of the worker.
        max_tokens_per_doc: tokens beyond which a node is truncated; None for the worker's limit of passages.

    Every method raises `ClientError`, an `InvalidOption` without a query.
    """

    top_n: int | None = Field(default=None, description="Number of nodes that are returned; None for all.")
    _ranking: TextRanking = PrivateAttr()

    def __init__(
        self,
        client: Client,
        async_client: AsyncClient | None = None,
        *,
        top_n: int | None = None,
        weights: Sequence[float] | None = None,
        max_tokens_per_doc: int | None = None,
    ) -> None:
        super().__init__(top_n=top_n)
        self._ranking = TextRanking(client, async_client, weights=weights, max_tokens_per_doc=max_tokens_per_doc)

    @classmethod
    def class_name(cls) -> str:
        """The name of the class in LlamaIndex's events."""
        return "BGEM3Rerank"

    def _postprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start(nodes, query_bundle)
        return _end(nodes, self._ranking.rank(query, _texts(nodes), self.top_n))

    async def _apostprocess_nodes(
        self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None = None
    ) -> list[NodeWithScore]:
        query = self._start(nodes, query_bundle)
        return _end(nodes, await self._ranking.arank(query, _texts(nodes), self.top_n))

    def _start(self, nodes: list[NodeWithScore], query_bundle: QueryBundle | None) -> str:
        if query_bundle is None:
            raise InvalidOption("a rerank needs a query: give query_str or query_bundle")
        top_n = len(nodes) if self.top_n is None else self.top_n
        _dispatcher.event(ReRankStartEvent(query=query_bundle, nodes=nodes, top_n=top_n, model_name=MODEL_NAME))
        return query_bundle.query_str


def _texts(nodes: list[NodeWithScore]) -> list[str]:
    return [node.node.get_content(metadata_mode=MetadataMode.EMBED) for node in nodes]


def _end(nodes: list[NodeWithScore], ranking: Ranking) -> list[NodeWithScore]:
    ranked = [NodeWithScore(node=nodes[index].node, score=score) for index, score in ranking]
    _dispatcher.event(ReRankEndEvent(nodes=ranked))
    return ranked


def _columns(vectors: Sequence[SparseAnswer]) -> tuple[list[list[int]], list[list[float]]]:
    return [vector.indices.tolist() for vector in vectors], [vector.values.tolist() for vector in vectors]
