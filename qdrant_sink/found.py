"""What a store found of a collection, and where it differs from what is wanted.

Both adapters translate what they find into a `FoundCollection` and compare with the one function
`differences`, so that a collection is judged alike wherever it lives. An existing collection is verified
and never recreated; all that is ever added to it is a payload index that it lacks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from embedder.errors import SchemaMismatch
from embedder.vectors import Kind
from qdrant_sink.schema import ANYWHERE, CollectionSchema, PayloadIndex, Placement

VectorKind = Literal["dense", "multivector", "sparse"]

ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class FoundVector:
    """A named vector of an existing collection, as a store describes it, its defaults filled in.

    Attributes:
        kind: one vector, several, or weights per index.
        size: components; None for sparse.
        distance: lower case, as in `Distance`; None for sparse.
        comparator: of a multivector, lower case; None otherwise.
        modifier: of a sparse vector, lower case; None where there is none.
        datatype: of the storage or the sparse index.
        quantization: as in `Quantization`, or what else the store calls it; None for sparse.
        m: edges per node of the graph; 0 where there is none or it is deferred; None for sparse.
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
class FoundCollection:
    """An existing collection as a store describes it: its vectors by name, and the rest as in the schema."""

    vectors: Mapping[str, FoundVector]
    payload_indexes: Mapping[str, PayloadIndex] = field(default_factory=dict)
    payload_on_disk: bool | None = None
    placement: Placement = ANYWHERE


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which a collection is not what is wanted."""

    field: str
    found: str | int
    wanted: str | int


_ALWAYS = {"size": "size", "distance": "distance", "comparator": "comparator", "modifier": "modifier"}
_IF_EXPLICIT = {
    "datatype": "datatype",
    "quantization": "quantization",
    "m": "m",
    "ef_construct": "efConstruct",
    "on_disk": "onDisk",
}
"""Attributes of `FoundVector` and their wire names."""


def differences(wanted: CollectionSchema, found: FoundCollection) -> list[Difference]:
    """Every verified field in which `found` differs, in the order of the schema.

    Always verified is what changes which points are found: that the three vectors are there, their kind, size,
    distance, comparator and modifier, and the type of payload indexes. What costs only memory or time (datatype,
    quantization, the HNSW parameters, on_disk, shards and the like) is verified where the operator has set it
    (`wanted.explicit`) and otherwise his to tune. Further vectors and indexes are not in the way; an index that
    is not there is no difference but one of `missing_indexes`; and a graph of m = 0 may be deferred.
    """
    result: list[Difference] = []
    for kind, want in _expected(wanted).items():
        name = wanted.names.of(kind)
        have = found.vectors.get(name)
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
        "payloadOnDisk": (found.payload_on_disk, wanted.payload_on_disk),
        "shards": (found.placement.shards, wanted.placement.shards),
        "replication": (found.placement.replication, wanted.placement.replication),
        "writeConsistency": (found.placement.write_consistency, wanted.placement.write_consistency),
    }
    result += [
        Difference(name, _shown(is_), _shown(should))
        for name, (is_, should) in of_collection.items()
        if name in wanted.explicit and is_ != should
    ]
    for key, index in wanted.indexes.items():
        there = found.payload_indexes.get(key)
        if there is None:
            continue
        if there.type != index.type:
            result.append(Difference(f"payloadIndexes.{key}", there.type, index.type))
        elif index.tenant and not there.tenant:
            result.append(Difference(f"payloadIndexes.{key}.isTenant", "false", "true"))
    return result


def missing_indexes(wanted: CollectionSchema, found: FoundCollection) -> dict[str, PayloadIndex]:
    """The payload indexes that the collection lacks, which can be added to it at any time."""
    return {key: index for key, index in wanted.indexes.items() if key not in found.payload_indexes}


def _expected(wanted: CollectionSchema) -> dict[Kind, FoundVector]:
    dense, sparse, colbert = wanted.dense, wanted.sparse, wanted.colbert
    return {
        "dense": FoundVector(
            "dense",
            size=dense.size,
            distance=dense.distance,
            datatype=dense.datatype,
            quantization=dense.quantization,
            m=dense.m,
            ef_construct=dense.ef_construct,
            on_disk=dense.on_disk,
        ),
        "sparse": FoundVector("sparse", modifier=sparse.modifier, datatype=sparse.datatype, on_disk=sparse.on_disk),
        "colbert": FoundVector(
            "multivector",
            size=colbert.size,
            distance=colbert.distance,
            comparator=colbert.comparator,
            datatype=colbert.datatype,
            quantization=colbert.quantization,
            on_disk=colbert.on_disk,
        ),
    }


def mismatch(collection: str, found: Sequence[Difference]) -> SchemaMismatch:
    """The error that names every field of `found` with both values, in the message and in the details."""
    fields = "; ".join(f"{d.field} is {d.found}, wanted {d.wanted}" for d in found)
    return SchemaMismatch(
        f"collection {collection!r} exists with another schema and is left as it is: {fields}",
        details={
            "collection": collection,
            "differences": [{"field": d.field, "found": d.found, "wanted": d.wanted} for d in found],
        },
    )


def verify(collection: str, wanted: CollectionSchema, found: FoundCollection) -> None:
    """Raise `SchemaMismatch` unless `found` serves `wanted`."""
    different = differences(wanted, found)
    if different:
        raise mismatch(collection, different)


def _shown(value: str | int | None) -> str | int:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else value
