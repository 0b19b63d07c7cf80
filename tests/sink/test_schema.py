"""A collection is created with the schema for BGE-M3, or verified field by field and left unchanged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import qdrant_edge as edge
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as pb

from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import Difference, SchemaMismatch, StoreRejected
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription, differences
from qdrant_sink.server import ServerStore
from qdrant_sink.store import Store
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE, parts, schema_for

VECTORS = {
    "dense": VectorDescription("dense", size=8, distance="cosine"),
    "sparse": VectorDescription("sparse"),
    "colbert": VectorDescription("multivector", size=8, distance="cosine", comparator="max_sim"),
}


def test_the_schema_of_bge_m3() -> None:
    """Cosine and HNSW 16/100 for dense, no IDF on learned weights, float16 rows on disk without a graph."""
    schema = schema_for(1024, 1024)
    dense, sparse, colbert = parts(schema)
    assert (dense.size, dense.distance, dense.m, dense.ef_construct) == (1024, "cosine", 16, 100)
    assert (sparse.datatype, sparse.modifier) == ("float32", None)
    assert (colbert.comparator, colbert.datatype, colbert.on_disk, colbert.m) == (
        "max_sim",
        "float16",
        True,
        0,
    )


def test_additional_vectors_are_not_a_difference() -> None:
    """A collection with the three vectors is accepted, even with additional vectors."""
    assert differences(SCHEMA, CollectionDescription(VECTORS)) == []
    more = {**VECTORS, "image": VectorDescription("dense", size=512, distance="dot")}
    assert differences(SCHEMA, CollectionDescription(more)) == []


@pytest.mark.parametrize(
    ("name", "vector", "expected"),
    [
        ("dense", None, Difference("dense", "absent", "dense")),
        ("sparse", None, Difference("sparse", "absent", "sparse")),
        ("colbert", None, Difference("colbert", "absent", "multivector")),
        ("dense", VectorDescription("dense", 768, "cosine"), Difference("dense.size", 768, 8)),
        ("dense", VectorDescription("dense", 8, "dot"), Difference("dense.distance", "dot", "cosine")),
        ("colbert", VectorDescription("dense", 8, "cosine"), Difference("colbert.kind", "dense", "multivector")),
        (
            "colbert",
            VectorDescription("multivector", 8, "cosine", "other"),
            Difference("colbert.comparator", "other", "max_sim"),
        ),
        ("sparse", VectorDescription("sparse", modifier="idf"), Difference("sparse.modifier", "idf", "none")),
    ],
)
def test_every_verified_field_is_reported(name: str, vector: VectorDescription | None, expected: Difference) -> None:
    """A difference states the field, the actual value and the wanted value."""
    vectors = {key: value for key, value in {**VECTORS, name: vector}.items() if value is not None}
    assert differences(SCHEMA, CollectionDescription(vectors)) == [expected]


def test_ensure_creates_once_and_then_verifies(store: Store, collection: str) -> None:
    """A second worker accepts the collection. A worker with another model gets an error with all fields."""
    store.ensure(collection, SCHEMA)
    store.ensure(collection, SCHEMA)
    with pytest.raises(SchemaMismatch) as caught:
        store.ensure(collection, schema_for(1024, 512))
    message = caught.value.message
    assert "dense.size is 8, wanted 1024" in message
    assert "colbert.size is 8, wanted 512" in message
    assert caught.value.collection == collection
    assert caught.value.differences == (Difference("dense.size", 8, 1024), Difference("colbert.size", 8, 512))
    store.ensure(collection, SCHEMA)


def test_a_tuned_collection_is_accepted(store: Store, collection: str) -> None:
    """A collection whose ColBERT rows are float32 in RAM differs only in memory use and is accepted."""
    tuned = replace(SCHEMA, colbert=replace(COLBERT, datatype="float32", on_disk=False))
    store.ensure(collection, tuned)
    store.ensure(collection, SCHEMA)


def _others() -> dict[str, CollectionSchema]:
    return {
        "dense.distance": replace(SCHEMA, dense=replace(DENSE, distance="dot")),
        "sparse.modifier": replace(SCHEMA, sparse=replace(SPARSE, modifier="idf")),
        "colbert.distance": replace(SCHEMA, colbert=replace(COLBERT, distance="dot")),
    }


@pytest.mark.parametrize("field", list(_others()))
def test_a_store_reads_the_existing_schema(store: Store, collection: str, field: str) -> None:
    """Distance and modifier of an existing collection are read from the store itself."""
    store.ensure(collection, _others()[field])
    with pytest.raises(SchemaMismatch, match=field):
        store.ensure(collection, SCHEMA)


def test_the_server_gets_the_whole_schema(server_store: ServerStore, double: GrpcDouble) -> None:
    """The request that creates the collection contains every field of the schema."""
    server_store.ensure("docs", SCHEMA)
    request = double.collections["docs"][0]
    dense = request.vectors_config.params_map.map["dense"]
    colbert = request.vectors_config.params_map.map["colbert"]
    sparse = request.sparse_vectors_config.map["sparse"]
    assert (dense.size, dense.distance) == (8, pb.Distance.Cosine)
    assert (dense.hnsw_config.m, dense.hnsw_config.ef_construct) == (16, 100)
    assert (colbert.size, colbert.distance, colbert.datatype) == (8, pb.Distance.Cosine, pb.Datatype.Float16)
    assert (colbert.on_disk, colbert.hnsw_config.m) == (True, 0)
    assert colbert.hnsw_config.HasField("m")
    assert colbert.multivector_config.comparator == pb.MultiVectorComparator.MaxSim
    assert sparse.index.datatype == pb.Datatype.Float32
    assert not sparse.HasField("modifier")


def test_the_engine_gets_the_whole_schema(edge_store: EdgeStore, tmp_path: Path) -> None:
    """The configuration on disk contains the fields of the schema."""
    edge_store.ensure("docs", SCHEMA)
    edge_store.close()
    text = (tmp_path / "edge" / "docs" / "edge_config.json").read_text()
    for part in ('"m":16', '"ef_construct":100', '"m":0', '"max_sim"', '"float16"', '"memory":"cold"'):
        assert part in text


def test_a_collection_with_an_unnamed_vector_is_refused(server_store: ServerStore, double: GrpcDouble) -> None:
    """The error of a collection with one unnamed vector lists the missing vectors."""
    client = QdrantClient(url="http://127.0.0.1:9", grpc_port=double.port, prefer_grpc=True, check_compatibility=False)
    client.create_collection("docs", models.VectorParams(size=8, distance=models.Distance.COSINE))
    client.close()
    with pytest.raises(SchemaMismatch, match="dense is absent, wanted dense; sparse is absent, wanted sparse"):
        server_store.ensure("docs", SCHEMA)


def test_a_damaged_collection_is_an_error(tmp_path: Path) -> None:
    """The error of a damaged collection states its name and not its path."""
    shard = edge.EdgeShard.create(
        str(tmp_path / "docs"),
        edge.EdgeConfig(vectors={"dense": edge.EdgeVectorParams(size=8, distance=edge.Distance.Cosine)}),
    )
    shard.close()
    (tmp_path / "docs" / "edge_config.json").write_text("{")
    store = EdgeStore(tmp_path)
    with pytest.raises(StoreRejected, match="refused the opening of collection 'docs'") as caught:
        store.ensure("docs", SCHEMA)
    assert str(tmp_path) not in str(caught.value)
    store.close()
