"""Collections of every store: names, configuration, payload indexes, aliases and deferred graphs."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedder.errors import InvalidRequest, NotFound
from embedder.vectors import KINDS
from qdrant_sink.conformance import conform
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.points import Point
from qdrant_sink.schema import CollectionSchema, VectorNames
from qdrant_sink.searching import recommend, run
from qdrant_sink.store import Store
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE, draft, sample_vectors, search_by
from tests.sink.writing import write

NAMES = VectorNames(dense="text-dense", sparse="dense", colbert="späte Interaktion")
UNNAMED = VectorNames(dense="", sparse="langchain-sparse", colbert="colbert")
"""With a name that is another kind's, and one that is not ASCII."""

INDEXED = replace(
    SCHEMA,
    tenant_key="tenant.id",
    payload_indexes={
        "topic": "keyword",
        "year": "integer",
        "price": "float",
        "public": "bool",
        "at": "datetime",
        "ref": "uuid",
        "body": "text",
        "place": "geo",
    },
)


def _point(index: int) -> Point:
    point = conform(draft(index), SCHEMA)
    assert isinstance(point, Point)
    return point


# Names


@pytest.mark.parametrize("names", [NAMES, UNNAMED, VectorNames()], ids=["other", "unnamed", "default"])
def test_every_collection_can_have_its_own_names(store: Store, collection: str, names: VectorNames) -> None:
    """Vectors with any names are stored, searched, reranked, recommended, indexed and returned by one store."""
    schema = replace(SCHEMA, names=names)
    store.ensure(collection, schema)
    store.ensure(collection, schema)
    store.defer_index(collection, schema)
    assert write(store, collection, [draft(i) for i in range(20)], schema).stored == 20
    store.restore_index(collection, schema)
    store.build_index(collection, schema, timeout_s=60)
    for name in (names.dense, names.sparse, names.colbert):
        assert store.count(collection, {"must": [{"has_vector": name}]}) == 20
    query = draft(7).vectors
    search = search_by(query.dense, query.sparse, query.colbert, schema=schema, limit=1, with_vectors=KINDS)
    [like, _] = recommend(
        store, collection, [7], [], scope=collection, kinds=KINDS, where=None, field="like", schema=schema
    )
    similar = replace(search, vectors=like)
    changes: list[dict[str, Any]] = [{}, {"rerank": "colbert"}, {"using": ("colbert",)}, {"group_by": "parity"}]
    for asked in (similar, *(search.with_options(**change) for change in changes)):
        [[hit]] = run(store, collection, [asked])
        assert hit.id == 7
        assert hit.vectors is not None
        assert hit.vectors.dense is not None
        assert hit.vectors.sparse is not None
        assert hit.vectors.colbert is not None
        assert query.dense is not None
        assert query.sparse is not None
        assert np.abs(hit.vectors.dense - query.dense).max() < 1e-6
        np.testing.assert_array_equal(hit.vectors.sparse.indices, query.sparse.indices)
        assert hit.vectors.colbert.shape == (4, 8)


def test_an_unnamed_vector_alone_is_read_and_verified(store: Store, collection: str) -> None:
    """A collection as qdrant-client makes it by default, one unnamed dense vector, is used and described."""
    schema = CollectionSchema(DENSE, names=UNNAMED)
    store.ensure(collection, schema)
    points = [draft(i, vectors=sample_vectors(i, kinds=["dense"])) for i in range(5)]
    assert write(store, collection, points, schema).stored == 5
    search = search_by(sample_vectors(3).dense, schema=schema, limit=1, with_vectors=("dense",))
    [[hit]] = run(store, collection, [search])
    assert hit.id == 3
    assert hit.vectors is not None
    assert hit.vectors.dense is not None
    assert store.fetch(collection, [4], False, ("dense",), names=UNNAMED)[4].vectors is not None
    with pytest.raises(SchemaMismatch, match=r"\(unnamed\)\.distance is cosine, wanted dot$"):
        store.verify(collection, replace(schema, dense=replace(DENSE, distance="dot")))
    with pytest.raises(SchemaMismatch, match=r": dense is absent, wanted dense$"):
        store.verify(collection, CollectionSchema(DENSE))
    other = f"{collection}_named"
    store.ensure(other, CollectionSchema(DENSE))
    with pytest.raises(SchemaMismatch, match=r"\(unnamed\) is absent, wanted dense$"):
        store.verify(other, schema)


# Configuration


def _configured() -> dict[str, CollectionSchema]:
    dense, sparse, colbert = DENSE, SPARSE, COLBERT
    return {
        "dense.datatype": replace(SCHEMA, dense=replace(dense, datatype="float16")),
        "dense.quantization": replace(SCHEMA, dense=replace(dense, quantization="int8")),
        "dense.m": replace(SCHEMA, dense=replace(dense, m=32)),
        "dense.efConstruct": replace(SCHEMA, dense=replace(dense, ef_construct=64)),
        "dense.onDisk": replace(SCHEMA, dense=replace(dense, on_disk=True)),
        "sparse.datatype": replace(SCHEMA, sparse=replace(sparse, datatype="float16")),
        "sparse.onDisk": replace(SCHEMA, sparse=replace(sparse, on_disk=True)),
        "colbert.datatype": replace(SCHEMA, colbert=replace(colbert, datatype="float32")),
        "colbert.onDisk": replace(SCHEMA, colbert=replace(colbert, on_disk=False)),
        "colbert.quantization": replace(SCHEMA, colbert=replace(colbert, quantization="binary")),
        "payloadOnDisk": replace(SCHEMA, payload_on_disk=False),
    }


@pytest.mark.parametrize("field", list(_configured()))
def test_a_configured_field_is_created_and_verified(store: Store, collection: str, field: str) -> None:
    """A configured field is created, and an existing collection without it is refused only if it is set."""
    schema = _configured()[field]
    explicit = replace(schema, explicit=frozenset([field]))
    store.ensure(collection, explicit)
    store.ensure(collection, explicit)
    other = collection + "_plain"
    store.ensure(other, SCHEMA)
    store.ensure(other, schema)
    with pytest.raises(SchemaMismatch, match=field) as caught:
        store.ensure(other, explicit)
    assert [difference.field for difference in caught.value.differences] == [field]
    assert write(store, collection, [draft(0)], explicit).stored == 1


# Payload indexes


def test_payload_indexes_are_created_with_the_collection(
    store: Store, collection: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Indexes of every type are created with the collection, verified, and used by filters."""
    caplog.set_level(logging.INFO, logger="qdrant_sink")
    assert not store.verify(collection, INDEXED)
    store.ensure(collection, INDEXED)
    assert store.verify(collection, INDEXED)
    assert caplog.text == ""
    point = conform(draft(0, payload={"topic": "a", "year": 3, "tenant": {"id": "x"}}), INDEXED)
    assert isinstance(point, Point)
    store.upsert(collection, [point])
    for key, value in (("topic", "a"), ("year", 3), ("tenant.id", "x")):
        assert store.count(collection, {"must": [{"key": key, "match": {"value": value}}]}) == 1


def test_an_existing_collection_gets_the_indexes_that_it_lacks(
    store: Store, collection: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An index that is added to the configuration is created and logged once."""
    caplog.set_level(logging.INFO, logger="qdrant_sink")
    store.ensure(collection, replace(SCHEMA, payload_indexes={"topic": "keyword"}))
    store.upsert(collection, [_point(0)])
    wanted = replace(SCHEMA, payload_indexes={"topic": "keyword", "parity": "integer"})
    assert not store.verify(collection, wanted)
    store.ensure(collection, wanted)
    store.ensure(collection, wanted)
    assert caplog.text.count("had no payload index on 'parity'; created it (integer)") == 1
    assert store.verify(collection, wanted)
    assert store.count(collection, {"must": [{"key": "parity", "match": {"value": 0}}]}) == 1


def test_an_index_of_another_type_is_refused(store: Store, collection: str) -> None:
    """An index of another type is not replaced, because building one takes time."""
    store.ensure(collection, replace(SCHEMA, payload_indexes={"topic": "text", "tenant": "keyword"}))
    for look in (store.ensure, store.verify):
        with pytest.raises(SchemaMismatch, match=r"payloadIndexes\.topic is text, wanted keyword$"):
            look(collection, replace(SCHEMA, payload_indexes={"topic": "keyword"}))
        with pytest.raises(SchemaMismatch, match=r"payloadIndexes\.tenant\.isTenant is false, wanted true$"):
            look(collection, replace(SCHEMA, tenant_key="tenant"))


# Aliases


def test_an_alias_works_in_place_of_a_collection(store: Store, collection: str) -> None:
    """Ensuring, writing, searching, counting and deleting by an alias use its collection."""
    alias = collection + "_live"
    with pytest.raises(NotFound, match=f"'{collection}' does not exist"):
        store.alias(alias, collection)
    store.ensure(collection, SCHEMA)
    store.alias(alias, collection)
    tenanted = replace(SCHEMA, tenant_key="tenant")
    store.ensure(alias, tenanted)
    assert store.verify(alias, tenanted)
    assert store.verify(collection, tenanted)
    store.upsert(alias, [_point(0), _point(1)])
    assert store.count(collection) == store.count(alias) == 2
    assert store.existing(alias, [0, 5]) == {0}
    search = search_by(dense=draft(1).vectors.dense, using=("dense",), limit=1)
    assert [hit.id for hit in run(store, alias, [search])[0]] == [1]
    assert store.delete(alias, ids=[0]) == 1
    assert store.count(collection) == 1
    with pytest.raises(SchemaMismatch, match=r"dense\.distance"):
        store.ensure(alias, replace(SCHEMA, dense=replace(DENSE, distance="dot")))


def test_an_alias_moves_atomically(store: Store, collection: str) -> None:
    """While an alias moves, readers see either the old collection or the new one."""
    alias, old, new = collection + "_live", collection + "_1", collection + "_2"
    for name, ids in ((old, range(3)), (new, range(5))):
        store.ensure(name, SCHEMA)
        store.upsert(name, [_point(i) for i in ids])
    store.alias(alias, old)
    done = threading.Event()
    counted: list[int] = []
    failures: list[BaseException] = []

    def read() -> None:
        try:
            while not done.is_set() or not counted:
                counted.append(store.count(alias))
        except BaseException as exc:  # noqa: BLE001 - reported by the main thread
            failures.append(exc)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(20):
        store.alias(alias, new)
        store.alias(alias, old)
    store.alias(alias, new)
    done.set()
    reader.join()
    assert failures == []
    assert set(counted) <= {3, 5}
    assert store.count(alias) == store.count(new) == 5
    assert store.count(old) == 3


def test_an_alias_never_hides_a_collection(store: Store, collection: str) -> None:
    """An alias cannot have the name of a collection, and it must point to a collection."""
    other, alias = collection + "_2", collection + "_live"
    store.ensure(collection, SCHEMA)
    store.ensure(other, SCHEMA)
    for name in (collection, other):
        with pytest.raises(InvalidRequest, match=f"^alias: '{name}' is the name of a collection"):
            store.alias(name, other)
    store.alias(alias, collection)
    names = (collection, alias, alias + "_2")
    assert [store.collection_of(name) for name in names] == [collection, collection, None]
    with pytest.raises(InvalidRequest, match=r"^collection: a name must have 1 to 255 characters"):
        store.collection_of("../x")
    with pytest.raises(NotFound, match=f"'{alias}' does not exist"):
        store.alias(alias + "_2", alias)
    with pytest.raises(InvalidRequest, match=r"^collection: a name must have 1 to 255 characters"):
        store.alias("../x", collection)


# Deferred graphs


def test_a_bulk_load_without_a_graph_ends_with_one(store: Store, collection: str) -> None:
    """Points that are stored while the graph is deferred can be searched during and after the load."""
    calls: list[Callable[[], object]] = [
        lambda: store.defer_index(collection, SCHEMA),
        lambda: store.restore_index(collection, SCHEMA),
        lambda: store.build_index(collection, SCHEMA, timeout_s=5),
    ]
    for call in calls:
        with pytest.raises(NotFound, match=f"'{collection}' does not exist"):
            call()
    explicit = replace(SCHEMA, explicit=frozenset(["dense.m"]))
    store.ensure(collection, explicit)
    store.defer_index(collection, explicit)
    store.defer_index(collection, explicit)
    assert store.verify(collection, explicit)
    store.upsert(collection, [_point(i) for i in range(30)])
    search = search_by(dense=draft(7).vectors.dense, using=("dense",), limit=1)
    assert run(store, collection, [search])[0][0].id == 7
    store.restore_index(collection, explicit)
    store.build_index(collection, explicit, timeout_s=60)
    assert store.verify(collection, explicit)
    assert run(store, collection, [search])[0][0].id == 7
