"""Vectors are added to an existing collection, and set in existing points, on every store."""

from __future__ import annotations

import uuid
from dataclasses import replace
from typing import Any

import pytest
from qdrant_client import grpc as pb

from embedder.errors import NotFound
from qdrant_sink.conformance import conform
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import FeatureMissing, SchemaMismatch, StoreUnavailable
from qdrant_sink.points import Point, PointId, Vectors
from qdrant_sink.schema import CollectionSchema, VectorNames
from qdrant_sink.searching import run
from qdrant_sink.server import ServerStore
from qdrant_sink.server.protobuf import update_vectors_request
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE, Reference, draft, ranked, sample_vectors, search_by

IDS: list[PointId] = [0, 1, 2, uuid.UUID(int=3)]
UNNAMED = replace(SCHEMA, names=VectorNames(dense=""))


def _only(schema: CollectionSchema, *kinds: str) -> CollectionSchema:
    others: dict[str, Any] = {kind: None for kind in ("dense", "sparse", "colbert") if kind not in kinds}
    return replace(schema, **others)


def _point(index: int, schema: CollectionSchema, *kinds: str, point_id: PointId | None = None) -> Point:
    vectors = sample_vectors(index, kinds=kinds)
    payload = {"text": f"text {index}", "n": index}
    given = draft(index, id=IDS[index] if point_id is None else point_id, payload=payload, vectors=vectors)
    point = conform(given, schema)
    assert isinstance(point, Point)
    return point


def _filled(store: Store, collection: str, schema: CollectionSchema, *kinds: str) -> None:
    """Make a collection of these kinds with a point for each of `IDS`."""
    only = _only(schema, *kinds)
    store.ensure(collection, only)
    store.upsert(collection, [_point(index, only, *kinds) for index in range(len(IDS))])


@pytest.mark.parametrize("schema", [SCHEMA, UNNAMED], ids=["named", "unnamed"])
def test_a_dense_collection_gets_the_other_kinds(store: Store, collection: str, schema: CollectionSchema) -> None:
    """The added vectors have the schema's settings, other vectors and payloads stay, and a search uses all three."""
    _filled(store, collection, schema, "dense")
    before = store.fetch(collection, IDS, True, ("dense",), names=schema.names)
    store.add_vectors(collection, schema, ("sparse", "colbert"))
    assert store.verify(collection, replace(schema, explicit=frozenset({"colbert.datatype", "colbert.onDisk"})))
    colbert = store.describe(collection).description.vectors["colbert"]
    assert (colbert.m, colbert.on_disk, colbert.datatype) == (0, True, "float16")
    assert store.count(collection, {"must": [{"has_vector": "colbert"}]}) == 0

    points = [_point(index, schema, "sparse", "colbert") for index in range(len(IDS))]
    assert store.update_vectors(collection, points) == set()
    after = store.fetch(collection, IDS, True, ("dense", "sparse", "colbert"), names=schema.names, patient=True)
    reference: dict[PointId, Vectors] = {}
    for index, point_id in enumerate(IDS):
        old, new, sample = before[point_id], after[point_id], sample_vectors(index)
        assert new.payload == old.payload == {"text": f"text {index}", "n": index}
        assert old.vectors is not None
        assert new.vectors is not None
        assert new.vectors.dense is not None
        assert old.vectors.dense is not None
        assert new.vectors.dense.tobytes() == old.vectors.dense.tobytes()
        assert new.vectors.sparse is not None
        assert sample.sparse is not None
        assert new.vectors.sparse.values.tolist() == sample.sparse.values.tolist()
        reference[point_id] = sample
    query = sample_vectors(77)
    assert query.colbert is not None
    search = search_by(
        query.dense, query.sparse, query.colbert, schema=schema, using=("dense", "sparse"), rerank="colbert", limit=4
    )
    [hits] = run(store, collection, [search])
    assert [hit.id for hit in hits] == ranked(Reference(reference).colbert(query.colbert))


def test_a_sparse_collection_gets_dense_vectors(store: Store, collection: str) -> None:
    """A dense vector can be added, too, and has the graph of the schema."""
    schema = _only(replace(SCHEMA, dense=replace(DENSE, m=24, ef_construct=80, on_disk=True)), "dense", "sparse")
    _filled(store, collection, schema, "sparse")
    store.add_vectors(collection, schema, ("dense",))
    dense = store.describe(collection).description.vectors["dense"]
    assert (dense.m, dense.ef_construct, dense.on_disk) == (24, 80, True)
    store.update_vectors(collection, [_point(0, schema, "dense")])
    assert store.count(collection, {"must": [{"has_vector": "dense"}, {"has_vector": "sparse"}]}, patient=True) == 1


def test_vectors_on_disk_with_a_modifier_and_a_quantized_copy_are_added(store: Store, collection: str) -> None:
    """Settings that the store's own call does not have are those of the schema all the same."""
    schema = replace(
        SCHEMA,
        sparse=replace(SPARSE, modifier="idf", on_disk=True),
        colbert=replace(COLBERT, quantization="int8", on_disk=False),
    )
    _filled(store, collection, schema, "dense")
    store.add_vectors(collection, schema, ("sparse", "colbert"))
    explicit = frozenset({"sparse.onDisk", "sparse.datatype", "colbert.quantization", "colbert.onDisk"})
    assert store.verify(collection, replace(schema, explicit=explicit))


def test_adding_twice_changes_nothing(store: Store, collection: str) -> None:
    """Vectors that exist are verified, with rows or without; their points keep them."""
    _filled(store, collection, SCHEMA, "dense")
    store.add_vectors(collection, SCHEMA, ("sparse",))
    store.add_vectors(collection, SCHEMA, ("sparse", "colbert"))
    store.update_vectors(collection, [_point(0, SCHEMA, "sparse", "colbert")])
    tuned = replace(SCHEMA, colbert=replace(COLBERT, m=8))
    store.add_vectors(collection, tuned, ("sparse", "colbert"))
    assert store.describe(collection).description.vectors["colbert"].m == 0
    assert store.count(collection, {"must": [{"has_vector": "colbert"}]}) == 1


def test_an_interrupted_addition_is_completed(store: Store, collection: str) -> None:
    """A vector that was added without its settings, and has no rows, gets them from the next call."""
    graph = replace(SCHEMA, colbert=replace(COLBERT, m=8, on_disk=False))
    _filled(store, collection, SCHEMA, "dense")
    store.add_vectors(collection, graph, ("colbert",))
    store.add_vectors(collection, SCHEMA, ("colbert",))
    colbert = store.describe(collection).description.vectors["colbert"]
    assert (colbert.m, colbert.on_disk) == (0, True)


@pytest.mark.slow
def test_rows_wait_for_the_rebuilding(server_store: ServerStore, double: GrpcDouble) -> None:
    """A server that is killed may mix up rows that are written while it rebuilds a collection for new settings.

    Vectors that have rows are not set again, and nothing is waited for.
    """
    _filled(server_store, "notes", SCHEMA, "dense")
    rebuilding = [pb.CollectionStatus.Yellow] * 6
    double.statuses = [pb.CollectionStatus.Green] * 2 + rebuilding
    server_store.add_vectors("notes", SCHEMA, ("colbert",))
    assert double.statuses == []
    server_store.update_vectors("notes", [_point(0, SCHEMA, "colbert")])
    double.statuses = list(rebuilding)
    server_store.add_vectors("notes", SCHEMA, ("colbert",))
    assert double.statuses
    double.statuses = [pb.CollectionStatus.Red] * 6
    with pytest.raises(StoreUnavailable, match="is red"):
        server_store.add_vectors("notes", SCHEMA, ("sparse",))


def test_another_vector_of_the_name_is_refused(store: Store, collection: str) -> None:
    """A vector of another size or kind is a schema mismatch, and nothing is written."""
    _filled(store, collection, SCHEMA, "dense")
    for schema, kind in (
        (replace(SCHEMA, dense=replace(DENSE, size=16)), "dense"),
        (replace(SCHEMA, names=VectorNames(dense="other", colbert="dense")), "colbert"),
    ):
        with pytest.raises(SchemaMismatch):
            store.add_vectors(collection, schema, (kind,))  # type: ignore[arg-type]
    with pytest.raises(NotFound):
        store.add_vectors(f"{collection}x", SCHEMA, ("dense",))


def test_a_deleted_point_does_not_come_back(store: Store, collection: str) -> None:
    """Points that do not exist are returned, the others are written, and none is created."""
    _filled(store, collection, SCHEMA, "dense")
    store.add_vectors(collection, SCHEMA, ("sparse", "colbert"))
    gone = [_point(index, SCHEMA, "sparse", "colbert", point_id=1000 + index) for index in (1, 2)]
    present = [_point(index, SCHEMA, "sparse", "colbert") for index in (0, 3)]
    assert store.update_vectors(collection, [gone[0], *present, gone[1]]) == {1001, 1002}
    assert store.count(collection) == len(IDS)
    assert store.count(collection, {"must": [{"has_vector": "colbert"}]}) == 2
    assert store.update_vectors(collection, gone) == {1001, 1002}
    assert store.update_vectors(collection, []) == set()
    with pytest.raises(NotFound, match=f"collection '{collection}x' does not exist"):
        store.update_vectors(f"{collection}x", present)


def test_an_older_server_refuses_with_both_versions(server_store: ServerStore, double: GrpcDouble) -> None:
    """Before 1.18 vectors cannot be added; vectors that exist are verified and set."""
    double.version = (1, 17, 4)
    _filled(server_store, "notes", SCHEMA, "dense")
    with pytest.raises(FeatureMissing, match=r"needs Qdrant 1\.18, and the server has 1\.17\.4"):
        server_store.add_vectors("notes", SCHEMA, ("sparse",))
    server_store.ensure("whole", SCHEMA)
    server_store.add_vectors("whole", SCHEMA, ("sparse", "colbert"))
    assert double.calls.count("CreateVectorName") == 0


def test_a_server_that_does_not_know_the_call_refuses(server_store: ServerStore, double: GrpcDouble) -> None:
    """Behind a proxy that hides the version, the server's own refusal has the same type."""
    _filled(server_store, "notes", SCHEMA, "dense")
    double.version = (1, 17, 4)
    server_store._version.require = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(FeatureMissing, match="UNIMPLEMENTED"):
        server_store.add_vectors("notes", SCHEMA, ("sparse",))


def test_points_that_vanish_and_return_end_the_call(server_store: ServerStore, double: GrpcDouble) -> None:
    """If a server says again and again that existing points are missing, the call ends with an error."""
    _filled(server_store, "notes", SCHEMA, "dense", "sparse")
    double.fail("UpdateVectors", _not_found(), times=99, details="Not found: No point with id 0 found")
    with pytest.raises(StoreUnavailable, match="being deleted"):
        server_store.update_vectors("notes", [_point(0, SCHEMA, "sparse")])


def test_the_bytes_are_those_of_the_client() -> None:
    """A serialised request is the message that the client's own classes describe."""
    from qdrant_client import grpc as messages

    points = [_point(index, SCHEMA, "dense", "sparse", "colbert") for index in range(len(IDS))]
    request = messages.UpdatePointVectors.FromString(update_vectors_request("notes", points))
    assert (request.collection_name, request.wait, len(request.points)) == ("notes", True, len(IDS))
    for point, message in zip(points, request.points, strict=True):
        assert message.id == (
            messages.PointId(num=point.id) if isinstance(point.id, int) else messages.PointId(uuid=str(point.id))
        )
        vectors = message.vectors.vectors.vectors
        assert point.dense is not None
        assert point.sparse is not None
        assert point.colbert is not None
        assert list(vectors["dense"].dense.data) == point.dense.tolist()
        assert list(vectors["sparse"].sparse.indices) == point.sparse.indices.tolist()
        assert [list(row.data) for row in vectors["colbert"].multi_dense.vectors] == point.colbert.tolist()


@pytest.mark.slow
def test_added_vectors_outlive_the_process(edge_store: EdgeStore, tmp_path: Any) -> None:
    """A collection of Qdrant Edge that is opened again has the added vectors, their rows and settings."""
    _filled(edge_store, "notes", UNNAMED, "dense")
    edge_store.add_vectors("notes", UNNAMED, ("sparse", "colbert"))
    edge_store.update_vectors("notes", [_point(index, UNNAMED, "sparse", "colbert") for index in range(len(IDS))])
    edge_store.close()
    again = EdgeStore(tmp_path / "edge")
    try:
        assert again.verify("notes", replace(UNNAMED, explicit=frozenset({"colbert.onDisk"})))
        assert again.describe("notes").description.vectors["colbert"].m == 0
        assert again.count("notes", {"must": [{"has_vector": "sparse"}, {"has_vector": "colbert"}]}) == len(IDS)
        again.optimize("notes", "")
        assert again.count("notes", {"must": [{"has_vector": "sparse"}, {"has_vector": "colbert"}]}) == len(IDS)
    finally:
        again.close()


def _not_found() -> Any:
    import grpc  # type: ignore[import-untyped,unused-ignore]

    return grpc.StatusCode.NOT_FOUND
