"""The classes of LangChain, LlamaIndex and Haystack open a new collection of their layout without further options."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from haystack.dataclasses import SparseEmbedding
from haystack_integrations.components.retrievers.qdrant import QdrantEmbeddingRetriever, QdrantHybridRetriever
from haystack_integrations.document_stores.qdrant import QdrantDocumentStore
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore as LangChainStore
from langchain_qdrant import RetrievalMode, SparseEmbeddings, SparseVector
from llama_index.core.vector_stores.types import VectorStoreQuery, VectorStoreQueryMode
from llama_index.vector_stores.qdrant import QdrantVectorStore as LlamaIndexStore
from qdrant_client import QdrantClient

from embedder.vectors import Kind
from qdrant_sink.conformance import Refusal
from qdrant_sink.payload_layouts import laid_out
from qdrant_sink.points import Draft, Vectors, point_id
from qdrant_sink.schema import CollectionSchema, Layout, VectorNames, default_names
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import COLBERT, DENSE, SIZE, SPARSE, sample_vectors
from tests.sink.writing import write

TEXTS = ("rsync copies changed parts.", "An editor for images.", "A scanner of networks.")
ALL: tuple[Kind, ...] = ("dense", "sparse", "colbert")
HYBRID: tuple[Kind, ...] = ("dense", "sparse")
ALONE: tuple[Kind, ...] = ("dense",)


@dataclass(frozen=True)
class Opened:
    """A collection of the sink on a server, and how a framework reaches it.

    Attributes:
        port: port of gRPC.
        client: client of the server.
        is_hybrid: whether the collection has sparse vectors.
    """

    port: int
    client: QdrantClient
    is_hybrid: bool


class _Dense(Embeddings):
    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return [_dense(sample_vectors(_number(text))) for text in texts]

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


class _Sparse(SparseEmbeddings):
    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        vectors = [_weights(sample_vectors(_number(text))) for text in texts]
        return [SparseVector(indices=indices, values=values) for indices, values in vectors]

    def embed_query(self, text: str) -> SparseVector:
        return self.embed_documents([text])[0]


def _number(text: str) -> int:
    return TEXTS.index(text) if text in TEXTS else len(TEXTS)


def _dense(vectors: Vectors) -> list[float]:
    assert vectors.dense is not None
    numbers: list[float] = vectors.dense.tolist()
    return numbers


def _weights(vectors: Vectors) -> tuple[list[int], list[float]]:
    assert vectors.sparse is not None
    return vectors.sparse.indices.tolist(), vectors.sparse.values.tolist()


def _langchain(opened: Opened, text: str) -> str:
    store = LangChainStore(
        opened.client,
        "notes",
        embedding=_Dense(),
        sparse_embedding=_Sparse(),
        retrieval_mode=RetrievalMode.HYBRID if opened.is_hybrid else RetrievalMode.DENSE,
    )
    [document] = store.similarity_search(text, k=1)
    return document.page_content


def _llamaindex(opened: Opened, text: str) -> str:
    def weights(texts: list[str]) -> tuple[list[list[int]], list[list[float]]]:
        parts = [_weights(sample_vectors(_number(text))) for text in texts]
        return [indices for indices, _ in parts], [values for _, values in parts]

    hybrid: dict[str, Any] = {"enable_hybrid": True, "sparse_doc_fn": weights, "sparse_query_fn": weights}
    store = LlamaIndexStore("notes", client=opened.client, **(hybrid if opened.is_hybrid else {}))
    query = VectorStoreQuery(
        query_embedding=_dense(sample_vectors(_number(text))),
        query_str=text,
        mode=VectorStoreQueryMode.HYBRID if opened.is_hybrid else VectorStoreQueryMode.DEFAULT,
        similarity_top_k=1,
        sparse_top_k=1,
    )
    [node] = store.query(query).nodes or []
    return node.get_content()


def _haystack(opened: Opened, text: str) -> str:
    store = QdrantDocumentStore(
        host="127.0.0.1",
        grpc_port=opened.port,
        prefer_grpc=True,
        client_kwargs={"check_compatibility": False},
        index="notes",
        embedding_dim=SIZE,
        use_sparse_embeddings=opened.is_hybrid,
    )
    query = sample_vectors(_number(text))
    if opened.is_hybrid:
        answer = QdrantHybridRetriever(store, top_k=1).run(
            query_embedding=_dense(query), query_sparse_embedding=SparseEmbedding(*_weights(query))
        )
    else:
        answer = QdrantEmbeddingRetriever(store, top_k=1).run(query_embedding=_dense(query))
    [document] = answer["documents"]
    assert document.content is not None
    return document.content


FRAMEWORKS: dict[Layout, Callable[[Opened, str], str]] = {
    "langchain": _langchain,
    "llamaindex": _llamaindex,
    "haystack": _haystack,
}


def _fill(store: ServerStore, layout: Layout, kinds: Sequence[Kind]) -> None:
    schema = CollectionSchema(
        DENSE,
        SPARSE if "sparse" in kinds else None,
        COLBERT if "colbert" in kinds else None,
        names=default_names(layout, kinds),
        layout=layout,
    )
    store.ensure("notes", schema)
    drafts = []
    for number, text in enumerate(TEXTS):
        identity = point_id(number, "notes")
        payload = laid_out(layout, text=text, text_key="text", payload={}, written={}, point_id=str(identity))
        assert not isinstance(payload, Refusal)
        drafts.append(Draft(number, identity, payload, sample_vectors(number, kinds=kinds)))
    assert write(store, "notes", drafts, schema).stored == len(TEXTS)


@pytest.mark.parametrize(
    ("layout", "kinds"),
    [
        *((layout, kinds) for layout in FRAMEWORKS for kinds in (ALL, HYBRID, ALONE)),
        ("langchain", ("dense", "colbert")),
        ("llamaindex", ("dense", "colbert")),
    ],
)
def test_a_framework_opens_a_new_collection_of_its_layout(
    server_store: ServerStore, double: GrpcDouble, layout: Layout, kinds: tuple[Kind, ...]
) -> None:
    """The framework's class needs neither names nor keys to find each text by its vectors."""
    _fill(server_store, layout, kinds)
    client = QdrantClient(host="127.0.0.1", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)
    try:
        opened = Opened(double.port, client, "sparse" in kinds)
        assert [FRAMEWORKS[layout](opened, text) for text in TEXTS] == list(TEXTS)
    finally:
        client.close()


def test_the_plain_layout_keeps_its_names() -> None:
    """Names depend on the layout alone, except for Haystack's dense vector without any other vector."""
    assert default_names("plain", ALONE) == default_names("plain", ALL) == VectorNames("dense", "sparse", "colbert")
    assert default_names("haystack", ("dense", "colbert")).dense == "text-dense"
