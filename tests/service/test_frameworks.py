"""Collections of LangChain, LlamaIndex and Haystack: a worker without a config reads, extends and completes them."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from qdrant_client import QdrantClient

import corpus
from embedder import KINDS, Embedder, Embedding, Kind, Outputs, Priority
from qdrant_sink import PointId, Store, text_of
from qdrant_sink.server import ServerStore
from service.operations import CompletionRequest, Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.frameworks import (
    FRAMEWORKS,
    Address,
    Found,
    Framework,
    LangChainDense,
    LangChainHybrid,
    dense_of,
    sparse_of,
)
from tests.sink.grpc_double import GrpcDouble
from tests.sink.langchain_model import Model
from tests.sink.samples import ranked, rrf
from tests.sink.stores import real_server

TEXTS = [passage.text for passage in corpus.passages()[:40]]
QUERIES = [question.query for question in corpus.questions()[:10]]
CLIENT: dict[str, Any] = {"prefer_grpc": True, "check_compatibility": False}
ADDED = "A fox that nobody had written about before."
NUMBERS = {"langchain": "metadata.number", "llamaindex": "number", "haystack": "meta.number"}
TEXT_KEYS = {"langchain": "page_content", "llamaindex": "_node_content", "haystack": "content"}


_EMBEDDINGS: dict[tuple[Priority, str], Embedding] = {}
"""The vectors that were computed so far: all tests compare with those of the same texts."""


def embedded(embedder: Embedder, texts: Sequence[str], priority: Priority) -> list[Embedding]:
    """The vectors of texts by the model of the session."""
    new = [text for text in dict.fromkeys(texts) if (priority, text) not in _EMBEDDINGS]
    if new:
        results = asyncio.run(embedder.embed(new, Outputs(), max_length=512, priority=priority))
        embeddings = [result for result in results if isinstance(result, Embedding)]
        _EMBEDDINGS.update(zip([(priority, text) for text in new], embeddings, strict=True))
    return [_EMBEDDINGS[priority, text] for text in texts]


@dataclass(frozen=True)
class Opened:
    """A collection that a framework has created and filled with `TEXTS`, and a worker without a config."""

    framework: Framework
    worker: Client
    embedder: Embedder

    def embedded(self, texts: Sequence[str], priority: Priority = Priority.PASSAGE) -> list[Embedding]:
        """The vectors of texts."""
        return embedded(self.embedder, texts, priority)

    def searched(self, **fields: object) -> Json:
        """The answer to a search for `QUERIES`."""
        request = {"operation": "search", "collection": self.framework.collection, "queries": QUERIES, "limit": 8}
        return self.worker.good({**request, **fields})

    def number_of(self, hit: Mapping[str, Any]) -> int:
        """The number of a hit's text."""
        text = text_of(self.framework.layout, hit["payload"], "text")
        assert text is not None
        return TEXTS.index(text)


CASES = [
    *(
        pytest.param(
            (framework, "double"), id=framework.name, marks=() if "sparse" in framework.kinds else pytest.mark.slow
        )
        for framework in FRAMEWORKS
    ),
    *(
        pytest.param((framework, "server"), id=f"{framework.name}-server", marks=pytest.mark.server)
        for framework in FRAMEWORKS
    ),
]


@contextmanager
def double(path: Path) -> Iterator[tuple[Address, Store]]:
    """A server double, for a framework and for the worker."""
    server = GrpcDouble(path)
    options = {"host": "127.0.0.1", "port": 6333, "grpc_port": server.port, **CLIENT}
    client, store = QdrantClient(**options), ServerStore("http://127.0.0.1:9", grpc_port=server.port)
    yield Address(client, options), store
    store.close()
    client.close()
    server.stop()


@contextmanager
def real(collection: str) -> Iterator[tuple[Address, Store]]:
    """The server of `QDRANT_URL`, from which the collection is deleted at the end."""
    url, key = real_server()
    address, port = urlsplit(url), int(os.environ.get("QDRANT_GRPC_PORT", "6334"))
    options = {"host": address.hostname, "port": address.port or 6333, "grpc_port": port, "api_key": key, **CLIENT}
    client, store = QdrantClient(**options), ServerStore(url, key, grpc_port=port)
    yield Address(client, options), store
    client.delete_collection(collection)
    store.close()
    client.close()


@pytest.fixture(params=CASES)
def opened(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Opened]:
    """A collection of each framework, on the double and on a real server."""
    (framework_class, kind), collection = request.param, f"test_{uuid.uuid4().hex}"
    with double(tmp_path) if kind == "double" else real(collection) as (address, store):
        framework = framework_class(address, collection, Model(embedder))
        framework.write(TEXTS)
        yield Opened(framework, Client(Operations(Settings.from_environment(ENVIRONMENT), embedder, store)), embedder)


def test_searches_agree_with_numpy_and_say_what_was_recognised(opened: Opened) -> None:
    """Ten queries have the hits and scores of a numpy search, with a filter, explanations and the layout's texts."""
    framework = opened.framework
    answer = opened.searched(explain=True)
    assert answer["recognised"] == {
        "kinds": list(framework.kinds),
        "vectorNames": framework.vector_names,
        "layout": framework.layout,
        "textKey": TEXT_KEYS[framework.layout],
    }
    assert "warnings" not in answer
    passages, queries = opened.embedded(TEXTS), opened.embedded(QUERIES, Priority.QUERY)
    for query, result in zip(queries, answer["results"], strict=True):
        expected = fused([scores_of(kind, query, passages) for kind in framework.kinds])
        numbers = [opened.number_of(hit) for hit in result["hits"]]
        assert [hit["score"] for hit in result["hits"]] == pytest.approx([expected[n] for n in numbers], abs=2e-5)
        assert [expected[n] for n in numbers] == pytest.approx(sorted(expected.values(), reverse=True)[:8], abs=2e-5)
        assert all(set(hit["explain"]["branches"]) <= set(framework.kinds) for hit in result["hits"])


def test_filters_reach_the_metadata_of_the_framework(opened: Opened) -> None:
    """A condition on the caller's metadata limits a search and a count, in each framework's place for it."""
    where = {"must": [{"key": NUMBERS[opened.framework.layout], "range": {"lt": 20}}]}
    counted = {"operation": "count", "collection": opened.framework.collection, "filter": where}
    assert opened.worker.good(counted)["count"] == 20
    for result in opened.searched(filter=where)["results"]:
        assert len(result["hits"]) == 8
        assert all(opened.number_of(hit) < 20 for hit in result["hits"])


def test_the_framework_finds_what_the_worker_adds(opened: Opened) -> None:
    """A text that the worker ingests is a document of the framework, with its text and metadata."""
    collection = opened.framework.collection
    job = {"texts": [ADDED], "isPassage": True, "qdrant": {"collection": collection, "payloads": [{"number": 99}]}}
    assert opened.worker.good(job)["upsert"]["stored"] == 1
    assert opened.framework.search(ADDED, 1) == [Found(ADDED, 99)]
    counted = {"operation": "count", "collection": collection}
    assert opened.worker.good(counted)["count"] == len(TEXTS) + 1


def test_a_completed_collection_reranks_as_numpy_does(opened: Opened) -> None:
    """The missing kinds are added in place; rerank then follows MaxSim, and the framework reads on."""
    framework = opened.framework
    missing = tuple(kind for kind in KINDS if kind not in framework.kinds)
    report = asyncio.run(opened.worker.operations.completion(CompletionRequest(missing, framework.collection)))
    assert (report.completed, report.points) == (len(TEXTS), len(TEXTS))
    passages, queries = opened.embedded(TEXTS), opened.embedded(QUERIES, Priority.QUERY)
    for query, result in zip(queries, opened.searched(rerank="colbert")["results"], strict=True):
        expected = scores_of("colbert", query, passages)
        numbers = [opened.number_of(hit) for hit in result["hits"]]
        assert [hit["score"] for hit in result["hits"]] == pytest.approx([expected[n] for n in numbers], rel=2e-3)
        assert [expected[n] for n in numbers] == pytest.approx(sorted(expected.values(), reverse=True)[:8], rel=2e-3)
    if isinstance(
        framework, LangChainDense
    ):  # the added vectors have the names by which its hybrid mode looks for them
        hybrid = LangChainHybrid(framework.address, framework.collection, framework.model)
        assert hybrid.search(TEXTS[5], 1) == [Found(TEXTS[5], 5)]
    if framework.opens_further_vectors:
        assert framework.search(TEXTS[5], 1) == [Found(TEXTS[5], 5)]


def scores_of(kind: Kind, query: Embedding, passages: Sequence[Embedding]) -> dict[PointId, float]:
    """The scores of all passages by their number; passages without a common token have no sparse score."""
    if kind == "dense":
        return {number: float(np.dot(dense_of(query), dense_of(passage))) for number, passage in enumerate(passages)}
    if kind == "colbert":
        return {
            number: float((query.colbert @ passage.colbert.T).max(axis=1).sum())
            for number, passage in enumerate(passages)
            if query.colbert is not None and passage.colbert is not None
        }
    weights = dict(zip(sparse_of(query).indices.tolist(), sparse_of(query).values.tolist(), strict=True))
    scores: dict[PointId, float] = {}
    for number, passage in enumerate(passages):
        vector = sparse_of(passage)
        pairs = zip(vector.indices.tolist(), vector.values.tolist(), strict=True)
        if shared := [weights[index] * value for index, value in pairs if index in weights]:
            scores[number] = sum(shared)
    return scores


def fused(branches: Sequence[Mapping[PointId, float]]) -> Mapping[PointId, float]:
    """The scores of one branch, or the fused scores of several."""
    if len(branches) == 1:
        return branches[0]
    return rrf([ranked(dict(branch)) for branch in branches], 60, (1.0,) * len(branches))
