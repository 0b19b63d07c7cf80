"""Collections as other libraries and plain code make them are used as they are, by a worker without a config."""

from __future__ import annotations

import asyncio
import json
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

import corpus
from embedder import KINDS, Embedder, Embedding, Kind, Outputs, Priority
from qdrant_sink import (
    ColbertSchema,
    CollectionSchema,
    DenseSchema,
    Distance,
    Layout,
    Point,
    PointId,
    SparseSchema,
    Store,
    VectorNames,
    laid_out,
)
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client, Json
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import ranked, rrf
from tests.sink.stores import EMBEDDED_FIRST, STORES, real_grpc_port, real_server

TEXTS: Final = [passage.text for passage in corpus.passages()[:40]]
QUERIES: Final = [question.query for question in corpus.questions()[:10]]
ADDED: Final = "A fox that nobody had written about before."
LONG: Final = " ".join(TEXTS[:6])
LIMIT: Final = 8


@dataclass(frozen=True)
class Shape:
    """A collection as somebody makes it.

    Attributes:
        names: names of its vectors by kind.
        distance: distance function of its dense vector.
        layout: layout of its payloads.
        text_key: key of the text in a plain payload.
        taken: what the answers say of it.
    """

    names: Mapping[Kind, str]
    distance: Distance = "cosine"
    layout: Layout = "plain"
    text_key: str = "text"
    taken: Json = field(default_factory=dict)

    @property
    def prefix(self) -> str:
        """Path of the object that has the fields of the caller."""
        return {"langchain": "metadata.", "haystack": "meta."}.get(self.layout, "")

    @property
    def branches(self) -> tuple[Kind, ...]:
        """The default branches of a search."""
        return tuple(kind for kind in KINDS if kind in self.names and kind != "colbert")

    def payload(self, number: int) -> Json:
        """The payload of a point."""
        fields = {"even": number % 2 == 0, "group": number % 5}
        payload = laid_out(
            self.layout, text=TEXTS[number], text_key=self.text_key, payload=fields, written={}, point_id=str(number)
        )
        assert isinstance(payload, dict)
        return payload

    def text_of(self, payload: Json) -> str:
        """The text of a payload as the maker of the collection reads it."""
        keys = {"langchain": "page_content", "haystack": "content", "llamaindex": "_node_content"}
        value = payload[keys.get(self.layout, self.text_key)]
        return str(json.loads(value)["text"] if self.layout == "llamaindex" else value)


SHAPES: Final = {
    "unnamed": Shape(
        {"dense": ""}, text_key="body", taken={"kinds": ["dense"], "vectorNames": {"dense": ""}, "textKey": "body"}
    ),
    "dot": Shape({"dense": "dense"}, distance="dot", taken={"kinds": ["dense"], "distance": {"dense": "dot"}}),
    "names": Shape(
        {"dense": "passage", "sparse": "lexical", "colbert": "late"},
        text_key="content",
        taken={"vectorNames": {"dense": "passage", "sparse": "lexical", "colbert": "late"}, "textKey": "content"},
    ),
    "sparse": Shape({"sparse": "sparse"}, taken={"kinds": ["sparse"]}),
    "dense and colbert": Shape({"dense": "dense", "colbert": "colbert"}, taken={"kinds": ["dense", "colbert"]}),
    "langchain": Shape(
        {"dense": ""},
        layout="langchain",
        taken={
            "kinds": ["dense"], "vectorNames": {"dense": ""}, "layout": "langchain", "textKey": "page_content",
        },
    ),
    "langchain hybrid": Shape(
        {"dense": "", "sparse": "langchain-sparse"},
        layout="langchain",
        taken={
            "kinds": ["dense", "sparse"], "vectorNames": {"dense": "", "sparse": "langchain-sparse"},
            "layout": "langchain", "textKey": "page_content",
        },
    ),
    "llamaindex hybrid": Shape(
        {"dense": "text-dense", "sparse": "text-sparse-new"},
        layout="llamaindex",
        taken={
            "kinds": ["dense", "sparse"], "vectorNames": {"dense": "text-dense", "sparse": "text-sparse-new"},
            "layout": "llamaindex", "textKey": "_node_content",
        },
    ),
    "haystack": Shape(
        {"dense": "text-dense", "sparse": "text-sparse"},
        layout="haystack",
        taken={
            "kinds": ["dense", "sparse"], "vectorNames": {"dense": "text-dense", "sparse": "text-sparse"},
            "layout": "haystack", "textKey": "content",
        },
    ),
}  # fmt: skip

Make = Callable[[Shape, Sequence[Embedding]], str]
"""Function that makes a collection with the points of `TEXTS`, and returns its name."""


@dataclass(frozen=True)
class Place:
    """A store, and what makes collections there without the worker."""

    store: Store
    make: Make


@pytest.fixture(scope="module", params=[*EMBEDDED_FIRST, *STORES[2:]])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """Qdrant Edge, the double, or a real server."""
    root: Path = tmp_path_factory.mktemp("foreign")
    if request.param == "edge":
        edge = EdgeStore(root)
        yield Place(edge, lambda shape, embeddings: _made_in_edge(edge, shape, embeddings))
        edge.close()
        return
    double = GrpcDouble(root) if request.param == "double" else None
    if double is not None:
        client = QdrantClient(host="127.0.0.1", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)
        store = ServerStore("http://127.0.0.1:9", grpc_port=double.port)
    else:
        url, key = real_server()
        port = real_grpc_port()
        client = QdrantClient(url, api_key=key, grpc_port=port or 6334, prefer_grpc=True, check_compatibility=False)
        store = ServerStore(url, key, grpc_port=port)
    made: list[str] = []

    def make(shape: Shape, embeddings: Sequence[Embedding]) -> str:
        made.append(_made_by_client(client, shape, embeddings))
        return made[-1]

    yield Place(store, make)
    for name in made if double is None else []:
        client.delete_collection(name)
    store.close()
    client.close()
    if double is not None:
        double.stop()


def _made_in_edge(store: EdgeStore, shape: Shape, embeddings: Sequence[Embedding]) -> str:
    name, names = f"test_{uuid.uuid4().hex}", VectorNames(**{str(kind): name for kind, name in shape.names.items()})
    size = _size(embeddings)
    schema = CollectionSchema(
        DenseSchema(size, shape.distance) if "dense" in shape.names else None,
        SparseSchema() if "sparse" in shape.names else None,
        ColbertSchema(size, datatype="float32") if "colbert" in shape.names else None,
        names,
    )
    store.ensure(name, schema)
    points = [
        Point(
            number,
            shape.payload(number),
            embedding.dense if "dense" in shape.names else None,
            embedding.sparse if "sparse" in shape.names else None,
            embedding.colbert if "colbert" in shape.names else None,
            names,
        )
        for number, embedding in enumerate(embeddings)
    ]
    store.upsert(name, points)
    return name


def _made_by_client(client: QdrantClient, shape: Shape, embeddings: Sequence[Embedding]) -> str:
    name, size = f"test_{uuid.uuid4().hex}", _size(embeddings)
    vectors: dict[str, models.VectorParams] = {}
    if "dense" in shape.names:
        distance = {"cosine": models.Distance.COSINE, "dot": models.Distance.DOT}[shape.distance]
        vectors[shape.names["dense"]] = models.VectorParams(size=size, distance=distance)
    if "colbert" in shape.names:
        max_sim = models.MultiVectorConfig(comparator=models.MultiVectorComparator.MAX_SIM)
        vectors[shape.names["colbert"]] = models.VectorParams(
            size=size, distance=models.Distance.COSINE, multivector_config=max_sim
        )
    sparse = {shape.names["sparse"]: models.SparseVectorParams()} if "sparse" in shape.names else None
    is_unnamed = list(vectors) == [""] and sparse is None
    client.create_collection(name, vectors_config=vectors[""] if is_unnamed else vectors, sparse_vectors_config=sparse)
    points = []
    for number, embedding in enumerate(embeddings):
        vector: dict[str, Any] = {}
        for kind, vector_name in shape.names.items():
            value = getattr(embedding, kind)
            vector[vector_name] = (
                models.SparseVector(indices=value.indices.tolist(), values=value.values.tolist())
                if kind == "sparse"
                else value.tolist()
            )
        points.append(
            models.PointStruct(id=number, vector=vector[""] if is_unnamed else vector, payload=shape.payload(number))
        )
    client.upsert(name, points, wait=True)
    return name


def _size(embeddings: Sequence[Embedding]) -> int:
    assert embeddings[0].dense is not None
    return len(embeddings[0].dense)


def _embedded(embedder: Embedder, texts: Sequence[str], priority: Priority) -> list[Embedding]:
    results = asyncio.run(embedder.embed(texts, Outputs(), max_length=512, priority=priority))
    return [result for result in results if isinstance(result, Embedding)]


@pytest.fixture(scope="module")
def passages(embedder: Embedder) -> list[Embedding]:
    """The vectors of `TEXTS`."""
    return _embedded(embedder, TEXTS, Priority.PASSAGE)


@pytest.fixture(scope="module")
def questions(embedder: Embedder) -> list[Embedding]:
    """The vectors of `QUERIES`."""
    return _embedded(embedder, QUERIES, Priority.QUERY)


@dataclass(frozen=True)
class World:
    """A worker without a config, a collection that it did not make, and the scores of a search by numpy."""

    shape: Shape
    name: str
    place: Place
    embedder: Embedder
    passages: Sequence[Embedding]

    def worker(self, **config: object) -> Client:
        """A worker that has seen no collection."""
        variables = {"QDRANT_COLLECTION_CONFIG": json.dumps(config)} if config else {}
        return Client(
            Operations(Settings.from_environment({**ENVIRONMENT, **variables}), self.embedder, self.place.store)
        )

    def searched(self, worker: Client, **fields: object) -> list[list[Json]]:
        """The hits of each of `QUERIES`."""
        raw = {"operation": "search", "collection": self.name, "queries": QUERIES, "limit": LIMIT, **fields}
        answer = worker.good(raw)
        assert answer["recognised"] == self.shape.taken
        return [result["hits"] for result in answer["results"]]

    def expected(self, query: Embedding, numbers: Sequence[int]) -> dict[PointId, float]:
        """The scores of these points in a search by the default branches."""
        branches = [self._branch(kind, query, numbers) for kind in self.shape.branches]
        return branches[0] if len(branches) == 1 else rrf(list(map(ranked, branches)), 60, (1.0,) * len(branches))

    def _branch(self, kind: Kind, query: Embedding, numbers: Sequence[int]) -> dict[PointId, float]:
        scores: dict[PointId, float] = {}
        for number in numbers:
            passage = self.passages[number]
            if kind == "dense":
                assert query.dense is not None
                assert passage.dense is not None
                scores[number] = float(np.dot(query.dense, passage.dense))
                continue
            assert query.sparse is not None
            assert passage.sparse is not None
            weights = dict(zip(query.sparse.indices.tolist(), query.sparse.values.tolist(), strict=True))
            pairs = zip(passage.sparse.indices.tolist(), passage.sparse.values.tolist(), strict=True)
            shared = [weights[index] * value for index, value in pairs if index in weights]
            if shared:
                scores[number] = sum(shared)
        return scores


@pytest.fixture(params=SHAPES)
def world(request: pytest.FixtureRequest, place: Place, embedder: Embedder, passages: list[Embedding]) -> World:
    """Each shape in each store."""
    shape = SHAPES[request.param]
    return World(shape, place.make(shape, passages), place, embedder, passages)


def assert_hits(hits: Sequence[Json], expected: Mapping[PointId, float]) -> None:
    """Check that hits have the best scores, each point its own. Equal scores may come in any order."""
    scores = [hit["score"] for hit in hits]
    assert scores == pytest.approx([expected[hit["id"]] for hit in hits], abs=1e-5)
    assert scores == pytest.approx(sorted(expected.values(), reverse=True)[: len(hits)], abs=1e-5)


def test_a_collection_of_others_is_searched(world: World, questions: list[Embedding]) -> None:
    """Ten queries agree with numpy: alone, filtered and explained, in groups, with a threshold, and by example."""
    worker, shape = world.worker(), world.shape
    everything, even = range(len(TEXTS)), range(0, len(TEXTS), 2)
    where = {"must": [{"key": f"{shape.prefix}even", "match": {"value": True}}]}
    best = world.searched(worker)
    for hits, query in zip(best, questions, strict=True):
        assert_hits(hits, world.expected(query, everything))
        assert len(hits) == min(LIMIT, len(world.expected(query, everything)))
        assert all(shape.text_of(hit["payload"]) == TEXTS[hit["id"]] for hit in hits)
    for hits, query in zip(world.searched(worker, filter=where, explain=True), questions, strict=True):
        assert_hits(hits, world.expected(query, even))
        for hit in hits:
            assert tuple(hit["explain"]["branches"]) == shape.branches
            for match in hit["explain"]["sparse"] or []:
                assert match["spans"] is not None
    grouped = world.searched(worker, groupBy=f"{shape.prefix}group", limit=5)
    for hits, query in zip(grouped, questions, strict=True):
        expected = world.expected(query, everything)
        groups = {
            int(point) % 5: max(s for p, s in expected.items() if int(p) % 5 == int(point) % 5) for point in expected
        }
        assert [hit["score"] for hit in hits] == pytest.approx(sorted(groups.values(), reverse=True), abs=1e-5)
        assert all(hit["id"] % 5 == hit["group"] for hit in hits)
    threshold = best[0][3]["score"] - 1e-6
    assert [hit["id"] for hit in world.searched(worker, scoreThreshold=threshold)[0]][:4] == [
        hit["id"] for hit in best[0]
    ][:4]
    assert all(hit["score"] >= threshold for hit in world.searched(worker, scoreThreshold=threshold)[0])
    like = {"operation": "search", "collection": world.name, "like": {"positive": [3]}, "withVectors": True}
    [result] = worker.good(like)["results"]
    assert result["hits"]
    assert 3 not in [hit["id"] for hit in result["hits"]]
    assert {tuple(hit["vectors"]) for hit in result["hits"]} == {tuple(kind for kind in KINDS if kind in shape.names)}
    assert worker.good({"operation": "count", "collection": world.name, "filter": where})["count"] == len(even)


def test_a_collection_of_others_is_extended(world: World) -> None:
    """A new point has all kinds and the payload that the maker of the collection reads; documents can be replaced."""
    worker, shape = world.worker(), world.shape
    target = {"collection": world.name, "ids": [99], "payloads": [{"even": False, "group": 7}]}
    upsert = worker.good({"texts": [ADDED], "isPassage": True, "qdrant": target})["upsert"]
    assert (upsert["stored"], upsert["recognised"]) == (1, shape.taken)
    read = {"operation": "points", "collection": world.name, "ids": [99, 0], "withVectors": True}
    added, other = worker.good(read)["points"]
    assert shape.text_of(added["payload"]) == ADDED
    assert added["payload"].keys() == other["payload"].keys()
    assert set(added["vectors"]) == set(other["vectors"]) == set(shape.names)
    hits = world.searched(worker, queries=[ADDED], limit=1)
    assert [hit["id"] for hit in hits[0]] == [99]
    chunk = {"collection": world.name, "ids": ["a document"], "chunk": {"maxTokens": 64}}
    for _ in range(2):
        chunks = worker.good({"texts": [LONG], "isPassage": True, "qdrant": chunk})["results"][0]["chunks"]
        assert worker.good({"operation": "count", "collection": world.name})["count"] == len(TEXTS) + 1 + chunks
    deletion = {"operation": "delete", "collection": world.name, "docIds": ["a document"]}
    assert world.worker().good(deletion)["deleted"] == chunks > 1
    assert worker.good({"operation": "delete", "collection": world.name, "ids": [99]})["deleted"] == 1
    answer = worker.good({"operation": "collections", "collection": world.name})
    assert (answer["layout"]["name"], answer["recognised"]) == (shape.layout, shape.taken)


def test_a_rerank_is_by_the_rows_of_the_collection(
    place: Place, embedder: Embedder, passages: list[Embedding], questions: list[Embedding]
) -> None:
    """With ColBERT rows under any name, `rerank` orders by MaxSim."""
    shape = SHAPES["names"]
    world = World(shape, place.make(shape, passages), place, embedder, passages)
    for hits, query in zip(world.searched(world.worker(), rerank="colbert"), questions, strict=True):
        assert query.colbert is not None
        max_sim: dict[PointId, float] = {
            number: float((query.colbert @ passage.colbert.T).max(axis=1).sum())
            for number, passage in enumerate(passages)
            if passage.colbert is not None
        }
        assert [hit["score"] for hit in hits] == pytest.approx([max_sim[hit["id"]] for hit in hits], abs=1e-4)
        assert [hit["id"] for hit in hits] == ranked(max_sim, LIMIT)


def test_what_was_taken_is_logged_once(
    place: Place, embedder: Embedder, passages: list[Embedding], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says what was taken, without any text, when a worker first uses the collection."""
    shape = SHAPES["langchain hybrid"]
    world = World(shape, place.make(shape, passages), place, embedder, passages)
    worker = world.worker()
    with caplog.at_level(logging.INFO, logger="qdrant_sink.catalogue"):
        world.searched(worker)
        world.searched(worker)
    [line] = [record.getMessage() for record in caplog.records if record.name == "qdrant_sink.catalogue"]
    assert line == (
        f"collection '{world.name}' is used as it is: the kinds are dense, sparse; dense is the vector '(unnamed)'; "
        "sparse is the vector 'langchain-sparse'; the layout of payloads is langchain; the text is under 'page_content'"
    )


def test_choices_are_left_to_the_operator(place: Place, embedder: Embedder, passages: list[Embedding]) -> None:
    """Where points leave the text key open, a search works, and an ingest needs the key, from anywhere."""
    shape = Shape({"dense": "dense"}, text_key="body", taken={"kinds": ["dense"]})
    both = Shape({"dense": "dense"}, text_key="content", taken={"kinds": ["dense"]})
    world = World(shape, place.make(shape, passages), place, embedder, passages)
    worker = world.worker()
    target = {"collection": world.name, "ids": [99]}
    job = {"texts": [ADDED], "isPassage": True, "qdrant": target}
    assert worker.good(job)["upsert"]["stored"] == 1
    keyed = {**job, "qdrant": {**target, "ids": [0], "textKey": both.text_key}}
    assert worker.good(keyed)["upsert"]["stored"] == 1
    for caller in (worker, world.worker()):
        error = caller.error(job, "schema_mismatch")
        assert "under no key that all of them have (some have one under: content, body); give textKey" in error["error"]
        assert error["details"]["choices"] == {"textKey": ["content", "body"]}
        assert error["details"]["upsert"]["rejected"][0]["code"] == "schema_mismatch"
    assert len(world.searched(world.worker(), limit=3)[0]) == 3
    assert world.worker(textKey="body").good(job)["upsert"]["stored"] == 1
    assert world.worker(layout="langchain").good(job)["upsert"]["stored"] == 1


def test_chunks_are_deleted_whatever_form_they_have(
    place: Place, embedder: Embedder, passages: list[Embedding]
) -> None:
    """`docIds` finds chunks in the layout of the collection and those under a given text key, beside other points."""
    shape = SHAPES["langchain hybrid"]
    world = World(shape, place.make(shape, passages), place, embedder, passages)
    worker = world.worker()
    target = {"collection": world.name, "idScope": "docs", "chunk": {"maxTokens": 64}}
    job = {"texts": [LONG], "isPassage": True}
    laid_out = worker.good({**job, "qdrant": {**target, "ids": ["a"]}})["upsert"]["stored"]
    plain = worker.good({**job, "qdrant": {**target, "ids": ["b"], "textKey": "body"}})["upsert"]["stored"]
    foreign = {"collection": world.name, "ids": [0], "textKey": "content"}
    worker.good({"texts": [ADDED], "isPassage": True, "qdrant": foreign})
    delete = {"operation": "delete", "collection": world.name, "idScope": "docs"}
    assert worker.good({**delete, "docIds": ["a"]}) == {"deleted": laid_out}
    assert worker.good({**delete, "docIds": ["b"]}) == {"deleted": plain}
