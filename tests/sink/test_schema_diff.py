"""What is asked of an existing collection: what changes results always, what is only tuned where it was set."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qdrant_sink.errors import Difference
from qdrant_sink.schema import CollectionSchema, PayloadIndex, Placement, VectorNames
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription, differences, missing_indexes
from tests.sink.samples import SCHEMA

FOUND = CollectionDescription(
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
            _explicit("dense.datatype", dense=replace(SCHEMA.dense, datatype="float16")),
            Difference("dense.datatype", "float32", "float16"),
        ),
        (
            _explicit("dense.quantization", dense=replace(SCHEMA.dense, quantization="int8")),
            Difference("dense.quantization", "none", "int8"),
        ),
        (_explicit("dense.m", dense=replace(SCHEMA.dense, m=32)), Difference("dense.m", 16, 32)),
        (
            _explicit("dense.efConstruct", dense=replace(SCHEMA.dense, ef_construct=200)),
            Difference("dense.efConstruct", 100, 200),
        ),
        (
            _explicit("dense.onDisk", dense=replace(SCHEMA.dense, on_disk=True)),
            Difference("dense.onDisk", "false", "true"),
        ),
        (
            _explicit("sparse.onDisk", sparse=replace(SCHEMA.sparse, on_disk=True)),
            Difference("sparse.onDisk", "false", "true"),
        ),
        (
            _explicit("colbert.datatype", colbert=replace(SCHEMA.colbert, datatype="float32")),
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
def test_what_is_tuned_is_asked_for_only_where_it_was_set(wanted: CollectionSchema, difference: Difference) -> None:
    """A field that the operator states must hold; the same value as a default leaves a collection as it is."""
    assert differences(wanted, FOUND) == [difference]
    assert differences(replace(wanted, explicit=frozenset()), FOUND) == []


def test_what_is_set_and_there_is_no_difference() -> None:
    """Stating what the collection has changes nothing."""
    fields = ("dense.datatype", "dense.quantization", "dense.m", "dense.efConstruct", "dense.onDisk")
    assert differences(replace(SCHEMA, explicit=frozenset(fields)), FOUND) == []


def test_a_deferred_graph_is_no_difference() -> None:
    """During a bulk load, or after one that was killed, other workers go on."""
    deferred = replace(FOUND, vectors={**FOUND.vectors, "dense": replace(FOUND.vectors["dense"], m=0)})
    assert differences(_explicit("dense.m"), deferred) == []
    none = _explicit("dense.m", dense=replace(SCHEMA.dense, m=0))
    assert differences(none, FOUND) == [Difference("dense.m", 16, 0)]


def test_vectors_are_told_by_their_names_in_the_collection() -> None:
    """An operator who named them finds his names in the complaint."""
    wanted = replace(SCHEMA, names=VectorNames(dense="text", sparse="words", colbert="tokens"))
    found = {
        "text": FOUND.vectors["dense"],
        "words": FOUND.vectors["sparse"],
        "tokens": replace(FOUND.vectors["colbert"], size=4),
    }
    assert differences(wanted, CollectionDescription(found)) == [Difference("tokens.size", 4, 8)]
    assert differences(wanted, FOUND)[0] == Difference("text", "absent", "dense")


def test_an_index_that_is_missing_is_no_difference_and_one_of_another_type_is() -> None:
    """An index can be added at any time; the type of one that is there decides which filters are quick."""
    wanted = replace(SCHEMA, payload_indexes={"topic": "keyword", "year": "integer"}, tenant_key="tenant")
    found = replace(FOUND, payload_indexes={"topic": PayloadIndex("text"), "other": PayloadIndex("geo")})
    assert differences(wanted, found) == [Difference("payloadIndexes.topic", "text", "keyword")]
    assert missing_indexes(wanted, found) == {
        "year": PayloadIndex("integer"),
        "tenant": PayloadIndex("keyword", tenant=True),
    }
    found = replace(FOUND, payload_indexes={"tenant": PayloadIndex("keyword")})
    assert differences(wanted, found) == [Difference("payloadIndexes.tenant.isTenant", "false", "true")]
