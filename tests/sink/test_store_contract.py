"""Contract of the `Store` protocol, which every store fulfils."""

from __future__ import annotations

import threading
import uuid
from pathlib import Path
from typing import Any

import pytest

from embedder.errors import InvalidRequest, NotFound
from qdrant_sink.conformance import conform
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.points import Point, PointId, Vectors
from qdrant_sink.searching import run
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, draft, sample_vectors, search_by
from tests.sink.stores import STORES, opened
from tests.sink.writing import write

FIRST = draft(0)


def _point(index: int, **overrides: object) -> Point:
    point = conform(draft(index, **overrides), SCHEMA)
    assert isinstance(point, Point)
    return point


def test_a_missing_collection_is_not_found(store: Store, collection: str) -> None:
    """Calls for a missing collection raise NotFound and do not create it."""
    search = search_by(dense=FIRST.vectors.dense, using=("dense",))
    for ask in (
        lambda: run(store, collection, [search]),
        lambda: store.count(collection),
        lambda: store.existing(collection, [1]),
        lambda: store.fetch(collection, [1], True, ()),
        lambda: store.delete(collection, ids=[1]),
        lambda: store.upsert(collection, [_point(0)]),
    ):
        with pytest.raises(NotFound, match=f"collection '{collection}' does not exist"):
            ask()


def test_a_dropped_collection_is_gone_with_its_aliases(store: Store, collection: str) -> None:
    """Its name and its aliases lead nowhere, other collections stay, and the name can be used again."""
    other, alias = f"{collection}_b", f"{collection}_alias"
    for name in (collection, other):
        store.ensure(name, SCHEMA)
        store.upsert(name, [_point(0)])
    store.alias(alias, collection)
    with pytest.raises(InvalidRequest, match="is an alias; name the collection itself"):
        store.drop(alias)
    store.drop(collection)
    assert store.collection_of(collection) is None
    assert store.collection_of(alias) is None
    assert alias not in store.aliases()
    with pytest.raises(NotFound, match=f"collection '{collection}' does not exist"):
        store.drop(collection)
    assert store.count(other) == 1
    store.ensure(collection, SCHEMA)
    assert store.count(collection) == 0


def test_an_empty_request_needs_no_collection(store: Store, collection: str) -> None:
    """Calls without points, ids or plans succeed without a collection and do not create it."""
    store.upsert(collection, [])
    assert store.existing(collection, []) == set()
    assert store.fetch(collection, [], True, ("dense",)) == {}
    assert store.query(collection, []) == []
    assert run(store, collection, []) == []
    assert run(store, collection, [search_by(using=("sparse",))] * 2) == [[], []]
    with pytest.raises(NotFound):
        store.count(collection)


@pytest.mark.parametrize("name", ["../etc", "..", "", "a/b", "a:b", "x" * 256, "a\n"])
def test_an_invalid_collection_name_is_refused(store: Store, name: str) -> None:
    """A name that no server takes is an error, even in an empty request."""
    for ask in (
        lambda: store.ensure(name, SCHEMA),
        lambda: store.count(name),
        lambda: store.upsert(name, []),
        lambda: store.existing(name, []),
        lambda: store.fetch(name, [], True, ()),
        lambda: store.query(name, []),
    ):
        with pytest.raises(InvalidRequest, match=r"^collection: a name must have 1 to 255 characters"):
            ask()


def test_upsert_replaces_points_and_insert_only_does_not(store: Store, collection: str) -> None:
    """A second upsert replaces a point, and insert_only leaves it unchanged."""
    store.ensure(collection, SCHEMA)
    search = search_by(dense=FIRST.vectors.dense, using=("dense",), limit=1)
    store.upsert(collection, [_point(0, payload={"v": 1})])
    store.upsert(collection, [_point(0, payload={"v": 2})])
    store.upsert(collection, [_point(0, payload={"v": 3}), _point(1)], insert_only=True)
    assert run(store, collection, [search])[0][0].payload == {"v": 2}
    assert store.count(collection) == 2


def test_upsert_removes_missing_kinds_of_vectors(store: Store, collection: str) -> None:
    """An upsert replaces the whole point, including vectors that the new one does not have."""
    store.ensure(collection, SCHEMA)
    store.upsert(collection, [_point(0)])
    store.upsert(collection, [_point(0, vectors=Vectors(FIRST.vectors.dense))])
    assert store.count(collection, {"must": [{"has_vector": "colbert"}]}) == 0
    assert store.count(collection, {"must": [{"has_vector": "dense"}]}) == 1


def test_existing_count_and_delete_agree(store: Store, collection: str) -> None:
    """The numbers of counted and deleted points are exact."""
    store.ensure(collection, SCHEMA)
    store.upsert(collection, [])
    ids: list[PointId] = [0, 2**64 - 1, uuid.uuid4()]
    store.upsert(collection, [_point(i, id=ids[i]) for i in range(3)])
    assert store.existing(collection, [*ids, 5, uuid.uuid4()]) == set(ids)
    assert store.existing(collection, []) == set()
    assert store.count(collection) == 3
    assert store.count(collection, {"must": [{"key": "parity", "match": {"value": 0}}]}) == 2
    assert store.delete(collection, ids=[ids[2], 77, ids[2]]) == 1
    assert store.delete(collection, where={"must": [{"key": "parity", "match": {"value": 0}}]}) == 1
    assert store.existing(collection, ids) == {ids[1]}


def test_a_deletion_has_either_ids_or_a_filter(store: Store, collection: str) -> None:
    """A deletion with both or neither of them is refused."""
    store.ensure(collection, SCHEMA)
    condition = {"must": [{"key": "a", "match": {"value": 1}}]}
    for fields in ({}, {"ids": [1], "where": condition}):
        with pytest.raises(InvalidRequest, match="exactly one of ids and filter, got"):
            store.delete(collection, **fields)  # type: ignore[arg-type]


def test_payloads_are_returned_unchanged(store: Store, collection: str) -> None:
    """Types, extreme values, Unicode and nesting are preserved."""
    payload: dict[str, Any] = {
        "text": "naïve 😀 \u0000 \u2028",
        "int": [2**63 - 1, -(2**63), 0],
        "float": [0.1, -0.0, 1e300, 5e-324],
        "bool": [True, False],
        "null": None,
        "deep": {"a": [{"b": [[]]}, {}]},
        "": "an empty key",
        "a.b": "a key with a dot",
    }
    store.ensure(collection, SCHEMA)
    store.upsert(collection, [_point(0, payload=payload)])
    search = search_by(dense=FIRST.vectors.dense, using=("dense",))
    [[hit]] = run(store, collection, [search])
    assert hit.payload == payload
    assert hit.payload is not None
    assert [type(value) for value in hit.payload["bool"]] == [bool, bool]
    assert type(hit.payload["int"][2]) is int


def test_a_payload_of_the_maximum_depth_is_returned(store: Store, collection: str) -> None:
    """A payload of the maximum depth passes every transport."""
    payload: dict[str, object] = {"leaf": 1}
    for _ in range(23):
        payload = {"a": payload}
    store.ensure(collection, SCHEMA)
    store.upsert(collection, [_point(0, payload=payload)])
    [[hit]] = run(store, collection, [search_by(dense=FIRST.vectors.dense, using=("dense",))])
    assert hit.payload == payload


def test_many_threads_share_one_store(store: Store, collection: str) -> None:
    """Concurrent writes and searches do not affect each other."""
    failures: list[BaseException] = []

    def work(worker: int) -> None:
        try:
            store.ensure(collection, SCHEMA)
            drafts = [draft(i, id=worker * 100 + i) for i in range(10)]
            assert write(store, collection, drafts, SCHEMA).stored == 10
            search = search_by(dense=FIRST.vectors.dense, using=("dense",))
            assert run(store, collection, [search])[0][0].score == pytest.approx(1.0, abs=1e-5)
        except BaseException as exc:  # noqa: BLE001 - reported by the main thread
            failures.append(exc)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.count(collection) == 60


@pytest.mark.parametrize("kind", STORES)
def test_closing_twice_is_harmless_and_later_calls_are_refused(kind: str, tmp_path: Path, collection: str) -> None:
    """After the store is closed, calls raise StoreUnavailable."""
    with opened(kind, tmp_path) as store:
        store.ensure(collection, SCHEMA)
        store.close()
        store.close()
        with pytest.raises(StoreUnavailable, match="closed"):
            store.count(collection)


def test_the_label_names_no_host(store: Store) -> None:
    """The label of a store does not contain an address."""
    assert "127.0.0.1" not in store.label
    assert store.label.startswith("Qdrant")


def test_one_value_of_a_payload_is_set(store: Store, collection: str) -> None:
    """The value is set in these points alone, and everything beside it stays."""
    store.ensure(collection, SCHEMA)
    dense = sample_vectors(0).dense
    payload = {"meta": {"a b": 1, "other": 2}, "top": 3}
    store.upsert(collection, [Point(number, payload, dense=dense) for number in range(3)])
    store.set_payload(collection, [0, 2], 'meta."a b"', 7)
    store.set_payload(collection, [2], "top", [9])
    fetched = store.fetch(collection, [0, 1, 2], True, ())
    assert [fetched[number].payload for number in range(3)] == [
        {"meta": {"a b": 7, "other": 2}, "top": 3},
        payload,
        {"meta": {"a b": 7, "other": 2}, "top": [9]},
    ]
