"""A collection is copied into a new one: all points are there, embedded anew where asked, and the alias moves once."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

import corpus
from embedder import KINDS, Embedder, InvalidRequest, Kind, NotFound
from qdrant_sink import (
    ColbertSchema,
    CollectionSchema,
    DenseSchema,
    ModelIdentity,
    ModelMismatch,
    PayloadIndex,
    Point,
    PointId,
    SchemaMismatch,
    SparseSchema,
    Store,
    StoreUnavailable,
    VectorNames,
    Vectors,
)
from qdrant_sink.edge import EdgeStore
from qdrant_sink.server import ServerStore
from service.operations import Operations, Reindex, ReindexProgress, ReindexReport, ReindexRequest
from service.operations.store_access import StoreAccess
from service.settings import Settings
from tests.service.client import ENVIRONMENT
from tests.service.doubles import Watched
from tests.service.test_completion import embedded
from tests.sink.grpc_double import GrpcDouble
from tests.sink.stores import EMBEDDED_FIRST

TEXTS = [passage.text[:200] for passage in corpus.passages()[:40]]
OTHER = ModelIdentity("another/model", None)


class Site:
    """A collection with all three kinds of vectors in a store, and the operation over it."""

    def __init__(self, store: Store, embedder: Embedder, target: Store | None = None, **config: Any) -> None:
        self.store = store
        self.target = store if target is None else target
        self.embedder = embedder
        self.configured(**config)
        self.schema = CollectionSchema(
            DenseSchema(embedder.hidden_size), SparseSchema(), ColbertSchema(embedder.colbert_size)
        )

    def configured(self, **config: Any) -> None:
        """Use this collection config from now on."""
        variables = {**ENVIRONMENT, "QDRANT_COLLECTION_CONFIG": json.dumps(config)}
        self.settings = Settings.from_environment(variables)
        self.core = Operations(self.settings, self.embedder, self.target)

    def fill(
        self, texts: Sequence[str | None], *, first: int = 0, kinds: Sequence[Kind] = KINDS, noise: bool = False
    ) -> list[PointId]:
        """Store a point for each text, with an integer or a UUID as its id.

        Args:
            texts: the texts; None for a point without one.
            first: number of the first point.
            kinds: kinds of vectors that the points have.
            noise: whether the dense vectors are those of no text.
        """
        embeddings = embedded(self.embedder, [text or "nothing" for text in texts])
        self.store.ensure("notes-v1", self.schema)
        ids: list[PointId] = [n if n % 3 else uuid.UUID(int=2**100 + n) for n in range(first, first + len(texts))]
        draw = np.random.default_rng(1)
        points = []
        for point, text, vectors in zip(ids, texts, embeddings, strict=True):
            payload = {"n": str(point), "nested": {"a": [1, None, "é"]}, **({} if text is None else {"text": text})}
            dense = draw.normal(size=self.embedder.hidden_size).astype(np.float32) if noise else vectors.dense
            points.append(
                Point(
                    point,
                    payload,
                    dense if "dense" in kinds else None,
                    vectors.sparse if "sparse" in kinds else None,
                    vectors.colbert if "colbert" in kinds else None,
                    self.schema.names,
                )
            )
        self.store.upsert("notes-v1", points)
        return ids

    def run(self, collection: str = "notes", into: str = "notes-v2", **fields: Any) -> ReindexReport:
        """Copy the collection; keywords that are no fields of the request go to the operation."""
        more = {name: fields.pop(name) for name in ("progress", "stopping", "say") if name in fields}
        return asyncio.run(self.operation()(ReindexRequest(collection, into, **fields), **more))

    def operation(self) -> Reindex:
        """The operation with the model."""
        return self.core.reindex

    def assert_copied(
        self, into: str = "notes-v2", names: VectorNames | None = None, *, embed: Sequence[Kind] = (), but: int = 0
    ) -> None:
        """Check that the new collection has the points of the old one: ids, payloads, and every vector.

        Args:
            into: the new collection.
            names: names of the vectors in the new collection; None for those of the old one.
            embed: kinds whose vectors are those of the texts.
            but: number of points that are missing.
        """
        before = read(self.store, "notes-v1", self.schema.names)
        after = read(self.target, into, names or self.schema.names)
        assert set(after) <= set(before)
        assert len(after) == len(before) - but
        texts = embedded(self.embedder, [payload.get("text") or "nothing" for payload, _ in before.values()])
        computed = dict(zip(before, texts, strict=True))
        for point, (payload, vectors) in after.items():
            old_payload, old = before[point]
            assert payload == old_payload
            for kind in KINDS:
                wanted = getattr(computed[point] if kind in embed else old, kind)
                got = getattr(vectors, kind)
                if kind == "sparse" and wanted is not None:
                    assert got.indices.tolist() == wanted.indices.tolist()
                    np.testing.assert_allclose(got.values, wanted.values, atol=1e-4)
                elif wanted is None:
                    assert got is None
                else:
                    np.testing.assert_allclose(got, wanted, atol=2e-3)


def read(store: Store, collection: str, names: VectorNames) -> Mapping[PointId, tuple[Any, Vectors]]:
    """Read all points of a collection in the order of their ids, without the code of the copy."""
    page, following = store.scroll(collection, {}, False, limit=10_000)
    assert following is None
    present = store.description(collection).vectors
    kinds = [kind for kind in KINDS if names.of(kind) in present]
    points = store.fetch(collection, list(page), True, kinds, names=names)
    return {point: (points[point].payload, points[point].vectors or Vectors()) for point in page}


@pytest.fixture(params=EMBEDDED_FIRST)
def site(request: pytest.FixtureRequest, embedder: Embedder, tmp_path: Path) -> Iterator[Site]:
    """An empty site on each kind of store."""
    if request.param == "edge":
        store: Store = EdgeStore(tmp_path / "copied")
        yield Site(store, embedder)
        store.close()
        return
    double = GrpcDouble(tmp_path)
    store = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    yield Site(store, embedder)
    store.close()
    double.stop()


class Meddling:
    """A store that another client uses at the beginning of some calls.

    Args:
        store: the store.
        method: name of the calls.
        meddle: what the other client does, once for each number.
        times: how often.
    """

    def __init__(self, store: Store, method: str, meddle: Callable[[int], object], *, times: int = 1) -> None:
        self._store = store
        self._method = method
        self._meddle = meddle
        self._left = times
        self._done = 0

    def __getattr__(self, name: str) -> Any:
        call = getattr(self._store, name)
        if name == self._method and self._left:
            self._left -= 1
            self._done += 1
            self._meddle(self._done)
        return call


def test_a_collection_is_copied_and_the_alias_moves(site: Site) -> None:
    """All points are in the new collection, with its schema and the payload indexes of both; the old one stays."""
    site.fill(TEXTS)
    site.store.ensure_index("notes-v1", "n", PayloadIndex("keyword"))
    site.store.alias("notes", "notes-v1")
    site.configured(dense={"quantization": "int8"}, vectorNames={"sparse": "words"}, payloadIndexes={"year": "integer"})
    progress: list[ReindexProgress] = []
    report = site.run(progress=progress.append)
    assert report == ReindexReport(
        "notes-v1", "notes-v2", points=40, stored=40, copied=40, alias="notes", previous="notes-v1"
    )
    assert report.is_complete
    assert {step.stage for step in progress} == {"copy", "index", "check"}
    assert site.store.aliases() == {"notes": "notes-v2"}
    site.assert_copied(names=VectorNames(sparse="words"))
    description = site.store.description("notes-v2")
    assert description.vectors["dense"].quantization == "int8"
    assert set(description.payload_indexes) == {"n", "year"}
    state = site.store.describe("notes-v2")
    assert state.status == "green"
    assert description.vectors["dense"].m == 16
    assert site.store.count("notes-v1") == 40


def test_a_finished_copy_is_left_alone(site: Site) -> None:
    """After the alias moved, the same command copies nothing: points that were deleted since do not come back."""
    ids = site.fill(TEXTS[:12])
    site.store.alias("notes", "notes-v1")
    site.run()
    site.store.delete("notes", ids=ids[:2])
    for collection, alias in (("notes", None), ("notes-v1", "notes")):
        report = site.run(collection, alias=alias)
        assert (report.is_finished, report.is_complete, report.copied, report.stored) == (True, True, 0, 10)
    report = site.run("notes-v1", alias="notes", again=True)
    assert (report.copied, report.already, report.alias) == (2, 10, "notes")
    site.assert_copied()


def test_without_an_alias_the_points_are_copied_alone(site: Site) -> None:
    """A collection that is named itself is copied, and no alias is made."""
    site.fill(TEXTS[:9])
    report = site.run("notes-v1")
    assert (report.copied, report.alias, report.is_complete) == (9, None, True)
    assert site.store.aliases() == {}
    again = site.run("notes-v1")
    assert (again.copied, again.already, again.is_complete) == (0, 9, True)


def test_vectors_are_embedded_anew_for_another_model(site: Site) -> None:
    """Nothing but ids and payloads is taken from a collection of another model, in vectors of another size."""
    foreign = CollectionSchema(DenseSchema(7, "euclid"), model=OTHER)
    site.store.ensure("notes-v1", foreign)
    texts = [*TEXTS[:20], ""]
    dense = np.arange(7, dtype=np.float32)
    site.store.upsert("notes-v1", [Point(n, {"text": text}, dense) for n, text in enumerate(texts)])
    report = site.run("notes-v1", embed=KINDS, alias="notes")
    assert (report.copied, report.rejected, report.without_text, report.alias) == (21, 0, 0, "notes")
    points = read(site.store, "notes", VectorNames())
    for (payload, vectors), wanted in zip(points.values(), embedded(site.embedder, texts), strict=True):
        assert payload == {"text": payload["text"]}
        assert vectors.dense is not None
        assert wanted.dense is not None
        np.testing.assert_allclose(vectors.dense, wanted.dense, atol=1e-4)
        np.testing.assert_allclose(np.asarray(vectors.colbert), np.asarray(wanted.colbert), atol=2e-3)
        assert (vectors.sparse is None) == (payload["text"] == "")
        if vectors.sparse is not None and wanted.sparse is not None:
            assert vectors.sparse.indices.tolist() == wanted.sparse.indices.tolist()
    model = site.store.describe("notes").model
    assert model is not None
    assert model.name == "mini"
    assert site.store.description("notes").vectors["dense"].distance == "euclid"


def test_a_missing_kind_is_embedded_and_the_others_are_copied(site: Site) -> None:
    """A point without a text is copied without the kind, and counted."""
    site.schema = CollectionSchema(DenseSchema(site.embedder.hidden_size), SparseSchema())
    site.fill([*TEXTS[:10], None], kinds=("dense", "sparse"))
    site.store.alias("notes", "notes-v1")
    report = site.run(embed=("colbert",))
    assert (report.copied, report.without_text, report.rejected, report.alias) == (11, 1, 0, "notes")
    assert not report.is_complete
    before, after = read(site.store, "notes-v1", site.schema.names), read(site.store, "notes", site.schema.names)
    wanted = embedded(site.embedder, [payload.get("text", "nothing") for payload, _ in before.values()])
    for (point, (payload, vectors)), computed in zip(after.items(), wanted, strict=True):
        old_payload, old = before[point]
        assert payload == old_payload
        np.testing.assert_allclose(np.asarray(vectors.dense), np.asarray(old.dense), atol=1e-6)
        if "text" in payload:
            np.testing.assert_allclose(np.asarray(vectors.colbert), np.asarray(computed.colbert), atol=2e-3)
        else:
            assert vectors.colbert is None


@pytest.mark.slow
def test_only_the_missing_points_are_embedded(watched: Watched, tmp_path: Path) -> None:
    """A second run computes nothing for points that are copied, and a copy without embedding never uses the model."""
    store = EdgeStore(tmp_path / "copied")
    site = Site(store, watched.embedder)
    site.fill(TEXTS[:10])
    watched.engine.batches.clear()
    assert site.run("notes-v1", "plain").copied == 10
    assert watched.engine.batches == []
    assert site.run("notes-v1", embed=("dense",)).copied == 10
    assert sum(len(batch) for batch in watched.engine.batches) >= 10
    site.fill(TEXTS[10:12], first=10)
    watched.engine.batches.clear()
    assert site.run("notes-v1", embed=("dense",)).copied == 2
    assert sum(len(batch) for batch in watched.engine.batches) == 2
    store.close()


def test_points_that_cannot_be_embedded_keep_the_alias_back(site: Site, small_multivectors: int) -> None:
    """They are named with the reason, and with `allow_rejected` the alias moves without them."""
    long = "one two three " * small_multivectors
    ids = site.fill(["a fox", "a hen", None, long])
    site.configured(kinds=["colbert"])
    for allow in (False, True):
        report = site.run("notes-v1", embed=("colbert",), alias="notes", allow_rejected=allow)
        assert (report.rejected, report.stored, report.points) == (2, 2, 4)
        assert report.alias == ("notes" if allow else None)
        assert not report.is_complete
        reasons = {point.id: point.cause.message for point in report.unfinished}
        assert reasons[ids[2]] == "payload: must have a text under 'text', got none"
        assert reasons[ids[3]].startswith("colbert: must have at most 20 rows of 192")


def test_vectors_of_another_model_are_not_mixed_with_new_ones(site: Site) -> None:
    """To add a kind to vectors of another model is refused before anything is created."""
    site.schema = CollectionSchema(DenseSchema(site.embedder.hidden_size))
    site.fill(TEXTS[:20], kinds=("dense",), noise=True)
    with pytest.raises(ModelMismatch, match="dense"):
        site.run("notes-v1", embed=("sparse",))
    assert site.store.collections() == ["notes-v1"]


def test_a_copy_goes_on_with_the_same_model_only(site: Site) -> None:
    """An unfinished copy of embedded vectors is not filled with the old ones."""
    site.fill(TEXTS[:4])
    site.store.ensure(
        "notes-v2", CollectionSchema(site.schema.dense, site.schema.sparse, site.schema.colbert, model=OTHER)
    )
    with pytest.raises(InvalidRequest, match=r"into must be .* and 'notes-v2' was made for 'another/model'"):
        site.run("notes-v1")
    assert site.store.count("notes-v2") == 0


def test_what_cannot_begin_creates_nothing(site: Site) -> None:
    """Each message names the field and the way out."""
    ids = site.fill(TEXTS[:4])
    site.store.ensure("other", site.schema)
    site.store.upsert("other", [Point(77, {"text": "x"}, embedded(site.embedder, ["x"])[0].dense)])
    site.store.alias("alias", "other")
    for fields, message in (
        ({"into": "notes-v1"}, "into must be another collection, got 'notes-v1'"),
        ({"into": "alias"}, "into must not be an alias, got 'alias'"),
        ({"into": "other"}, "none of the first 1 points of 'other' is one of 'notes-v1'"),
        ({"alias": "other"}, "alias must not be the name of a collection, got 'other'"),
        (
            {"kinds": ("dense",), "embed": ("sparse",)},
            r"embed must be among the kinds of the new collection \(dense\), got 'sparse'; name it there too",
        ),
        ({"embed": ("dense",), "text_key": "body"}, "none of the first 4 points has a text under 'body'"),
        ({"vectors": {"dense": "x"}}, r"vectors: must name a dense vector of the collection \('dense'\), got 'x'"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            site.run("notes-v1", **fields)
    with pytest.raises(NotFound, match="collection 'missing' does not exist"):
        site.run("missing")
    with pytest.raises(InvalidRequest, match="embed needs the model"):
        asyncio.run(
            Reindex(site.settings, StoreAccess(site.settings, site.store, lambda: None))(
                ReindexRequest("notes-v1", "notes-v2", embed=("dense",))
            )
        )
    assert site.store.collections() == ["notes-v1", "other"]
    assert set(read(site.store, "notes-v1", site.schema.names)) == set(ids)


def test_a_vector_is_left_out_only_if_the_kinds_are_named(site: Site) -> None:
    """A smaller collection is made on purpose, and says what it has not."""
    site.fill(TEXTS[:6])
    site.store.ensure("sparse", CollectionSchema(sparse=SparseSchema()))
    site.store.ensure("two", CollectionSchema(DenseSchema(7), names=VectorNames("text")))
    site.store.add_vectors("two", CollectionSchema(DenseSchema(7), names=VectorNames("image")), ("dense",))
    with pytest.raises(InvalidRequest, match=r"kinds must say which .* the vectors 'image' of 'two' would be left"):
        site.run("two", "three", vectors={"dense": "text"})
    with pytest.raises(
        InvalidRequest, match=r"kinds must be kinds that the collection has \(sparse\) or that are embedded"
    ):
        site.run("sparse", kinds=("dense",))
    report = site.run("notes-v1", kinds=("dense", "sparse"))
    assert report.losses == ("the vector 'colbert' is left out",)
    assert report.is_complete
    assert set(site.store.description("notes-v2").vectors) == {"dense", "sparse"}


def test_a_collection_that_exists_with_another_schema_is_refused(site: Site) -> None:
    """An unfinished copy is continued with the settings it was begun with."""
    site.fill(TEXTS[:4])
    site.store.ensure("notes-v2", site.schema)
    site.configured(dense={"distance": "dot"})
    with pytest.raises(SchemaMismatch, match=r"dense\.distance is cosine, wanted dot"):
        site.run("notes-v1")


def test_points_that_are_added_meanwhile_are_copied_before_the_alias_moves(site: Site) -> None:
    """A point that arrives while the graph is built is in the new collection when the alias leads there."""
    site.fill(TEXTS[:10])
    site.store.alias("notes", "notes-v1")
    site.core = Operations(
        site.settings,
        site.embedder,
        Meddling(site.store, "build_index", lambda _: site.fill(TEXTS[20:23], first=20)),
    )
    report = site.run()
    assert (report.copied, report.points, report.stored, report.alias) == (13, 13, 13, "notes")
    site.assert_copied()


def test_points_that_are_deleted_meanwhile_keep_the_alias_back_until_they_are_pruned(site: Site) -> None:
    """The numbers are compared; with `prune` exactly the deleted points go."""
    ids = site.fill(TEXTS[:10])
    site.store.alias("notes", "notes-v1")
    meddling = Meddling(site.store, "build_index", lambda _: site.store.delete("notes-v1", ids=ids[2:4]))
    site.core = Operations(site.settings, site.embedder, meddling)
    report = site.run()
    assert (report.points, report.stored, report.difference, report.alias) == (8, 10, 2, None)
    assert not report.is_complete
    pruned = site.run(prune=True)
    assert (pruned.pruned, pruned.copied, pruned.difference, pruned.alias) == (2, 0, 0, "notes")
    site.assert_copied()


def test_points_that_arrive_with_the_move_of_the_alias_are_reported(site: Site) -> None:
    """They are in the old collection alone, which is said, and `again` copies them."""
    site.fill(TEXTS[:5])
    site.store.alias("notes", "notes-v1")
    meddling = Meddling(site.store, "alias", lambda _: site.fill(TEXTS[9:11], first=9))
    site.core = Operations(site.settings, site.embedder, meddling)
    report = site.run()
    assert (report.late, report.alias, report.is_complete) == (2, "notes", False)
    assert site.run("notes-v1", alias="notes", again=True).copied == 2
    site.assert_copied()


def test_an_error_is_reported_and_the_same_request_continues(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was copied before the store gave out stays, and the alias leads to the old collection until the end."""
    monkeypatch.setattr("qdrant_sink.copying.point_copy._ROUND_POINTS_WITH_ROWS", 4)
    site.fill(TEXTS)
    site.store.alias("notes", "notes-v1")
    calls: list[int] = []

    def fail(number: int) -> None:
        calls.append(number)
        if number > 3:
            raise StoreUnavailable("Qdrant does not answer: UNAVAILABLE")

    meddling = Meddling(site.store, "upsert", fail, times=100)
    site.core = Operations(site.settings, site.embedder, meddling)
    broken = site.run(workers=2)
    assert broken.failure is not None
    assert broken.failure.message == "Qdrant does not answer: UNAVAILABLE"
    assert (broken.alias, broken.copied) == (None, site.store.count("notes-v2"))
    assert site.store.aliases() == {"notes": "notes-v1"}
    stopping = Event()
    stopping.set()
    site.core = Operations(site.settings, site.embedder, site.store)
    stopped = site.run(stopping=stopping)
    assert stopped.failure is not None
    assert stopped.failure.message == "interrupted; run the same command again to continue"
    report = site.run()
    assert (report.already, report.copied, report.alias) == (broken.copied, 40 - broken.copied, "notes")
    site.assert_copied()


def test_the_way_back_and_the_end_of_the_old_collection(site: Site) -> None:
    """The alias leads back and forth; the old collection goes only when it is not in use, and by its own name."""
    site.fill(TEXTS[:6])
    site.store.alias("notes", "notes-v1")
    previous = site.core.reindex.previous
    with pytest.raises(NotFound, match="collection 'notes-v2' does not exist"):
        asyncio.run(previous.drop("notes-v1", "notes-v2"))
    site.run()
    back = asyncio.run(previous.back("notes-v1", "notes-v2", "notes"))
    assert (back.points, back.stored, site.store.aliases()) == (6, 6, {"notes": "notes-v1"})
    with pytest.raises(InvalidRequest, match="alias must lead to 'notes-v2' to be moved back, and 'notes' leads to"):
        asyncio.run(previous.back("notes-v1", "notes-v2", "notes"))
    with pytest.raises(InvalidRequest, match="must not be in use, and the alias 'notes' leads to 'notes-v1'"):
        asyncio.run(previous.drop("notes-v1", "notes-v2"))
    with pytest.raises(InvalidRequest, match="collection must not be an alias, got 'notes'"):
        asyncio.run(previous.drop("notes", "notes-v2"))
    with pytest.raises(InvalidRequest, match="into must be another collection"):
        asyncio.run(previous.drop("notes-v1", "notes-v1"))
    assert site.run().alias == "notes"
    asyncio.run(previous.drop("notes-v1", "notes-v2"))
    assert site.store.collections() == ["notes-v2"]
    assert site.store.count("notes") == 6


def test_an_unfinished_copy_does_not_cost_the_old_collection(site: Site) -> None:
    """Without an alias the new collection must have as many points as the old one."""
    ids = site.fill(TEXTS[:6])
    site.run("notes-v1")
    site.store.delete("notes-v2", ids=ids[:1])
    with pytest.raises(InvalidRequest, match=r"into must have the points of 'notes-v1' \(6\) or an alias"):
        asyncio.run(site.core.reindex.previous.drop("notes-v1", "notes-v2"))
    assert site.store.count("notes-v1") == 6


def test_a_collection_moves_from_the_embedded_store_to_a_server(embedder: Embedder, tmp_path: Path) -> None:
    """The two collections may have one name, and vectors may be embedded on the way."""
    source = EdgeStore(tmp_path / "edge")
    (tmp_path / "double").mkdir()
    double = GrpcDouble(tmp_path / "double")
    target = ServerStore("http://127.0.0.1:9", grpc_port=double.port, deadline_s=3.0, pause_s=0.02)
    site = Site(source, embedder, target)
    site.fill(TEXTS[:10])
    reindex = site.core.reindex.reading(source)
    report = asyncio.run(reindex(ReindexRequest("notes-v1", "notes-v1", alias="notes")))
    assert (report.copied, report.alias, report.is_complete) == (10, "notes", True)
    site.assert_copied("notes-v1")
    report = asyncio.run(reindex(ReindexRequest("notes-v1", "notes-v2", embed=("sparse",))))
    assert report.is_complete
    site.assert_copied(embed=("sparse",))
    with pytest.raises(InvalidRequest, match="alias cannot lead back to a collection of another store"):
        asyncio.run(reindex.previous.back("notes-v1", "notes-v2", "notes"))
    asyncio.run(reindex.previous.drop("notes-v1", "notes-v1"))
    assert source.collections() == []
    reindex.close()
    double.stop()


def test_a_request_is_checked() -> None:
    """Callers in Python get an error for what the command line refuses."""
    for fields in ({"kinds": ("dense", "dense")}, {"embed": ("sparse", "sparse")}, {"workers": 0}, {"workers": 65}):
        with pytest.raises(ValueError, match="must"):
            ReindexRequest("a", "b", **fields)
