"""An existing collection as a store describes it, and where it differs from the schema.

Both adapters translate what their store says into a `CollectionDescription` and compare with the one function
`differences`, so that a collection is judged alike wherever it lives. An existing collection is verified
and never recreated; all that is ever added to it is a payload index that it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from embedder.vectors import Kind
from qdrant_sink.errors import Difference, SchemaMismatch
from qdrant_sink.schema import ANYWHERE, CollectionSchema, PayloadIndex, Placement

VectorKind = Literal["dense", "multivector", "sparse"]

ABSENT = "absent"
"""Value of a field that the collection lacks."""


@dataclass(frozen=True, slots=True)
class VectorDescription:
    """A named vector of an existing collection, with the store's defaults filled in.

    Attributes:
        kind: one vector, several, or weights per index.
        size: components; None for sparse.
        distance: lower case, as in `Distance`; None for sparse.
        comparator: of a multivector, lower case; None otherwise.
        modifier: of a sparse vector, lower case; None for no modifier.
        datatype: of the storage or the sparse index.
        quantization: as in `Quantization`, or the store's name of another one; None for sparse.
        m: edges per node of the graph; 0 without a graph or while it is deferred; None for sparse.
        ef_construct: None for sparse.
        on_disk: memory-mapped.
    """

    kind: VectorKind
    size: int | None = None
    distance: str | None = None
    comparator: str | None = None
    modifier: str | None = None
    datatype: str | None = None
    quantization: str | None = None
    m: int | None = None
    ef_construct: int | None = None
    on_disk: bool | None = None


@dataclass(frozen=True, slots=True)
class CollectionDescription:
    """An existing collection: its vectors by name, and the rest as in the schema."""

    vectors: Mapping[str, VectorDescription]
    payload_indexes: Mapping[str, PayloadIndex] = field(default_factory=dict)
    payload_on_disk: bool | None = None
    placement: Placement = ANYWHERE


_ALWAYS = {"size": "size", "distance": "distance", "comparator": "comparator", "modifier": "modifier"}
_IF_EXPLICIT = {
    "datatype": "datatype",
    "quantization": "quantization",
    "m": "m",
    "ef_construct": "efConstruct",
    "on_disk": "onDisk",
}
"""Attributes of `VectorDescription` and their wire names."""


def differences(wanted: CollectionSchema, actual: CollectionDescription) -> list[Difference]:
    """Every verified field in which `actual` differs, in the order of the schema.

    Always verified is what changes which points are found: that the three vectors exist, their kind, size,
    distance, comparator and modifier, and the type of payload indexes. What costs only memory or time (datatype,
    quantization, the HNSW parameters, on_disk, shards and the like) is verified where the operator has set it
    (`wanted.explicit`) and is otherwise free to be tuned. Further vectors and indexes do not matter; a missing index
    is not a difference but in `missing_indexes`; and a graph of m = 0 may be deferred.
    """
    result: list[Difference] = []
    for kind, want in _expected(wanted).items():
        name = wanted.names.of(kind)
        have = actual.vectors.get(name)
        if have is None:
            result.append(Difference(name, ABSENT, want.kind))
        elif have.kind != want.kind:
            result.append(Difference(f"{name}.kind", have.kind, want.kind))
        else:
            explicit = {own: wire for own, wire in _IF_EXPLICIT.items() if f"{kind}.{wire}" in wanted.explicit}
            if have.m == 0:
                explicit.pop("m", None)
            result += [
                Difference(f"{name}.{wire}", _shown(getattr(have, own)), _shown(getattr(want, own)))
                for own, wire in (_ALWAYS | explicit).items()
                if getattr(have, own) != getattr(want, own)
            ]
    of_collection = {
        "payloadOnDisk": (actual.payload_on_disk, wanted.payload_on_disk),
        "shards": (actual.placement.shards, wanted.placement.shards),
        "replication": (actual.placement.replication, wanted.placement.replication),
        "writeConsistency": (actual.placement.write_consistency, wanted.placement.write_consistency),
    }
    result += [
        Difference(name, _shown(is_), _shown(should))
        for name, (is_, should) in of_collection.items()
        if name in wanted.explicit and is_ != should
    ]
    for key, index in wanted.indexes.items():
        existing = actual.payload_indexes.get(key)
        if existing is None:
            continue
        if existing.type != index.type:
            result.append(Difference(f"payloadIndexes.{key}", existing.type, index.type))
        elif index.tenant and not existing.tenant:
            result.append(Difference(f"payloadIndexes.{key}.isTenant", "false", "true"))
    return result


def missing_indexes(wanted: CollectionSchema, actual: CollectionDescription) -> dict[str, PayloadIndex]:
    """The payload indexes that the collection lacks, which can be added to it at any time."""
    return {key: index for key, index in wanted.indexes.items() if key not in actual.payload_indexes}


def _expected(wanted: CollectionSchema) -> dict[Kind, VectorDescription]:
    dense, sparse, colbert = wanted.dense, wanted.sparse, wanted.colbert
    return {
        "dense": VectorDescription(
            "dense",
            size=dense.size,
            distance=dense.distance,
            datatype=dense.datatype,
            quantization=dense.quantization,
            m=dense.m,
            ef_construct=dense.ef_construct,
            on_disk=dense.on_disk,
        ),
        "sparse": VectorDescription(
            "sparse", modifier=sparse.modifier, datatype=sparse.datatype, on_disk=sparse.on_disk
        ),
        "colbert": VectorDescription(
            "multivector",
            size=colbert.size,
            distance=colbert.distance,
            comparator=colbert.comparator,
            datatype=colbert.datatype,
            quantization=colbert.quantization,
            on_disk=colbert.on_disk,
        ),
    }


def mismatch(collection: str, different: Sequence[Difference]) -> SchemaMismatch:
    """The error that names every differing field with both values."""
    fields = "; ".join(f"{field.field} is {field.found}, wanted {field.wanted}" for field in different)
    return SchemaMismatch(
        f"collection {collection!r} exists with another schema and is left as it is: {fields}",
        collection=collection,
        differences=different,
    )


def verify(collection: str, wanted: CollectionSchema, actual: CollectionDescription) -> None:
    """Raise `SchemaMismatch` unless `actual` serves `wanted`."""
    different = differences(wanted, actual)
    if different:
        raise mismatch(collection, different)


def _shown(value: str | int | None) -> str | int:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else value
