"""The client's adapters in LangChain, LlamaIndex and Haystack, with the vector stores of these frameworks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Final, NamedTuple

from bge_m3_qdrant_client import Client
from bge_m3_qdrant_client import haystack as haystack_adapters
from bge_m3_qdrant_client import langchain as langchain_adapters
from bge_m3_qdrant_client import llama_index as llama_index_adapters
from haystack import Document as HaystackDocument
from haystack_integrations.components.retrievers.qdrant import QdrantHybridRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.documents import Document as LangChainDocument
from langchain_qdrant import QdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode
from llama_index.core import VectorStoreIndex
from llama_index.core.schema import NodeWithScore, TextNode
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import models

from qdrant_sink import Layout, PointId
from tests.service.frameworks import Address
from tests.sink.samples import ranked, rrf

Scores = Mapping[PointId, float]


class Scored(NamedTuple):
    """A text that a framework found, with the `number` in its metadata and its score."""

    text: str
    number: int
    score: float


class Adapted(ABC):
    """A framework with dense and sparse vectors of the adapters.

    Args:
        address: where Qdrant listens.
        collection: the collection, which the framework creates if it is missing.
        url: the address of the worker.
        dimensions: size of a dense vector.
    """

    name: ClassVar[str]
    layout: ClassVar[Layout]
    number_key: ClassVar[str]
    """The path of the metadata's `number` in payloads."""
    writes: ClassVar[int]
    """Requests of `write` for one batch, one for the size of a vector included where the framework needs it."""

    def __init__(self, address: Address, collection: str, url: str, dimensions: int) -> None:
        self.address = address
        self.collection = collection
        self.url = url
        self.dimensions = dimensions
        self.client = Client(url)

    def close(self) -> None:
        """Close the connections to the worker."""
        self.client.close()

    @abstractmethod
    def write(self, texts: Sequence[str]) -> None:
        """Store the texts, numbered from 0."""

    @abstractmethod
    def search(self, query: str, limit: int, below: int | None = None) -> list[Scored]:
        """Search with both kinds of vectors for texts, or for those with a smaller number."""

    @abstractmethod
    def rerank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> list[Scored]:
        """Rank the texts, numbered from 0."""

    def fused(self, branches: Sequence[Scores], limit: int) -> Scores:
        """The scores of a search by those of its branches: Qdrant's fusion by reciprocal ranks."""
        return rrf([ranked(branch, limit) for branch in branches], 1, (1.0,) * len(branches))


class LangChain(Adapted):
    """langchain-qdrant in its hybrid mode."""

    name = "langchain"
    layout = "langchain"
    number_key = "metadata.number"
    writes = 2

    def write(self, texts: Sequence[str]) -> None:
        """See `Adapted.write`."""
        self._store().add_texts(list(texts), [{"number": number} for number in range(len(texts))])

    def search(self, query: str, limit: int, below: int | None = None) -> list[Scored]:
        """See `Adapted.search`."""
        condition = models.FieldCondition(key="metadata.number", range=models.Range(lt=below))
        where = None if below is None else models.Filter(must=[condition])
        documents = self._store().similarity_search_with_score(query, k=limit, filter=where)
        return [Scored(document.page_content, document.metadata["number"], score) for document, score in documents]

    def rerank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> list[Scored]:
        """See `Adapted.rerank`."""
        documents = [
            LangChainDocument(page_content=text, metadata={"number": number}) for number, text in enumerate(texts)
        ]
        compressor = langchain_adapters.BGEM3Rerank(client=self.client, top_n=top_n)
        assert all("relevance_score" not in document.metadata for document in documents)
        return [
            Scored(document.page_content, document.metadata["number"], document.metadata["relevance_score"])
            for document in compressor.compress_documents(documents, query)
        ]

    def _store(self) -> LangChainStore:
        vectors = langchain_adapters.BGEM3Vectors(self.client)
        return LangChainStore.construct_instance(
            embedding=vectors.dense,
            sparse_embedding=vectors.sparse,
            retrieval_mode=RetrievalMode.HYBRID,
            client_options=self.address.options,
            collection_name=self.collection,
        )


class LlamaIndex(Adapted):
    """llama-index-vector-stores-qdrant with its hybrid mode, under an index."""

    name = "llamaindex"
    layout = "llamaindex"
    number_key = "number"
    writes = 1

    def write(self, texts: Sequence[str]) -> None:
        """See `Adapted.write`."""
        self._index().insert_nodes(self._nodes(texts))

    def search(self, query: str, limit: int, below: int | None = None) -> list[Scored]:
        """See `Adapted.search`."""
        condition = MetadataFilter(key="number", operator=FilterOperator.LT, value=below or 0)
        retriever = self._index().as_retriever(
            vector_store_query_mode="hybrid",
            similarity_top_k=limit,
            sparse_top_k=limit,
            filters=None if below is None else MetadataFilters(filters=[condition]),
        )
        nodes = retriever.retrieve(query)
        return [Scored(node.get_content(), node.metadata["number"], node.score or 0.0) for node in nodes]

    def rerank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> list[Scored]:
        """See `Adapted.rerank`."""
        nodes = [NodeWithScore(node=node, score=0.5) for node in self._nodes(texts)]
        reranked = llama_index_adapters.BGEM3Rerank(self.client, top_n=top_n).postprocess_nodes(nodes, query_str=query)
        assert all(node.score == 0.5 for node in nodes)
        return [Scored(node.get_content(), node.metadata["number"], node.score or 0.0) for node in reranked]

    def fused(self, branches: Sequence[Scores], limit: int) -> Scores:
        """See `Adapted.fused`; LlamaIndex adds the scores, scaled from 0 to 1, with equal weights."""
        fused: dict[PointId, float] = {}
        for branch in branches:
            best = ranked(branch, limit)
            low, high = branch[best[-1]], branch[best[0]]
            for number in best:
                scaled = (branch[number] - low) / (high - low) if high > low else high
                fused[number] = fused.get(number, 0.0) + scaled / 2
        return fused

    def _nodes(self, texts: Sequence[str]) -> list[TextNode]:
        excluded = ["number"]
        return [
            TextNode(text=text, metadata={"number": number}, excluded_embed_metadata_keys=excluded)
            for number, text in enumerate(texts)
        ]

    def _index(self) -> VectorStoreIndex:
        vectors = llama_index_adapters.BGEM3Vectors(self.client)
        store = LlamaIndexStore(
            self.collection,
            client=self.address.client,
            enable_hybrid=True,
            sparse_doc_fn=vectors.sparse_doc_fn,
            sparse_query_fn=vectors.sparse_query_fn,
        )
        return VectorStoreIndex.from_vector_store(store, embed_model=vectors.dense)


class Haystack(Adapted):
    """qdrant-haystack with sparse embeddings."""

    name = "haystack"
    layout = "haystack"
    number_key = "meta.number"
    writes = 1

    def __init__(self, address: Address, collection: str, url: str, dimensions: int) -> None:
        super().__init__(address, collection, url, dimensions)
        self.documents = haystack_adapters.BGEM3DocumentEmbedder(url=url, api_key=None)
        self.query = haystack_adapters.BGEM3TextEmbedder(url=url, api_key=None)
        self.ranker = haystack_adapters.BGEM3Ranker(url=url, api_key=None)

    def close(self) -> None:
        """See `Adapted.close`."""
        super().close()
        for component in (self.documents, self.query, self.ranker):
            component.close()

    def write(self, texts: Sequence[str]) -> None:
        """See `Adapted.write`."""
        self._store().write_documents(self.documents.run(self._documents(texts))["documents"])

    def search(self, query: str, limit: int, below: int | None = None) -> list[Scored]:
        """See `Adapted.search`."""
        where = None if below is None else {"field": "meta.number", "operator": "<", "value": below}
        vectors = self.query.run(query)
        answer = QdrantHybridRetriever(self._store(), top_k=limit, filters=where).run(
            query_embedding=vectors["embedding"], query_sparse_embedding=vectors["sparse_embedding"]
        )
        return _scored(answer["documents"])

    def rerank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> list[Scored]:
        """See `Adapted.rerank`."""
        return _scored(self.ranker.run(query, self._documents(texts), top_k=top_n)["documents"])

    def fused(self, branches: Sequence[Scores], limit: int) -> Scores:
        """See `Adapted.fused`; Haystack sets no limit of branches, and Qdrant's default is 10."""
        return super().fused(branches, 10)

    def _documents(self, texts: Sequence[str]) -> list[HaystackDocument]:
        return [HaystackDocument(content=text, meta={"number": number}) for number, text in enumerate(texts)]

    def _store(self) -> QdrantDocumentStore:
        options: dict[str, Any] = dict(self.address.options)
        return QdrantDocumentStore(
            host=options.pop("host"),
            port=options.pop("port"),
            grpc_port=options.pop("grpc_port"),
            prefer_grpc=options.pop("prefer_grpc"),
            client_kwargs=options,
            index=self.collection,
            embedding_dim=self.dimensions,
            use_sparse_embeddings=True,
            progress_bar=False,
        )


ADAPTED: Final[tuple[type[Adapted], ...]] = (LangChain, LlamaIndex, Haystack)
"""The frameworks that the client has adapters for."""


def _scored(documents: Sequence[HaystackDocument]) -> list[Scored]:
    return [Scored(document.content or "", document.meta["number"], document.score or 0.0) for document in documents]
