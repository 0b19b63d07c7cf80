"""A collection that is written here opens in langchain-qdrant, hybrid, and its documents are found again."""

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
    """The miniature, one call at a time."""

    def __init__(self) -> None:
        self.embedder = Embedder.load(ModelOptions("mini", dtype="float32", device="cpu", token_budget=512))

    def __call__(self, texts: Sequence[str], priority: Priority = Priority.PASSAGE) -> list[Embedding]:
        """All three vectors of each text."""
        found = asyncio.run(self.embedder.embed(texts, Outputs(), max_length=512, priority=priority))
        return [one for one in found if isinstance(one, Embedding)]


class Dense(Embeddings):
    """What LangChain calls embeddings, from the same model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """Dense vectors of passages."""
        return [one.dense.tolist() for one in self._model(texts) if one.dense is not None]

    def embed_query(self, text: str) -> list[float]:
        """The dense vector of a query."""
        return self.embed_documents([text])[0]


class Sparse(SparseEmbeddings):
    """What langchain-qdrant calls sparse embeddings, from the same model."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def embed_documents(self, texts: list[str]) -> list[SparseVector]:
        """Lexical weights of passages."""
        return [
            SparseVector(indices=one.sparse.indices.tolist(), values=one.sparse.values.tolist())
            for one in self._model(texts)
            if one.sparse is not None
        ]

    def embed_query(self, text: str) -> SparseVector:
        """Lexical weights of a query."""
        return self.embed_documents([text])[0]


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """Loaded once."""
    model = Model()
    yield model
    model.embedder.close()


@pytest.fixture(scope="module")
def langchain(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantVectorStore]:
    """LangChain's store, on a collection that our adapter made and our writer filled."""
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
    """Hybrid search gives the document back with its text, the caller's metadata and the caller's id."""
    [document] = langchain.similarity_search(TEXTS[name], k=1)
    assert document.page_content == TEXTS[name]
    assert document.metadata == {
        "topic": TOPICS[name],
        "id": name,
        "_id": str(point_id(name, "notes")),
        "_collection_name": "notes",
    }


def test_langchain_finds_by_a_question_and_filters(langchain: QdrantVectorStore) -> None:
    """A question finds its document first, and the caller's metadata can be filtered by."""
    found = langchain.similarity_search("send only what changed", k=5)
    assert found[0].metadata["id"] == "rsync"
    assert {one.page_content for one in found} == set(TEXTS.values())
    condition = models.FieldCondition(key="metadata.topic", match=models.MatchValue(value="pictures"))
    [picture] = langchain.similarity_search("send only what changed", k=5, filter=models.Filter(must=[condition]))
    assert picture.metadata["id"] == "gimp"
