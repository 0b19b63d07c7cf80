"""A collection is completed: every point gets the vectors that it lacks, of its own text, and nothing else changes."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Timer
from typing import Any

import numpy as np
import pytest

import corpus
from embedder import KINDS, Embedder, Embedding, InvalidRequest, Kind, NotFound, Outputs, Priority
from embedder.checkpoint import MINI
from embedder.scheduling import ModelPool
from embedder.tokenizer import Tokenizer
from qdrant_sink import (
    CollectionSchema,
    DenseSchema,
    PayloadIndex,
    Point,
    PointId,
    SchemaMismatch,
    Store,
    Stored,
    StoreRejected,
    StoreUnavailable,
    VectorNames,
    Vectors,
)
from qdrant_sink.completing import CompletionReport
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import CompletionProgress, CompletionRequest, Operations
from service.settings import Settings
from tests.service.client import ENVIRONMENT, Client
from tests.service.doubles import CrowdedEmbedder, Watched, WatchedEngine
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import Reference, ranked
from tests.sink.stores import EMBEDDED_FIRST

TEXTS = [passage.text[:200] for passage in corpus.passages()[:40]]
QUERIES = [question.query for question in corpus.questions()[:5]]
NAMES = VectorNames(dense="")
NOTHING = "nothing"
BOTH: tuple[Kind, ...] = ("sparse", "colbert")


_EMBEDDINGS: dict[str, Embedding] = {}
"""The vectors of texts that `embedded` has computed. Every test has the same model."""


def embedded(embedder: Embedder, texts: Sequence[str]) -> list[Embedding]:
    """The vectors of texts, as a completion computes them."""
    new = [text for text in dict.fromkeys(texts) if text not in _EMBEDDINGS]
    if new:
        tokens = embedder.tokenize(new, embedder.max_length)
        results = asyncio.run(embedder.embed_tokens(tokens, Outputs(colbert_type="float16"), priority=Priority.PASSAGE))
        embeddings = [result for result in results if isinstance(result, Embedding)]
        _EMBEDDINGS.update(zip(new, embeddings, strict=True))
    return [_EMBEDDINGS[text] for text in texts]


class Site:
    """A collection with one unnamed dense vector, in a store, and a worker for it."""

    name = "notes"

    def __init__(self, store: Store, embedder: Embedder, **config: Any) -> None:
        self.store = store
        self.embedder = embedder
        self.schema = CollectionSchema(DenseSchema(embedder.hidden_size), names=NAMES)
        given = {"vectorNames": {"dense": ""}, **config}
        self.settings = Settings.from_environment({**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps(given)})
        self.core = Operations(self.settings, embedder, store)

    def fill(self, texts: Sequence[str | None], *, key: str = "text", first: int = 0) -> list[PointId]:
        """Store a point with a dense vector for each text, with an integer or a UUID as its id."""
        embedded(self.embedder, [text or NOTHING for text in texts])
        self.store.ensure(self.name, self.schema)
        ids: list[PointId] = [n if n % 3 else uuid.UUID(int=n) for n in range(first, first + len(texts))]
        self.store.upsert(self.name, [self.point(i, text, key=key) for i, text in zip(ids, texts, strict=True)])
        return ids

    def point(self, point_id: PointId, text: str | None, *, key: str = "text") -> Point:
        """A point with the dense vector of its text."""
        [embedding] = embedded(self.embedder, [text or NOTHING])
        payload = {"n": str(point_id), "nested": {"a": [1, None, "é"]}, **({} if text is None else {key: text})}
        return Point(point_id, payload, dense=embedding.dense, names=NAMES)

    def complete(self, kinds: Sequence[Kind] = BOTH, **fields: Any) -> CompletionReport:
        """Complete the collection; keywords that are no fields of the request go to the operation."""
        more = {name: fields.pop(name) for name in ("progress", "stopping") if name in fields}
        request = CompletionRequest(kinds, fields.pop("collection", self.name), **fields)
        return asyncio.run(self.core.completion(request, **more))

    def stored(self, name: str | None = None) -> dict[PointId, tuple[Any, Vectors]]:
        """The payload and the vectors of every point."""
        collection = name or self.name
        page, _ = self.store.scroll(collection, {}, False, limit=10_000)
        present = self.store.describe(collection).description.vectors
        kinds = [kind for kind in KINDS if NAMES.of(kind) in present]
        ids = list(page)
        points: dict[PointId, Stored] = {}
        for start in range(0, len(ids), 64):
            points |= self.store.fetch(collection, ids[start : start + 64], True, kinds, names=NAMES)
        return {point: (stored.payload, stored.vectors or Vectors()) for point, stored in points.items()}

    def assert_complete(self, name: str | None = None, *, but: Sequence[PointId] = ()) -> None:
        """Check that every point has the vectors of the text that it has."""
        points = {point: held for point, held in self.stored(name).items() if point not in but}
        expected = embedded(self.embedder, [payload["text"] for payload, _ in points.values()])
        for (_, vectors), wanted in zip(points.values(), expected, strict=True):
            assert vectors.sparse is not None
            assert wanted.sparse is not None
            assert vectors.sparse.indices.tolist() == wanted.sparse.indices.tolist()
            assert vectors.sparse.values == pytest.approx(wanted.sparse.values, abs=1e-4)
            assert vectors.colbert is not None
            assert vectors.colbert == pytest.approx(wanted.colbert, abs=2e-3)


@pytest.fixture(params=EMBEDDED_FIRST)
def site(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Site]:
    """An empty site on each kind of store."""
    if request.param == "edge":
        store: Store = EdgeStore(tmp_path / "completed")
        yield Site(store, embedder)
        store.close()
        return
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    yield Site(store, embedder)
    store.close()
    double.stop()


@pytest.fixture
def double(tmp_path: Path) -> Iterator[GrpcDouble]:
    """A server on a loopback port."""
    (tmp_path / "double").mkdir()
    server = GrpcDouble(tmp_path / "double")
    yield server
    server.stop()


@pytest.fixture
def old(double: GrpcDouble, embedder: Embedder) -> Iterator[Site]:
    """A site on a server that cannot add vectors in place."""
    double.version = (1, 16, 3)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    yield Site(store, embedder)
    store.close()


def test_a_dense_collection_becomes_hybrid(site: Site) -> None:
    """Every point gets both kinds, the rest stays as it is, and a search reranks by the new rows."""
    ids = site.fill(TEXTS[:24])
    before = site.stored()
    progress: list[CompletionProgress] = []
    report = site.complete(progress=progress.append)
    assert (report.points, report.completed, report.already, report.is_complete) == (24, 24, 0, True)
    assert (report.collection, report.copied, report.alias) == ("notes", None, None)
    assert progress[-1] == CompletionProgress(24, 24)
    after = site.stored()
    assert set(after) == set(ids)
    for point, (payload, vectors) in after.items():
        assert payload == before[point][0]
        old = before[point][1].dense
        assert vectors.dense is not None
        assert old is not None
        assert vectors.dense.tobytes() == old.tobytes()
    site.assert_complete()
    colbert = site.store.describe("notes").description.vectors["colbert"]
    assert (colbert.m, colbert.on_disk, colbert.datatype) == (0, True, "float16")

    worker = Client(site.core)
    raw = {"operation": "search", "collection": "notes", "queries": QUERIES, "rerank": "colbert", "limit": 24}
    reference = Reference({point: vectors for point, (_, vectors) in after.items()})
    queries = asyncio.run(site.embedder.embed(QUERIES, Outputs(), max_length=512, priority=Priority.QUERY))
    for result, query in zip(worker.good({**raw, "prefetch": 24})["results"], queries, strict=True):
        assert isinstance(query, Embedding)
        assert query.colbert is not None
        scores = reference.colbert(query.colbert)
        assert [hit["id"] for hit in result["hits"]][:10] == [
            str(i) if isinstance(i, uuid.UUID) else i for i in ranked(scores, 10)
        ]


def test_a_second_run_embeds_nothing(watched: Watched, store: EdgeStore) -> None:
    """Points that are complete are counted and not read, and a kind that points have is not embedded again."""
    site = Site(store, watched.embedder, verifyModel=False)
    site.fill(TEXTS[:10])
    assert site.complete(("sparse",)).completed == 10
    watched.engine.batches.clear()
    again = site.complete(("sparse",))
    assert (again.already, again.completed, again.points, watched.engine.batches) == (10, 0, 10, [])
    before = site.stored()
    assert site.complete().completed == 10
    for point, (_, vectors) in site.stored().items():
        kept = before[point][1].sparse
        assert vectors.sparse is not None
        assert kept is not None
        assert vectors.sparse.values.tobytes() == kept.values.tobytes()


def test_points_that_cannot_be_completed_are_named(watched: Watched, store: EdgeStore, small_multivectors: int) -> None:
    """A point without a text, with one that is too long for ColBERT, or that the model fails on costs no other."""
    site = Site(store, watched.embedder)
    long = "one two three " * small_multivectors
    ids = site.fill(["a fox", None, long, "an empty one follows", "", "a hen"])
    for number in range(2):
        report = site.complete()
        assert (report.points, report.without_text, report.rejected, report.without_weights) == (6, 1, 1, 1)
        assert (report.completed, report.already) == ((3, 0) if not number else (0, 3))
        assert not report.is_complete
        assert report.failure is None
        named = {point.id: point.cause.message for point in report.unfinished}
        assert set(named) == {ids[1], ids[2]}
        assert named[ids[1]] == "payload: must have a text under 'text', got none"
        assert named[ids[2]].startswith("colbert: must have at most 20 rows of 192, got ")
        assert "fox" not in "".join(named.values())
    assert report.rejected == 1
    vectors = site.stored()[ids[4]][1]
    assert vectors.sparse is None
    assert vectors.colbert is not None
    pooled = site.complete(pool_colbert=True)
    assert (pooled.completed, pooled.rejected) == (1, 0)
    assert site.complete(("sparse",)).without_weights == 1


def test_a_text_that_the_model_fails_on_is_rejected_alone(watched: Watched, store: EdgeStore) -> None:
    """A model failure is in the report with its point, and the neighbours are completed."""
    site = Site(store, watched.embedder)
    store.ensure("weights", CollectionSchema(sparse=site.core.collections.wanted.sparse))
    [fox, zebra, hen] = embedded(watched.embedder, ["a fox", "a wolf", "a hen"])
    store.upsert(
        "weights",
        [
            Point(1, {"text": "a fox"}, sparse=fox.sparse),
            Point(2, {"text": "a zebra"}, sparse=zebra.sparse),
            Point(3, {"text": "a hen"}, sparse=hen.sparse),
        ],
    )
    report = site.complete(("dense",), collection="weights")
    assert (report.completed, report.rejected, [point.id for point in report.unfinished]) == (2, 1, [2])


def test_texts_of_frameworks_are_found(embedder: Embedder, store: EdgeStore) -> None:
    """The layout of the config says where texts are, and a text key does in the plain layout; else the points do."""
    site = Site(store, embedder, layout="langchain")
    site.fill(TEXTS[:3], key="page_content")
    assert site.complete(("sparse",)).completed == 3
    with pytest.raises(InvalidRequest, match="textKey must be left out: the payload layout 'langchain'"):
        site.complete(("sparse",), text_key="body")
    plain = Site(store, embedder)
    plain.name = "plain"
    plain.fill(TEXTS[:3], key="the body.en")
    plain.fill(TEXTS[3:6], key="words", first=3)
    with pytest.raises(InvalidRequest, match=r"none of the first 6 points has a text under 'text' \(layout 'plain'\)"):
        plain.complete(("sparse",))
    assert "sparse" not in store.describe("plain").description.vectors
    assert plain.complete(("sparse",), text_key="the body.en").completed == 3
    assert plain.complete(("sparse",), text_key="words").completed == 3
    for key in ("words", "page_content"):
        plain.name = key
        plain.fill(TEXTS[:3], key=key)
        assert plain.complete(("sparse",)).completed == 3


def test_vectors_are_recognised(embedder: Embedder, store: EdgeStore) -> None:
    """A vector of another name is the one of its kind if there is no other; several are refused with their names."""
    site = Site(store, embedder, vectorNames={"dense": "dense"})
    schema = site.core.collections.wanted
    foreign = CollectionSchema(
        site.schema.dense, schema.sparse, names=VectorNames(dense="", sparse="langchain-sparse"), layout="plain"
    )
    store.ensure("notes", foreign)
    store.upsert("notes", [site.point(n, text) for n, text in enumerate(TEXTS[:3])])
    assert site.complete(("sparse",)).completed == 3
    assert set(store.describe("notes").description.vectors) == {"", "langchain-sparse"}
    store.add_vectors("notes", CollectionSchema(sparse=schema.sparse, names=VectorNames(sparse="other")), ("sparse",))
    with pytest.raises(InvalidRequest, match=r"\('langchain-sparse', 'other'\); set vectorNames.sparse"):
        site.complete(("sparse",))
    taken = CollectionSchema(DenseSchema(7), names=VectorNames(dense="sparse"))
    store.ensure("taken", taken)
    with pytest.raises(SchemaMismatch, match=r"sparse\.kind is dense, wanted sparse"):
        site.complete(("sparse",), collection="taken")
    with pytest.raises(NotFound, match="collection 'missing' does not exist"):
        site.complete(("sparse",), collection="missing")


class Meddling:
    """A store that another client uses between the reading of a page and the writing of its vectors.

    Args:
        store: the store.
        meddle: what the other client does, once for each number.
        times: how often.
    """

    def __init__(self, store: Store, meddle: Callable[[int], None], *, times: int = 1) -> None:
        self._store = store
        self._meddle = meddle
        self._left = times
        self._done = 0

    def update_vectors(self, collection: str, points: Sequence[Point]) -> set[PointId]:
        """See `Store.update_vectors`."""
        if self._left:
            self._left -= 1
            self._done += 1
            self._meddle(self._done)
        return self._store.update_vectors(collection, points)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_points_that_are_deleted_meanwhile_do_not_come_back(site: Site) -> None:
    """They are counted as vanished, and all others are completed."""
    ids = site.fill(TEXTS[:12])
    site.core = Operations(
        site.settings,
        site.embedder,
        Meddling(site.store, lambda _: site.store.delete("notes", ids=ids[3:6]) and None),  # type: ignore[arg-type]
    )
    report = site.complete()
    assert (report.points, report.completed, report.vanished, report.is_complete) == (12, 9, 3, True)
    assert set(site.stored()) == {*ids[:3], *ids[6:]}
    site.assert_complete()


@pytest.mark.slow
def test_points_that_are_written_meanwhile_get_the_vectors_of_their_new_text(site: Site) -> None:
    """A point whose text changes, and a new one before the place of the walk, are completed all the same."""
    ids = site.fill(TEXTS[:12])

    def meddle(_number: int) -> None:
        site.store.upsert("notes", [site.point(ids[1], TEXTS[20]), site.point(ids[2], TEXTS[2])])
        site.store.upsert("notes", [site.point(n, TEXTS[n - 80]) for n in (100, 101)])
        site.store.set_payload("notes", [ids[4]], "text", TEXTS[21])

    site.core = Operations(site.settings, site.embedder, Meddling(site.store, meddle))
    report = site.complete()
    assert report.is_complete
    assert report.points == report.completed == 14
    assert site.stored()[ids[1]][0]["text"] == TEXTS[20]
    site.assert_complete()


def test_points_that_never_stop_coming_are_pending(site: Site) -> None:
    """The passes end, and the report says how many points still lack vectors."""
    site.fill(TEXTS[:4])
    site.core = Operations(
        site.settings,
        site.embedder,
        Meddling(site.store, lambda n: site.store.upsert("notes", [site.point(-n % 90 + 1, TEXTS[n])]), times=50),
    )
    report = site.complete(("sparse",))
    assert (report.pending, report.is_complete, report.failure) == (1, False, None)


@pytest.mark.slow
def test_a_failure_is_reported_and_the_next_run_continues(site: Site) -> None:
    """What was written before the store gave out stays, is counted, and is not embedded again."""
    site.fill(TEXTS[:24])

    def fail(_number: int) -> None:
        raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    site.core = Operations(site.settings, site.embedder, Meddling(site.store, fail))
    broken = site.complete()
    assert broken.failure is not None
    assert broken.failure.message == "Qdrant does not answer: UNAVAILABLE"
    assert not broken.is_complete
    site.core = Operations(site.settings, site.embedder, site.store)
    report = site.complete()
    assert (report.already, report.completed) == (broken.completed, 24 - broken.completed)
    site.assert_complete()


def test_a_small_queue_delays_and_refuses_nothing(store: EdgeStore) -> None:
    """Texts that the model's queue cannot hold together are embedded one part after the other."""
    tokenizer = Tokenizer(MINI)
    engine = WatchedEngine(tokenizer, "zebra")
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=256, queue_tokens=300)
    embedder = CrowdedEmbedder(tokenizer, [engine], pool)
    site = Site(store, embedder)
    site.fill(TEXTS[:20])
    engine.gate.clear()
    opener = Timer(0.3, engine.gate.set)
    opener.start()
    report = site.complete()
    embedder.close()
    assert (report.completed, report.is_complete) == (20, True)
    assert embedder.refused


def test_a_point_that_the_store_refuses_is_rejected_alone(embedder: Embedder, double: GrpcDouble) -> None:
    """The batch is halved until the point stands alone."""
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    site = Site(store, embedder)
    ids = site.fill(TEXTS[:12])
    double.refused_ids.add(7)
    report = site.complete()
    assert (report.completed, report.rejected, [point.id for point in report.unfinished]) == (11, 1, [7])
    assert isinstance(report.unfinished[0].cause, StoreRejected)
    assert ids[7] == 7
    store.close()


def test_an_old_server_gets_a_copy_and_the_alias_moves(old: Site) -> None:
    """All points, payloads, vectors and payload indexes are in the copy, and the alias leads to it."""
    ids = old.fill(TEXTS[:24])
    old.store.ensure_index("notes", "n", PayloadIndex("keyword"))
    old.store.alias("current", "notes")
    before = old.stored()
    report = old.complete(collection="current")
    assert report.is_complete
    assert (report.collection, report.alias, report.copied) == ("notes-complete", "current", 24)
    assert (report.points, report.completed) == (24, 24)
    assert old.store.aliases() == {"current": "notes-complete"}
    assert set(old.stored("notes")) == set(ids)
    after = old.stored("current")
    for point, (payload, vectors) in after.items():
        assert payload == before[point][0]
        kept = before[point][1].dense
        assert kept is not None
        assert vectors.dense is not None
        assert np.abs(vectors.dense - kept).max() < 1e-6
    old.assert_complete("current")
    assert old.store.describe("current").description.payload_indexes == {"n": PayloadIndex("keyword")}
    again = old.complete(collection="current")
    assert (again.collection, again.already, again.copied) == ("notes-complete", 24, None)


def test_a_copy_needs_an_alias_before_it_begins(old: Site) -> None:
    """A collection that is named by itself needs an alias, since none can have its name; nothing is created."""
    old.fill(TEXTS[:3])
    with pytest.raises(InvalidRequest, match="alias is required: the points are copied into the new collection"):
        old.complete()
    with pytest.raises(InvalidRequest, match="alias must not be the name of a collection, got 'notes'"):
        old.complete(alias="notes")
    with pytest.raises(InvalidRequest, match="into must be another collection, got 'notes'"):
        old.complete(into="notes", alias="current")
    assert old.store.collections() == ["notes"]
    report = old.complete(into="other", alias="current")
    assert (report.collection, report.alias) == ("other", "current")
    assert old.store.aliases() == {"current": "other"}


def test_a_copy_continues_and_takes_what_is_written_meanwhile(old: Site, double: GrpcDouble) -> None:
    """After a failure the copy goes on where it was; points that come late are in it before the alias moves."""
    old.fill(TEXTS[:20])
    old.store.alias("current", "notes")
    old.core = Operations(
        old.settings,
        old.embedder,
        Meddling(old.store, lambda _: _raise(StoreUnavailable("gone"))),
    )
    broken = old.complete(collection="current")
    assert (broken.copied, broken.alias, broken.completed) == (20, None, 0)
    assert broken.failure is not None
    assert old.store.aliases() == {"current": "notes"}

    def late(_number: int) -> None:
        old.store.upsert("notes", [old.point(n, TEXTS[n]) for n in (30, 31)])

    old.core = Operations(old.settings, old.embedder, Meddling(old.store, late))
    report = old.complete(collection="current")
    assert report.is_complete
    assert (report.copied, report.completed, report.alias) == (2, 22, "current")
    assert old.store.count("current") == 22
    old.assert_complete("current")


def test_a_collection_that_cannot_be_copied_is_refused(old: Site, double: GrpcDouble) -> None:
    """A vector that has no place in the copy would be lost, so that nothing begins."""
    old.fill(TEXTS[:2])
    double.version = (1, 18, 0)
    old.store.add_vectors("notes", CollectionSchema(DenseSchema(7), names=VectorNames(dense="image")), ("dense",))
    with pytest.raises(InvalidRequest, match=r"its vector 'image' is not one of its dense, sparse and ColBERT vectors"):
        old.complete(into="new", alias="current")
    assert old.store.collections() == ["notes"]


def test_into_copies_where_vectors_could_be_added_in_place(site: Site) -> None:
    """With a name of a new collection, the old one stays as it is."""
    site.fill(TEXTS[:5])
    report = site.complete(into="new", alias="current")
    assert (report.collection, report.copied, report.completed, report.alias) == ("new", 5, 5, "current")
    assert set(site.store.describe("notes").description.vectors) == {""}
    site.assert_complete("current")


def _raise(error: Exception) -> None:
    raise error
