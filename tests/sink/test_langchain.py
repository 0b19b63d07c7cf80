"""langchain-qdrant opens a collection of the sink and finds its documents with hybrid search."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence

import pytest
from langchain_core.embeddings import Embeddings
from langchain_qdrant import QdrantVectorStore, RetrievalMode, SparseEmbeddings, SparseVector
from qdrant_client import QdrantClient, models

from embedder import Priority
from embedder.embedder import Embedder, ModelOptions
from embedder.vectors import Embedding, Outputs
from qdrant_sink.conformance import Refusal
from qdrant_sink.payload_layouts import laid_out
from qdrant_sink.points import Draft, Vectors, point_id
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import schema_for
from tests.sink.writing import write

TEXTS = {
    "rsync": "rsync copies only the changed parts of files to another machine.",
    "photorec": "PhotoRec recovers deleted files from memory cards.",
    "gimp": "An editor for photographs and other images, with layers and filters.",
    "nmap": "A scanner that finds the open ports of hosts in a network.",
    "latex": "A system for typesetting documents with mathematical formulas.",
}
TOPICS = {"rsync": "backup", "photorec": "backup", "gimp": "pictures", "nmap": "network", "latex": "writing"}


class Model:
    """The mini model, for one call at a time."""

    def __init__(self) -> None:
        self.embedder = Embedder.load(ModelOptions("mini", dtype="float32", device="cpu", token_budget=512))

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


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The model, loaded once per module."""
    model = Model()
    yield model
    model.embedder.close()


@pytest.fixture(scope="module")
def langchain(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantVectorStore]:
    """LangChain's store for a collection that the sink created and filled."""
    double = GrpcDouble(tmp_path_factory.mktemp("double"))
    server_store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    schema = schema_for(model.embedder.hidden_size, model.embedder.colbert_size)
    drafts = []
    for index, (name, embedding) in enumerate(zip(TEXTS, model(list(TEXTS.values())), strict=True)):
        identity = point_id(name, "notes")
        payload = laid_out(
            "langchain",
            text=TEXTS[name],
            text_key="text",
            payload={"topic": TOPICS[name]},
            written={"id": name},
            point_id=str(identity),
        )
        assert not isinstance(payload, Refusal)
        drafts.append(Draft(index, identity, payload, Vectors.of(embedding)))
    server_store.ensure("notes", schema)
    assert write(server_store, "notes", drafts, schema).stored == len(TEXTS)
    client = QdrantClient(host="127.0.0.1", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)
    yield QdrantVectorStore(
        client,
        "notes",
        embedding=Dense(model),
        sparse_embedding=Sparse(model),
        retrieval_mode=RetrievalMode.HYBRID,
        vector_name="dense",
        sparse_vector_name="sparse",
    )
    client.close()
    server_store.close()
    double.stop()


@pytest.mark.parametrize("name", TEXTS)
def test_langchain_finds_every_document_by_its_text(langchain: QdrantVectorStore, name: str) -> None:
    """Hybrid search returns the document with its text and the caller's metadata and id."""
    [document] = langchain.similarity_search(TEXTS[name], k=1)
    assert document.page_content == TEXTS[name]
    assert document.metadata == {
        "topic": TOPICS[name],
        "id": name,
        "_id": str(point_id(name, "notes")),
        "_collection_name": "notes",
    }


def test_langchain_finds_by_a_question_and_filters(langchain: QdrantVectorStore) -> None:
    """A question returns its document first, and filters apply to the caller's metadata."""
    documents = langchain.similarity_search("send only what changed", k=5)
    assert documents[0].metadata["id"] == "rsync"
    assert {document.page_content for document in documents} == set(TEXTS.values())
    condition = models.FieldCondition(key="metadata.topic", match=models.MatchValue(value="pictures"))
    [picture] = langchain.similarity_search("send only what changed", k=5, filter=models.Filter(must=[condition]))
    assert picture.metadata["id"] == "gimp"
