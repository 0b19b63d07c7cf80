"""langchain-qdrant opens a collection of the sink and finds its documents with hybrid search."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import QdrantClient, models

from embedder.embedder import Embedder, ModelOptions
from embedder.vectors import KINDS
from qdrant_sink.conformance import Refusal
from qdrant_sink.payload_layouts import laid_out
from qdrant_sink.points import Draft, Vectors, point_id
from qdrant_sink.schema import default_names
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.langchain_model import Dense, Model, Sparse
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


@pytest.fixture(scope="module")
def model() -> Iterator[Model]:
    """The model, loaded once per module."""
    model = Model(Embedder.load(ModelOptions("mini", dtype="float32", device="cpu", token_budget=512)))
    yield model
    model.embedder.close()


@pytest.fixture(scope="module")
def langchain(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Iterator[QdrantVectorStore]:
    """LangChain's store for a collection that the sink created and filled."""
    double = GrpcDouble(tmp_path_factory.mktemp("double"))
    server_store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    schema = replace(
        schema_for(model.embedder.hidden_size, model.embedder.colbert_size), names=default_names("langchain", KINDS)
    )
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
