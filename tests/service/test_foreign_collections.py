"""The model of a collection that LangChain made is checked before a worker without a config reads or extends it."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import QdrantClient, models

import corpus
from embedder import Embedder
from qdrant_sink import Store
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client
from tests.sink.grpc_double import GrpcDouble
from tests.sink.langchain_model import Dense, Model, Sparse
from tests.sink.stores import real_server

TEXTS = [passage.text for passage in corpus.passages()[:40]]
QUERIES = [question.query for question in corpus.questions()[:10]]
ADDED = "A fox that nobody had written about before."


@dataclass(frozen=True)
class Foreign:
    """A collection on a server that a client of another library reaches, and the worker's store for it."""

    client: QdrantClient
    store: Store
    collection: str
    embedder: Embedder

    def worker(self, **config: object) -> Client:
        """A worker with this collection config."""
        settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps(config)})
        return Client(Operations(settings, self.embedder, self.store))


@pytest.fixture(params=["double", pytest.param("server", marks=pytest.mark.server)])
def foreign(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Foreign]:
    """A collection that does not exist yet, on the double or on a real server."""
    name = f"test_{uuid.uuid4().hex}"
    if request.param == "double":
        double = GrpcDouble(tmp_path)
        client = QdrantClient(host="127.0.0.1", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)
        store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
        request.addfinalizer(double.stop)  # noqa: PT021 - only one of the two servers needs it
    else:
        url, key = real_server()
        port = int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
        client = QdrantClient(url, api_key=key, grpc_port=port, prefer_grpc=True, check_compatibility=False)
        store = ServerStore(url, key, grpc_port=port)
    yield Foreign(client, store, name, embedder)
    if request.param == "server":
        client.delete_collection(name)
    store.close()
    client.close()


def langchain_store(foreign: Foreign, dense_model: Embedder) -> QdrantVectorStore:
    """LangChain's store over a new hybrid collection, with dense vectors of a model and the worker's sparse ones."""
    opened = QdrantVectorStore(
        foreign.client,
        foreign.collection,
        embedding=Dense(Model(dense_model)),
        sparse_embedding=Sparse(Model(foreign.embedder)),
        retrieval_mode=RetrievalMode.HYBRID,
        validate_collection_config=False,
    )
    foreign.client.create_collection(  # as `QdrantVectorStore.from_texts` does, whose client has no port for gRPC
        foreign.collection,
        vectors_config={
            opened.vector_name: models.VectorParams(size=foreign.embedder.hidden_size, distance=models.Distance.COSINE)
        },
        sparse_vectors_config={opened.sparse_vector_name: models.SparseVectorParams()},
    )
    return opened


def test_a_collection_of_langchain_with_another_model(foreign: Foreign, other: Embedder) -> None:
    """Its unnamed dense vectors are compared: searches warn, also by example, and an ingest needs other kinds."""
    ids = langchain_store(foreign, other).add_texts(TEXTS)
    worker = foreign.worker()
    search = {"operation": "search", "collection": foreign.collection, "queries": QUERIES}
    like = {"operation": "search", "collection": foreign.collection, "like": {"positive": ids[:1]}}
    for raw in (search, {**search, "using": ["dense"]}, like):
        assert [warning["details"]["kind"] for warning in worker.good(raw)["warnings"]] == ["dense"]
    for raw in ({**search, "using": ["sparse"]}, {**like, "using": ["sparse"]}):
        assert "warnings" not in worker.good(raw)
    job = {"texts": [ADDED], "isPassage": True, "qdrant": {"collection": foreign.collection}}
    details = worker.error(job, "schema_mismatch")["details"]
    assert [(part["kind"], part["cosine"] < 0.98) for part in details["vectors"]] == [("dense", True)]
    assert worker.good({**job, "vectors": ["sparse"]})["upsert"]["stored"] == 1


def test_a_collection_of_langchain_with_the_right_model(foreign: Foreign) -> None:
    """The texts under LangChain's key match both vectors under LangChain's names: nothing warns or is refused."""
    ids = langchain_store(foreign, foreign.embedder).add_texts(TEXTS)
    worker = foreign.worker()
    search = {"operation": "search", "collection": foreign.collection}
    for raw in ({**search, "queries": QUERIES}, {**search, "like": {"positive": ids[:1]}}):
        assert "warnings" not in worker.good(raw)
    job = {"texts": [ADDED], "isPassage": True, "qdrant": {"collection": foreign.collection}}
    assert worker.good(job)["upsert"]["stored"] == 1
