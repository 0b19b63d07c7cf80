"""The points of a collection are copied into another one, each once, and what is lost is said before."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embedder.errors import Cancelled, InvalidRequest
from embedder.vectors import KINDS, Kind, SparseVector
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.conformance import conform
from qdrant_sink.copying import (
    CopyPaths,
    PointCopy,
    SourceVectors,
    kept_indexes,
    losses,
    reindexed_schema,
    source_vectors,
)
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import AnswerTooLarge, StoreUnavailable
from qdrant_sink.points import Point, PointId, Stored, Vectors
from qdrant_sink.schema import NAMES, CollectionSchema, PayloadIndex, Placement, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription
from qdrant_sink.store import Store
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SIZE, SPARSE, draft, sample_vectors
from tests.sink.stores import STORES, opened

DENSE_VECTOR = VectorDescription("dense", SIZE, "cosine", datatype="float32", quantization="none", m=16)
SPARSE_VECTOR = VectorDescription("sparse", datatype="float32")
ROWS = VectorDescription("multivector", SIZE, "cosine", "max_sim", datatype="float16", quantization="none", m=0)
ALL_THREE = {"dense": DENSE_VECTOR, "sparse": SPARSE_VECTOR, "colbert": ROWS}


@pytest.fixture
def senders() -> Iterator[ThreadPoolExecutor]:
    """Threads that send batches."""
    with ThreadPoolExecutor(4) as threads:
        yield threads


def point(number: PointId, kinds: Sequence[Kind] = KINDS, *, seed: int | None = None, text: str = "text") -> Point:
    """Create a valid point."""
    index = int(number) % 1000 if seed is None else seed
    payload = {"text": text, "n": str(number), "nested": {"a": [1, None, "é"]}}
    valid = conform(draft(0, id=number, payload=payload, vectors=sample_vectors(index, kinds=kinds)), SCHEMA)
    assert isinstance(valid, Point)
    return valid


def paths(store: Store, collection: str, into: str, **changes: Any) -> CopyPaths:
    """The paths of a copy with the schema of the samples."""
    values: dict[str, Any] = {
        "source": store, "collection": collection, "kinds": KINDS, "names": NAMES,
        "target": store, "into": into, "schema": SCHEMA,
    }  # fmt: skip
    return CopyPaths(**{**values, **changes})


def fetched(
    store: Store, collection: str, names: VectorNames = NAMES, kinds: Sequence[Kind] = KINDS
) -> Mapping[PointId, Stored]:
    """Read all points of a collection without the code of the copy."""
    page, following = store.scroll(collection, {}, False, limit=10_000)
    assert following is None
    return store.fetch(collection, list(page), True, kinds, names=names)


def assert_equal(copies: Mapping[PointId, Stored], originals: Mapping[PointId, Stored]) -> None:
    """Check ids, payloads and vectors of all points."""
    assert set(copies) == set(originals)
    for number, original in originals.items():
        copy = copies[number]
        assert copy.payload == original.payload
        old, new = original.vectors or Vectors(), copy.vectors or Vectors()
        for before, after in ((old.dense, new.dense), (old.colbert, new.colbert)):
            assert (before is None) == (after is None)
            if before is not None:
                np.testing.assert_allclose(np.asarray(after), before, atol=1e-3)
        assert (old.sparse is None) == (new.sparse is None)
        if old.sparse is not None and new.sparse is not None:
            assert new.sparse.indices.tolist() == old.sparse.indices.tolist()
            assert new.sparse.values.tolist() == old.sparse.values.tolist()


def test_a_copy_can_be_repeated(store: Store, collection: str, senders: ThreadPoolExecutor) -> None:
    """Points that the copy has are left as they are; the others are copied with payloads and vectors."""
    target = f"{collection}_b"
    for name in (collection, target):
        store.ensure(name, SCHEMA)
    store.upsert(collection, [point(number) for number in range(20)])
    store.upsert(target, [point(3, text="another")])
    copy = PointCopy(paths(store, collection, target), senders=senders)
    assert (copy.run(), copy.existing) == (19, 1)
    assert (copy.run(), copy.existing, copy.copied, copy.uncopied) == (0, 20, 19, 0)
    before, after = dict(fetched(store, collection)), dict(fetched(store, target))
    assert (after.pop(3).payload or {})["text"] == "another"
    del before[3]
    assert_equal(after, before)


def test_threads_copy_points_of_any_ids_and_kinds(
    store: Store, collection: str, senders: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Integers, UUIDs and points that lack vectors come out as they were, under the names of the new collection."""
    monkeypatch.setattr("qdrant_sink.copying.point_copy.COPY_PAGE_POINTS", 7)
    monkeypatch.setattr("qdrant_sink.copying.point_copy._ROUND_POINTS_WITH_ROWS", 3)
    names = VectorNames("text", "words", "rows")
    schema = replace(SCHEMA, names=names, dense=replace(DENSE, distance="dot", datatype="float16"))
    target = f"{collection}_b"
    store.ensure(collection, SCHEMA)
    store.ensure(target, schema)
    ids: list[PointId] = [*range(60), 2**63, 2**64 - 1, *(uuid.uuid5(uuid.NAMESPACE_URL, str(n)) for n in range(60))]
    held = [[kind for bit, kind in enumerate(KINDS) if index % 7 + 1 & (1 << bit)] for index in range(len(ids))]
    store.upsert(collection, [point(i, kinds, seed=n) for n, (i, kinds) in enumerate(zip(ids, held, strict=True))])
    met: list[int] = []
    copy = PointCopy(paths(store, collection, target, schema=schema), senders=senders, workers=3, observer=met.append)
    assert copy.run() == len(ids)
    assert (max(met), copy.uncopied) == (len(ids), 0)
    assert_equal(fetched(store, target, names), fetched(store, collection))


def test_a_point_that_cannot_be_stored_costs_no_other(edge_store: EdgeStore, senders: ThreadPoolExecutor) -> None:
    """Vectors that other programs have stored and that harm a collection are rejected with their id and the reason."""
    dot = replace(SCHEMA, dense=replace(DENSE, distance="dot"))
    edge_store.ensure("old", dot)
    edge_store.ensure("new", SCHEMA)
    odd = {
        5: Vectors(dense=np.full(SIZE, np.nan, np.float32)),
        6: Vectors(dense=np.zeros(SIZE, np.float32)),
        7: Vectors(sparse=SparseVector(np.array([3, 3], np.uint32), np.array([1.0, 2.0], np.float32))),
    }
    edge_store.upsert("old", [point(number) for number in range(5)])
    edge_store.upsert(
        "old", [Point(number, {}, vectors.dense, vectors.sparse, vectors.colbert) for number, vectors in odd.items()]
    )
    copy = PointCopy(paths(edge_store, "old", "new"), senders=senders)
    assert copy.run() == 5
    assert (copy.uncopied, edge_store.count("new")) == (3, 5)
    reasons = {unfinished.id: unfinished.cause.message for unfinished in copy.unfinished}
    assert reasons[5] == "dense[0]: must be finite in float32, got nan"
    assert reasons[6] == "dense: the norm must be 0.001 to 1e+18, got 0"
    assert "must be unique" in reasons[7]
    assert copy.run() == 0
    assert copy.uncopied == 3


class Reading:
    """A store whose reads of points are scripted."""

    def __init__(self, store: Store, read: Any) -> None:
        self._store = store
        self._read = read

    def fetch(self, collection: str, ids: Sequence[PointId], *arguments: Any, **more: Any) -> Any:
        """See `Store.fetch`."""
        self._read(ids)
        return self._store.fetch(collection, ids, *arguments, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_an_answer_that_is_too_large_is_read_in_parts(edge_store: EdgeStore, senders: ThreadPoolExecutor) -> None:
    """Points of any size are copied, as long as a single one can be read."""

    def read(ids: Sequence[PointId]) -> None:
        if len(ids) > 2:
            raise AnswerTooLarge("m")

    for name in ("old", "new"):
        edge_store.ensure(name, SCHEMA)
    edge_store.upsert("old", [point(number) for number in range(11)])
    copy = PointCopy(paths(edge_store, "old", "new", source=Reading(edge_store, read)), senders=senders)
    assert copy.run() == 11
    assert_equal(fetched(edge_store, "new"), fetched(edge_store, "old"))


def test_an_error_ends_all_threads_and_the_next_run_continues(
    edge_store: EdgeStore, senders: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was written before an error stays, is counted, and is not written again."""
    monkeypatch.setattr("qdrant_sink.copying.point_copy.COPY_PAGE_POINTS", 5)
    for name in ("old", "new"):
        edge_store.ensure(name, SCHEMA)
    edge_store.upsert("old", [point(number) for number in range(50)])
    reads: list[int] = []

    def read(ids: Sequence[PointId]) -> None:
        reads.append(len(ids))
        if len(reads) > 4:
            raise StoreUnavailable("gone")

    copy = PointCopy(paths(edge_store, "old", "new", source=Reading(edge_store, read)), senders=senders, workers=3)
    with pytest.raises(StoreUnavailable, match="gone"):
        copy.run()
    stored = edge_store.count("new")
    assert 0 < stored == copy.copied < 50

    def stop() -> None:
        raise Cancelled("interrupted")

    with pytest.raises(Cancelled):
        PointCopy(paths(edge_store, "old", "new"), senders=senders, check=stop).run()
    again = PointCopy(paths(edge_store, "old", "new"), senders=senders)
    assert (again.run(), again.existing) == (50 - stored, stored)


@pytest.mark.parametrize("kind", STORES)
def test_a_copy_from_the_embedded_store_into_another(
    kind: str, tmp_path: Path, collection: str, senders: ThreadPoolExecutor
) -> None:
    """The two collections may be in two stores of different kinds."""
    (tmp_path / "target").mkdir()
    source = EdgeStore(tmp_path / "source")
    with opened(kind, tmp_path / "target") as target:
        source.ensure(collection, SCHEMA)
        target.ensure(collection, SCHEMA)
        source.upsert(collection, [point(number) for number in range(30)])
        copy = PointCopy(paths(source, collection, collection, target=target), senders=senders)
        assert copy.run() == 30
        assert_equal(fetched(target, collection), fetched(source, collection))
    source.close()


def planned(
    vectors: Mapping[str, VectorDescription],
    wanted: CollectionSchema = SCHEMA,
    *,
    embed: Sequence[Kind] = (),
    chosen: Mapping[Kind, str] | None = None,
    **description: Any,
) -> tuple[CollectionSchema, list[str], SourceVectors]:
    """Plan the copy of a collection with these vectors."""
    actual = CollectionDescription(vectors, **description)
    source = source_vectors("notes", actual, wanted.names, chosen or {}, wanted.kinds, replaced=embed)
    copied = [kind for kind in wanted.kinds if kind not in embed]
    schema = reindexed_schema(wanted, CollectionState(actual, 3, None, "green"), source, copied)
    return schema, losses(schema, actual, source, copied), source


def test_the_new_schema_has_what_the_operator_set_and_else_what_the_collection_has() -> None:
    """A quantization that is set is changed, and names, distances and the graph that are not set stay."""
    tuned = replace(DENSE_VECTOR, distance="dot", m=32, on_disk=True)
    wanted = replace(
        SCHEMA,
        dense=replace(DENSE, quantization="int8"),
        placement=Placement(shards=3),
        explicit=frozenset({"dense.quantization", "shards"}),
    )
    old = {"": tuned, "langchain-sparse": replace(SPARSE_VECTOR, modifier="idf"), "colbert": ROWS}
    schema, lost, source = planned(old, wanted, payload_on_disk=True, placement=Placement(1, 2))
    assert schema.names == source.names == VectorNames("", "langchain-sparse", "colbert")
    assert schema.dense == replace(DENSE, distance="dot", m=32, on_disk=True, quantization="int8")
    assert schema.sparse == replace(SPARSE, modifier="idf")
    assert schema.colbert == replace(COLBERT, on_disk=False)
    assert (schema.payload_on_disk, schema.placement) == (True, Placement(3, 2))
    assert lost == []


def test_a_graph_that_is_deferred_is_built_in_the_copy() -> None:
    """Of a deferred graph nothing is known but the config; without edges in the config there is none."""
    deferred = {**ALL_THREE, "dense": replace(DENSE_VECTOR, m=0)}
    schema, _, _ = planned(deferred)
    assert schema.dense == DENSE
    without = replace(SCHEMA, dense=replace(DENSE, m=0), explicit=frozenset({"dense.m"}))
    schema, _, _ = planned(deferred, without)
    assert schema.dense is not None
    assert schema.dense.m == 0


def test_names_are_changed_where_they_are_set() -> None:
    """A name in the config is the name in the new collection; two vectors of one name are refused."""
    wanted = replace(SCHEMA, names=VectorNames("text", "sparse", "colbert"), explicit=frozenset({"vectorNames.dense"}))
    schema, _, source = planned(ALL_THREE, wanted)
    assert (schema.names.dense, source.names.dense) == ("text", "dense")
    taken = replace(wanted, names=VectorNames("colbert", "sparse", "colbert"))
    with pytest.raises(InvalidRequest, match="vectorNames: must be different names, got 'colbert' twice"):
        planned(ALL_THREE, taken)


@pytest.mark.parametrize(
    ("stored", "wanted", "sentences"),
    [
        ({"distance": "cosine"}, {"distance": "dot"}, ["stored with norm 1, and stay so"]),
        ({"distance": "dot"}, {"distance": "cosine"}, ["so their norms are lost"]),
        ({"datatype": "float16"}, {"datatype": "float32"}, ["float16 stay rounded to it"]),
        ({"datatype": "float32"}, {"datatype": "float16"}, ["vectors are rounded to float16"]),
        ({"distance": "euclid"}, {}, []),
    ],
)
def test_what_is_lost_is_said(stored: dict[str, Any], wanted: dict[str, Any], sentences: list[str]) -> None:
    """Norms and precision that the copy cannot have are named, one sentence each."""
    explicit = frozenset(f"dense.{field}" for field in wanted)
    schema = replace(SCHEMA, dense=replace(DENSE, **wanted), explicit=explicit)
    _, lost, _ = planned({**ALL_THREE, "dense": replace(DENSE_VECTOR, **stored)}, schema)
    assert len(lost) == len(sentences)
    for sentence, wanted_sentence in zip(lost, sentences, strict=True):
        assert sentence.startswith("dense: ")
        assert wanted_sentence in sentence


def test_components_of_a_byte_are_not_copied() -> None:
    """What the model computed is not in them, so that they can only be embedded anew."""
    bytes_ = {**ALL_THREE, "dense": replace(DENSE_VECTOR, datatype="uint8")}
    with pytest.raises(InvalidRequest, match=r"the dense vector is stored as uint8, .*; embed it anew"):
        planned(bytes_)
    schema, lost, _ = planned(bytes_, embed=("dense",))
    assert schema.dense == DENSE
    assert lost == []


def test_the_vector_to_copy_is_found_or_named() -> None:
    """Of several vectors the request names one; the others are left out, which is said."""
    several = {**ALL_THREE, "dense": replace(DENSE_VECTOR, m=8)}
    del several["dense"]
    several |= {"a": DENSE_VECTOR, "b": replace(DENSE_VECTOR, size=3)}
    with pytest.raises(
        InvalidRequest,
        match=r"could be the dense one \('a', 'b'\)",
    ):
        planned(several)
    schema, lost, source = planned(several, chosen={"dense": "b"})
    assert (schema.dense and schema.dense.size, source.left, lost) == (3, ("a",), ["the vector 'a' is left out"])
    with pytest.raises(InvalidRequest, match=r"vectors: must name a dense vector of the collection \('a', 'b'\), got"):
        planned(several, chosen={"dense": "sparse"})
    _, _, source = planned(several, embed=("dense",))
    assert source.kinds == ("sparse", "colbert")


def test_payload_indexes_stay_unless_the_config_has_others() -> None:
    """An index of the old collection on a key of the config gives way to that of the config."""
    actual = CollectionDescription(
        ALL_THREE, payload_indexes={"topic": PayloadIndex("text"), "year": PayloadIndex("integer")}
    )
    schema = replace(SCHEMA, payload_indexes={"topic": "keyword"})
    assert kept_indexes(schema, actual) == {"year": PayloadIndex("integer")}
