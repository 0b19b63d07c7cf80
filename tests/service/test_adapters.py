"""The client's adapters in LangChain, LlamaIndex and Haystack: their stores and the worker read each other's points."""

from __future__ import annotations

import asyncio
import json
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from embedder import Embedder, Embedding, Priority
from qdrant_sink import PointId, Store
from service.operations import CompletionRequest, Operations
from service.settings import Settings
from tests.service.adapted import ADAPTED, Adapted
from tests.service.client import ENVIRONMENT, Client, Json
from tests.service.frameworks import dense_of, sparse_of
from tests.service.served import Served
from tests.service.test_frameworks import QUERIES, TEXTS, double, embedded, fused, real, scores_of

LIMIT = 8
CASES = [
    *(pytest.param((framework, "double"), id=framework.name) for framework in ADAPTED),
    *(
        pytest.param((framework, "server"), id=f"{framework.name}-server", marks=pytest.mark.server)
        for framework in ADAPTED
    ),
]


@dataclass(frozen=True)
class Opened:
    """A framework with the adapters, and a worker without a collection config, over HTTP and in process."""

    framework: Adapted
    served: Served
    worker: Client
    embedder: Embedder
    store: Store

    def branches(self, query: str, numbers: Sequence[int] = range(len(TEXTS))) -> list[dict[PointId, float]]:
        """The scores of the texts with these numbers by dense and by sparse vectors, computed by numpy."""
        [asked] = self.embedded([query], Priority.QUERY)
        passages = self.embedded([TEXTS[number] for number in numbers])
        return [
            {numbers[int(index)]: score for index, score in scores_of(kind, asked, passages).items()}
            for kind in ("dense", "sparse")
        ]

    def embedded(self, texts: Sequence[str], priority: Priority = Priority.PASSAGE) -> list[Embedding]:
        """The vectors of texts."""
        return embedded(self.embedder, texts, priority)

    def requests(self) -> int:
        """The number of requests for vectors so far."""
        with self.served.client() as client:
            metrics = client.get("/metrics").text
        counts = re.findall(r'^bge_m3_requests_total\{.*operation="embed".*\} (.*)$', metrics, re.MULTILINE)
        return int(sum(map(float, counts)))

    def assert_finds(self, query: str, below: int | None = None) -> None:
        """Check that the framework finds the texts that numpy finds, with their scores."""
        hits = self.framework.search(query, LIMIT, below)
        expected = self.framework.fused(self.branches(query, range(below or len(TEXTS))), LIMIT)
        assert [hit.text for hit in hits] == [TEXTS[hit.number] for hit in hits]
        assert [hit.score for hit in hits] == pytest.approx([expected[hit.number] for hit in hits], abs=2e-5)
        assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True)[:LIMIT], abs=2e-5)


@pytest.fixture(params=CASES)
def opened(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Opened]:
    """Each framework on the double and on a real server, without its collection."""
    (framework_class, kind), collection = request.param, f"test_{uuid.uuid4().hex}"
    with double(tmp_path) if kind == "double" else real(collection) as (address, store):
        operations = Operations(Settings.from_environment(ENVIRONMENT), embedder, store)
        with Served(operations) as served:
            framework = framework_class(address, collection, served.url, embedder.hidden_size)
            yield Opened(framework, served, Client(operations), embedder, store)
            framework.close()


def test_what_the_framework_wrote(opened: Opened) -> None:
    """It has the vectors of one request per batch, and the framework and the worker find and rank it as numpy does."""
    framework = opened.framework
    framework.write(TEXTS)
    assert opened.requests() == framework.writes
    for query in QUERIES[:3]:
        opened.assert_finds(query)
    opened.assert_finds(QUERIES[4], below=20)
    where = {"must": [{"key": framework.number_key, "range": {"lt": 20}}]}
    answer = opened.worker.good(searched(framework.collection, filter=where))
    assert (answer["recognised"]["kinds"], answer["recognised"]["layout"]) == (["dense", "sparse"], framework.layout)
    assert "warnings" not in answer  # the vectors are those of the worker's model
    for query, result in zip(QUERIES[:3], answer["results"], strict=True):
        expected = sorted(fused(opened.branches(query, range(20))).values(), reverse=True)
        assert [hit["score"] for hit in result["hits"]] == pytest.approx(expected[:LIMIT], abs=2e-5)


@pytest.mark.slow
def test_reranking_what_the_framework_wrote(opened: Opened) -> None:
    """The worker adds ColBERT rows to the points of the framework, and ranks them as numpy does."""
    framework = opened.framework
    framework.write(TEXTS)
    report = asyncio.run(opened.worker.operations.completion(CompletionRequest(("colbert",), framework.collection)))
    assert (report.completed, report.points) == (len(TEXTS), len(TEXTS))
    passages, queries = opened.embedded(TEXTS), opened.embedded(QUERIES[:3], Priority.QUERY)
    answer = opened.worker.good(searched(framework.collection, rerank="colbert"))
    for embedding, result in zip(queries, answer["results"], strict=True):
        expected = sorted(scores_of("colbert", embedding, passages).values(), reverse=True)
        assert [hit["score"] for hit in result["hits"]] == pytest.approx(expected[:LIMIT], rel=2e-3)


def test_what_the_worker_wrote(opened: Opened) -> None:
    """The framework opens a collection of the worker, finds its points as numpy does, and adds to it."""
    collection, config = opened.framework.collection, {"layout": opened.framework.layout}
    settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps(config)})
    writer = Client(Operations(settings, opened.embedder, opened.store))
    payloads = [{"number": number} for number in range(len(TEXTS))]
    block = {"collection": collection, "payloads": payloads}
    answer = writer.good({"texts": TEXTS, "isPassage": True, "qdrant": block})
    assert answer["upsert"]["stored"] == len(TEXTS)
    for query in QUERIES[:3]:
        opened.assert_finds(query)
    opened.assert_finds(QUERIES[4], below=20)
    opened.framework.write(["A fox that nobody had written about before."])
    assert opened.worker.good({"operation": "count", "collection": collection})["count"] == len(TEXTS) + 1


def test_reranking_follows_numpy(opened: Opened) -> None:
    """Texts are ranked by the relevance of the worker, in one request, and `top_n` cuts the ranking."""
    passages, queries = opened.embedded(TEXTS), opened.embedded(QUERIES[:3], Priority.QUERY)
    for text, query in zip(QUERIES[:3], queries, strict=True):
        expected = relevance(query, passages)
        hits = opened.framework.rerank(text, TEXTS)
        assert [hit.score for hit in hits] == pytest.approx([expected[hit.number] for hit in hits], abs=1e-4)
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert sorted(hit.number for hit in hits) == list(range(len(TEXTS)))
        assert all(hit.text == TEXTS[hit.number] for hit in hits)
        assert opened.framework.rerank(text, TEXTS, top_n=3) == hits[:3]
    assert opened.framework.rerank(QUERIES[0], []) == []


def searched(collection: str, **fields: object) -> Json:
    """A request for searches with the first queries."""
    return {"operation": "search", "collection": collection, "queries": QUERIES[:3], "limit": LIMIT, **fields}


def relevance(query: Embedding, passages: Sequence[Embedding]) -> list[float]:
    """The relevance of passages, with equal weights of the three scores."""
    scores = []
    weights = dict(zip(sparse_of(query).indices.tolist(), sparse_of(query).values.tolist(), strict=True))
    for passage in passages:
        dense = float(np.dot(dense_of(query), dense_of(passage)))
        pairs = zip(sparse_of(passage).indices.tolist(), sparse_of(passage).values.tolist(), strict=True)
        sparse = sum(weights.get(index, 0.0) * value for index, value in pairs)
        assert query.colbert is not None
        assert passage.colbert is not None
        colbert = float((query.colbert @ passage.colbert.T).max(axis=1).mean())
        scores.append(1 / (1 + np.exp(-10 * ((dense + sparse + colbert) / 3 - 0.4))))
    return [float(score) for score in scores]
