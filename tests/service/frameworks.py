"""Collections and points as LangChain, LlamaIndex and Haystack make them, by their own classes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from haystack import Document as HaystackDocument
from haystack.dataclasses import SparseEmbedding
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever, QdrantHybridRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_qdrant import QdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import QdrantClient

from embedder import Embedding, Kind, SparseVector
from qdrant_sink import Layout
from tests.sink.langchain_model import Dense, Model, Sparse


@dataclass(frozen=True)
class Found:
    """A text that a framework found, with the caller's `number` in its metadata."""

    text: str
    number: int


@dataclass(frozen=True)
class Address:
    """Where a server listens, in the terms of qdrant-client."""

    client: QdrantClient
    options: dict[str, Any]


class Framework(ABC):
    """A framework's own class of a vector store, over a collection that it creates if that is missing."""

    name: ClassVar[str]
    layout: ClassVar[Layout]
    kinds: ClassVar[tuple[Kind, ...]]
    vector_names: ClassVar[dict[str, str]]
    opens_further_vectors: ClassVar = True
    """Whether the class opens a collection that has vectors of further names."""

    def __init__(self, address: Address, collection: str, model: Model) -> None:
        self.address = address
        self.collection = collection
        self.model = model

    @abstractmethod
    def write(self, texts: Sequence[str]) -> None:
        """Create the collection if it is missing, and write the texts, numbered from 0."""

    @abstractmethod
    def search(self, query: str, limit: int) -> list[Found]:
        """Search with the framework's own retriever."""


class LangChainDense(Framework):
    """langchain-qdrant with dense vectors alone."""

    name = "langchain-dense"
    layout = "langchain"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    vector_names: ClassVar = {"dense": ""}
    mode: ClassVar = RetrievalMode.DENSE

    def write(self, texts: Sequence[str]) -> None:
        """See `Framework.write`."""
        self._store().add_texts(list(texts), [{"number": number} for number in range(len(texts))])

    def search(self, query: str, limit: int) -> list[Found]:
        """See `Framework.search`."""
        documents = self._store().similarity_search(query, k=limit)
        return [Found(document.page_content, document.metadata["number"]) for document in documents]

    def _store(self) -> LangChainStore:
        return LangChainStore.construct_instance(
            embedding=Dense(self.model),
            sparse_embedding=Sparse(self.model),
            retrieval_mode=self.mode,
            client_options=self.address.options,
            collection_name=self.collection,
        )


class LangChainHybrid(LangChainDense):
    """langchain-qdrant with dense and sparse vectors."""

    name = "langchain-hybrid"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "sparse")
    vector_names: ClassVar = {"dense": "", "sparse": "langchain-sparse"}
    mode: ClassVar = RetrievalMode.HYBRID


class LlamaIndexDense(Framework):
    """llama-index-vector-stores-qdrant with dense vectors alone."""

    name = "llamaindex-dense"
    layout = "llamaindex"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    vector_names: ClassVar = {"dense": ""}
    hybrid: ClassVar = False

    def write(self, texts: Sequence[str]) -> None:
        """See `Framework.write`."""
        nodes = [
            TextNode(
                text=text,
                metadata={"number": number},
                excluded_embed_metadata_keys=["number"],
                embedding=dense_of(embedding),
            )
            for number, (text, embedding) in enumerate(zip(texts, self.model(texts), strict=True))
        ]
        self._store().add(list(nodes))

    def search(self, query: str, limit: int) -> list[Found]:
        """See `Framework.search`."""
        [embedding] = self.model([query])
        mode = VectorStoreQueryMode.HYBRID if self.hybrid else VectorStoreQueryMode.DEFAULT
        asked = VectorStoreQuery(
            query_embedding=dense_of(embedding), query_str=query, mode=mode, similarity_top_k=limit, sparse_top_k=limit
        )
        nodes = self._store().query(asked).nodes or []
        return [Found(node.get_content(), node.metadata["number"]) for node in nodes]

    def _store(self) -> LlamaIndexStore:
        if not self.hybrid:
            return LlamaIndexStore(self.collection, client=self.address.client)
        return LlamaIndexStore(
            self.collection,
            client=self.address.client,
            enable_hybrid=True,
            sparse_doc_fn=self._sparse,
            sparse_query_fn=self._sparse,
        )

    def _sparse(self, texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        vectors = [sparse_of(embedding) for embedding in self.model(texts)]
        return [vector.indices.tolist() for vector in vectors], [vector.values.tolist() for vector in vectors]


class LlamaIndexHybrid(LlamaIndexDense):
    """llama-index-vector-stores-qdrant with dense and sparse vectors."""

    name = "llamaindex-hybrid"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "sparse")
    vector_names: ClassVar = {"dense": "text-dense", "sparse": "text-sparse-new"}
    hybrid: ClassVar = True


class HaystackDense(Framework):
    """qdrant-haystack with dense vectors alone."""

    name = "haystack-dense"
    layout = "haystack"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense",)
    vector_names: ClassVar = {"dense": ""}
    hybrid: ClassVar = False
    opens_further_vectors: ClassVar = False

    def write(self, texts: Sequence[str]) -> None:
        """See `Framework.write`."""
        documents = [
            HaystackDocument(
                content=text,
                meta={"number": number},
                embedding=dense_of(embedding),
                sparse_embedding=self._sparse(embedding) if self.hybrid else None,
            )
            for number, (text, embedding) in enumerate(zip(texts, self.model(texts), strict=True))
        ]
        self._store().write_documents(documents)

    def search(self, query: str, limit: int) -> list[Found]:
        """See `Framework.search`."""
        [embedding] = self.model([query])
        if self.hybrid:
            answer = QdrantHybridRetriever(self._store(), top_k=limit).run(
                query_embedding=dense_of(embedding), query_sparse_embedding=self._sparse(embedding)
            )
        else:
            answer = QdrantEmbeddingRetriever(self._store(), top_k=limit).run(query_embedding=dense_of(embedding))
        return [Found(document.content or "", document.meta["number"]) for document in answer["documents"]]

    def _sparse(self, embedding: Embedding) -> SparseEmbedding:
        vector = sparse_of(embedding)
        return SparseEmbedding(vector.indices.tolist(), vector.values.tolist())

    def _store(self) -> QdrantDocumentStore:
        options = dict(self.address.options)
        return QdrantDocumentStore(
            host=options.pop("host"),
            port=options.pop("port"),
            grpc_port=options.pop("grpc_port"),
            prefer_grpc=options.pop("prefer_grpc"),
            client_kwargs=options,
            index=self.collection,
            embedding_dim=self.model.embedder.hidden_size,
            use_sparse_embeddings=self.hybrid,
            progress_bar=False,
        )


class HaystackHybrid(HaystackDense):
    """qdrant-haystack with dense and sparse vectors."""

    name = "haystack-hybrid"
    kinds: ClassVar[tuple[Kind, ...]] = ("dense", "sparse")
    vector_names: ClassVar = {"dense": "text-dense", "sparse": "text-sparse"}
    hybrid: ClassVar = True
    opens_further_vectors: ClassVar = True


FRAMEWORKS: Final[tuple[type[Framework], ...]] = (
    LangChainDense,
    LangChainHybrid,
    LlamaIndexDense,
    LlamaIndexHybrid,
    HaystackDense,
    HaystackHybrid,
)
"""The classes of the frameworks, each as it is used by default."""


def dense_of(embedding: Embedding) -> list[float]:
    """The dense vector of an embedding."""
    assert embedding.dense is not None
    numbers: list[float] = embedding.dense.tolist()
    return numbers


def sparse_of(embedding: Embedding) -> SparseVector:
    """The sparse vector of an embedding."""
    assert embedding.sparse is not None
    return embedding.sparse
