"""Requirements on existing collections: fields that change results always, tuning fields only if they are set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qdrant_sink.errors import Difference
from qdrant_sink.schema import CollectionSchema, PayloadIndex, Placement, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription, differences, missing_indexes
from tests.sink.samples import COLBERT, DENSE, SCHEMA, SPARSE

ACTUAL = CollectionDescription(
    vectors={
        "dense": VectorDescription(
            "dense", 8, "cosine", datatype="float32", quantization="none", m=16, ef_construct=100, on_disk=False
        ),
        "sparse": VectorDescription("sparse", datatype="float32", on_disk=False),
        "colbert": VectorDescription(
            "multivector", 8, "cosine", "max_sim", datatype="float16", quantization="none", m=0, on_disk=True
        ),
    },
    payload_on_disk=True,
    placement=Placement(1, 1, 1),
)


def _explicit(field: str, **changes: object) -> CollectionSchema:
    return replace(SCHEMA, explicit=frozenset([field]), **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wanted", "difference"),
    [
        (
            _explicit("dense.datatype", dense=replace(DENSE, datatype="float16")),
            Difference("dense.datatype", "float32", "float16"),
        ),
        (
            _explicit("dense.quantization", dense=replace(DENSE, quantization="int8")),
            Difference("dense.quantization", "none", "int8"),
        ),
        (_explicit("dense.m", dense=replace(DENSE, m=32)), Difference("dense.m", 16, 32)),
        (
            _explicit("dense.efConstruct", dense=replace(DENSE, ef_construct=200)),
            Difference("dense.efConstruct", 100, 200),
        ),
        (
            _explicit("dense.onDisk", dense=replace(DENSE, on_disk=True)),
            Difference("dense.onDisk", "false", "true"),
        ),
        (
            _explicit("sparse.onDisk", sparse=replace(SPARSE, on_disk=True)),
            Difference("sparse.onDisk", "false", "true"),
        ),
        (
            _explicit("colbert.datatype", colbert=replace(COLBERT, datatype="float32")),
            Difference("colbert.datatype", "float16", "float32"),
        ),
        (_explicit("payloadOnDisk", payload_on_disk=False), Difference("payloadOnDisk", "true", "false")),
        (_explicit("shards", placement=Placement(shards=3)), Difference("shards", 1, 3)),
        (_explicit("replication", placement=Placement(replication=2)), Difference("replication", 1, 2)),
        (
            _explicit("writeConsistency", placement=Placement(write_consistency=2)),
            Difference("writeConsistency", 1, 2),
        ),
    ],
    ids=lambda value: value.field if isinstance(value, Difference) else "",
)
def test_a_tuning_field_is_verified_only_if_it_is_set(wanted: CollectionSchema, difference: Difference) -> None:
    """A field that the operator has set must match. The same value as a default is not verified."""
    assert differences(wanted, ACTUAL) == [difference]
    assert differences(replace(wanted, explicit=frozenset()), ACTUAL) == []


def test_matching_explicit_fields_are_not_a_difference() -> None:
    """Setting the values that the collection has is accepted."""
    fields = ("dense.datatype", "dense.quantization", "dense.m", "dense.efConstruct", "dense.onDisk")
    assert differences(replace(SCHEMA, explicit=frozenset(fields)), ACTUAL) == []


def test_a_deferred_graph_is_not_a_difference() -> None:
    """During a bulk load, or after a killed one, other workers accept the collection."""
    deferred = replace(ACTUAL, vectors={**ACTUAL.vectors, "dense": replace(ACTUAL.vectors["dense"], m=0)})
    assert differences(_explicit("dense.m"), deferred) == []
    none = _explicit("dense.m", dense=replace(DENSE, m=0))
    assert differences(none, ACTUAL) == [Difference("dense.m", 16, 0)]


def test_differences_have_the_vector_names_of_the_collection() -> None:
    """Differences are reported with the configured vector names."""
    wanted = replace(SCHEMA, names=VectorNames(dense="text", sparse="words", colbert="tokens"))
    actual = {
        "text": ACTUAL.vectors["dense"],
        "words": ACTUAL.vectors["sparse"],
        "tokens": replace(ACTUAL.vectors["colbert"], size=4),
    }
    assert differences(wanted, CollectionDescription(actual)) == [Difference("tokens.size", 4, 8)]
    assert differences(wanted, ACTUAL)[0] == Difference("text", "absent", "dense")


def test_only_an_index_of_another_type_is_a_difference() -> None:
    """A missing index can be added at any time. An index of another type is a difference."""
    wanted = replace(SCHEMA, payload_indexes={"topic": "keyword", "year": "integer"}, tenant_key="tenant")
    actual = replace(ACTUAL, payload_indexes={"topic": PayloadIndex("text"), "other": PayloadIndex("geo")})
    assert differences(wanted, actual) == [Difference("payloadIndexes.topic", "text", "keyword")]
    assert missing_indexes(wanted, actual) == {
        "year": PayloadIndex("integer"),
        "tenant": PayloadIndex("keyword", tenant=True),
    }
    actual = replace(ACTUAL, payload_indexes={"tenant": PayloadIndex("keyword")})
    assert differences(wanted, actual) == [Difference("payloadIndexes.tenant.isTenant", "false", "true")]
