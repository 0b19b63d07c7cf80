"""A collection that LangChain made: a worker without a config searches it, adds points, and checks its model."""

from __future__ import annotations

import asyncio
import json
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from langchain_qdrant import QdrantVectorStore, RetrievalMode
from qdrant_client import QdrantClient, models

import corpus
from embedder import Embedder, Embedding, Outputs, Priority
from qdrant_sink import PointId, Store
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.sink.grpc_double import GrpcDouble
from tests.sink.langchain_model import Dense, Model, Sparse
from tests.sink.samples import ranked, rrf
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

    def embedded(self, texts: list[str], priority: Priority = Priority.PASSAGE) -> list[Embedding]:
        """The vectors of texts."""
        results = asyncio.run(self.embedder.embed(texts, Outputs(), max_length=512, priority=priority))
        return [result for result in results if isinstance(result, Embedding)]

    def searched(self, worker: Client, **fields: object) -> list[list[Json]]:
        """The hits of each of `QUERIES`."""
        raw = {"operation": "search", "collection": self.collection, "queries": QUERIES, "limit": 8, **fields}
        return [result["hits"] for result in worker.good(raw)["results"]]


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


def test_a_hybrid_collection_of_langchain(foreign: Foreign) -> None:
    """LangChain makes the collection and writes; the worker searches and adds; LangChain finds what was added."""
    opened = langchain_store(foreign, foreign.embedder)
    ids = opened.add_texts(TEXTS, [{"number": n} for n in range(len(TEXTS))])
    worker = foreign.worker()

    embeddings = dict(zip(map(str, ids), foreign.embedded(TEXTS), strict=True))
    for hits, query in zip(foreign.searched(worker, explain=True), foreign.embedded(QUERIES), strict=True):
        assert query.dense is not None
        assert query.sparse is not None
        weights = dict(zip(query.sparse.indices.tolist(), query.sparse.values.tolist(), strict=True))
        dense: dict[PointId, float] = {}
        sparse: dict[PointId, float] = {}
        for identity, embedding in embeddings.items():
            assert embedding.dense is not None
            assert embedding.sparse is not None
            dense[uuid.UUID(identity)] = float(np.dot(embedding.dense, query.dense))
            pairs = zip(embedding.sparse.indices.tolist(), embedding.sparse.values.tolist(), strict=True)
            shared = [weights[index] * value for index, value in pairs if index in weights]
            if shared:
                sparse[uuid.UUID(identity)] = sum(shared)
        expected = rrf([ranked(dense), ranked(sparse)], 60, (1.0, 1.0))
        scores = [expected[uuid.UUID(hit["id"])] for hit in hits]
        assert [hit["score"] for hit in hits] == pytest.approx(scores, abs=1e-6)
        assert scores == sorted(expected.values(), reverse=True)[:8]
        assert all(sum(hit["explain"]["fusion"].values()) == pytest.approx(hit["score"], abs=1e-6) for hit in hits)
        assert hits[0]["payload"]["page_content"] == TEXTS[hits[0]["payload"]["metadata"]["number"]]

    target = {"collection": foreign.collection, "payloads": [{"number": -1}]}
    assert worker.good({"texts": [ADDED], "isPassage": True, "qdrant": target})["upsert"]["stored"] == 1
    [document] = opened.similarity_search(ADDED, k=1)
    assert (document.page_content, document.metadata["number"]) == (ADDED, -1)


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
