"""What a store says of its collections: names, aliases, vectors, indexes, number of points and status."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from qdrant_client import grpc as pb

from embedder.errors import NotFound
from qdrant_sink.edge import EdgeStore
from qdrant_sink.edge.settings import CONFIG_FILE, read_config
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import SCHEMA, draft, job
from tests.sink.writing import write


def test_collections_and_aliases_are_listed(store: Store, collection: str) -> None:
    """A new collection and its aliases are in the lists, and an alias is not among the collections."""
    alias = f"{collection}.alias"
    assert collection not in store.collections()
    store.ensure(collection, SCHEMA)
    store.alias(alias, collection)
    names = store.collections()
    assert names == sorted(names)
    assert collection in names
    assert alias not in names
    assert store.aliases()[alias] == collection


def test_a_collection_is_described(store: Store, collection: str) -> None:
    """Vectors, payload indexes, points and status of a collection are those that it has, also under an alias."""
    alias = f"{collection}.alias"
    store.ensure(collection, replace(SCHEMA, tenant_key="tenant", payload_indexes={"year": "integer"}))
    store.alias(alias, collection)
    assert write(store, collection, [draft(i) for i in range(3)], SCHEMA).stored == 3
    for name in (collection, alias):
        state = store.describe(name)
        assert state.points == 3
        assert state.status == "green"
        assert {name: vector.kind for name, vector in state.description.vectors.items()} == {
            "dense": "dense",
            "sparse": "sparse",
            "colbert": "multivector",
        }
        indexes = state.description.payload_indexes
        assert indexes == {"tenant": PayloadIndex("keyword", tenant=True), "year": PayloadIndex("integer")}


def test_a_missing_collection_has_no_description(store: Store, collection: str) -> None:
    """The description of a missing collection is NotFound."""
    with pytest.raises(NotFound, match=f"collection '{collection}' does not exist"):
        store.describe(collection)


def test_the_status_of_a_server_is_passed_on(server_store: ServerStore, double: GrpcDouble) -> None:
    """A collection that a server optimises is yellow, and one that waits for it is grey."""
    server_store.ensure("docs", SCHEMA)
    double.statuses += [pb.CollectionStatus.Yellow, pb.CollectionStatus.Grey, pb.CollectionStatus.Red]
    assert [server_store.describe("docs").status for _ in range(4)] == ["yellow", "grey", "red", "green"]


@pytest.mark.slow
def test_points_without_their_graph_make_an_embedded_collection_grey(tmp_path: Path) -> None:
    """A collection whose points wait for the graph is grey until it is built, and then says how many are indexed."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    assert write(store, "docs", job(100), SCHEMA).stored == 100
    assert store.describe("docs").status == "green"
    store.close()
    config = read_config(tmp_path / "docs")
    (tmp_path / "docs" / CONFIG_FILE).write_text(json.dumps({**config, "optimizers": {"indexing_threshold": 1}}))
    store = EdgeStore(tmp_path)
    before = store.describe("docs")
    assert (before.status, before.indexed_vectors) == ("grey", 100)  # those of the inverted index
    store.optimize("docs")
    after = store.describe("docs")
    assert after.status == "green"
    assert (after.indexed_vectors or 0) >= 200
    store.close()
