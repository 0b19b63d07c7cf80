"""Requirements of a schema on points: a tenant, and values within the range of the datatype."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from embedder.vectors import SparseVector
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.points import Point
from qdrant_sink.server import ServerStore
from tests.sink.grpc_double import GrpcDouble
from tests.sink.samples import DENSE, SCHEMA, SPARSE, draft, spoilt
from tests.sink.writing import write

TENANTED = replace(SCHEMA, tenant_key="tenant")
NESTED = replace(SCHEMA, tenant_key="metadata.tenant")


@pytest.mark.parametrize("tenant", ["acme", "0", " ", "ß"])
def test_a_point_with_a_tenant_is_taken(tenant: str) -> None:
    """A string is accepted as the tenant, at the top level of the payload or inside of an object."""
    assert isinstance(conform(draft(0, payload={"tenant": tenant}), TENANTED), Point)
    assert isinstance(conform(draft(0, payload={"metadata": {"tenant": tenant}}), NESTED), Point)


def test_every_stored_point_is_in_the_index_of_its_tenant(server_store: ServerStore, double: GrpcDouble) -> None:
    """Every accepted point is in the index of the tenant. A value of another type would be missing there."""
    server_store.ensure("docs", TENANTED)
    drafts = [draft(n, payload={"tenant": (7 if n % 2 else "7")}) for n in range(20)]
    report = write(server_store, "docs", drafts, TENANTED)
    assert (report.stored, len(report.rejected)) == (10, 10)
    [index] = double.shard("docs").info().payload_schema.values()
    assert index.points == server_store.count("docs") == 10
    assert server_store.count("docs", {"must": [{"key": "tenant", "match": {"value": "7"}}]}) == 10


@pytest.mark.parametrize(
    ("value", "got"),
    [
        ("", "an empty string"),
        (None, "none"),
        (7, "an integer; write it as a string"),
        (0, "an integer; write it as a string"),
        (True, "bool"),
        (1.5, "float"),
        (["secret"], "list"),
        ({"secret": 1}, "dict"),
    ],
)
def test_a_point_without_a_tenant_is_refused(value: Any, got: str) -> None:
    """A point without a valid tenant is refused. The message states the key and not the value."""
    for schema, payload in ((TENANTED, {"tenant": value}), (NESTED, {"metadata": {"tenant": value}})):
        refusal = conform(draft(3, payload=payload), schema)
        assert isinstance(refusal, Refusal)
        assert refusal.code == "invalid_payload"
        assert refusal.message == f"payload.{schema.tenant_key}: the tenant must be a non-empty string, got {got}"


@pytest.mark.parametrize("payload", [{}, {"metadata": "tenant"}, {"metadata.tenant": "acme"}, {"metadata": {}}])
def test_the_tenant_key_is_a_path_as_in_qdrant(payload: dict[str, Any]) -> None:
    """A dot in the key separates the parts of a path, as in Qdrant's filters."""
    refusal = conform(draft(0, payload=payload), NESTED)
    assert isinstance(refusal, Refusal)
    assert refusal.message.endswith("got none")
    assert isinstance(conform(draft(0, payload=payload), SCHEMA), Point)


def test_values_that_float16_cannot_hold_are_refused() -> None:
    """With float16 storage, a value that would become infinite is refused."""
    large = np.array([70_000.0] * 8, dtype=np.float32)
    weights = SparseVector(np.array([3], np.uint32), np.array([70_000.0], np.float32))
    half = replace(
        SCHEMA,
        dense=replace(DENSE, datatype="float16"),
        sparse=replace(SPARSE, datatype="float16"),
    )
    for fields, name in (({"dense": large}, "dense"), ({"sparse": weights}, "sparse.values")):
        refusal = conform(spoilt(0, **fields), half)
        assert isinstance(refusal, Refusal)
        assert refusal.message == f"{name}: values must be at most 65504 in float16, got 70000.0"
        assert isinstance(conform(spoilt(0, **fields), SCHEMA), Point)
