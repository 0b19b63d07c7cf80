"""Compare an existing collection with the wanted schema.

Both adapters translate the answer of their store into a `CollectionDescription` and call the same function
`differences`, so that both stores apply the same rules. An existing collection is verified and never recreated. Only
missing payload indexes are added to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from embedder.vectors import Kind
from qdrant_sink.errors import Difference, SchemaMismatch
from qdrant_sink.payload_path import canonical_path
from qdrant_sink.schema import ANYWHERE, CollectionSchema, PayloadIndex, Placement

VectorKind = Literal["dense", "multivector", "sparse"]

ABSENT = "absent"
"""Value of a field that the collection does not have."""

UNNAMED = "(unnamed)"
"""Name of the unnamed vector in differences."""


@dataclass(frozen=True, slots=True)
class VectorDescription:
    """A vector of an existing collection, with the store's defaults filled in.

    Attributes:
        kind: one vector per point, several, or sparse weights.
        size: number of components; None for sparse.
        distance: distance function in lower case, as in `Distance`; None for sparse.
        comparator: comparator of a multivector in lower case; None otherwise.
        modifier: modifier of a sparse vector in lower case; None without a modifier.
        datatype: type of the stored components or of the weights in the sparse index.
        quantization: value of `Quantization`, or the store's name of another type; None for sparse.
        m: edges per node of the graph; 0 without a graph or while it is deferred; None for sparse.
        ef_construct: candidates considered while the graph is built; None for sparse.
        on_disk: whether the vector is memory-mapped.
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

    @property
    def has_byte_components(self) -> bool:
        """Whether components are integers from 0 to 255, to which the store rounds. Sparse weights are scaled first."""
        return self.kind != "sparse" and self.datatype == "uint8"


@dataclass(frozen=True, slots=True)
class CollectionDescription:
    """An existing collection: its vectors by name, and its other properties as in `CollectionSchema`.

    An unnamed vector has the empty name. The keys of payload indexes may come in any notation of their path.
    """

    vectors: Mapping[str, VectorDescription]
    payload_indexes: Mapping[str, PayloadIndex] = field(default_factory=dict)
    payload_on_disk: bool | None = None
    placement: Placement = ANYWHERE

    def __post_init__(self) -> None:
        indexes = {canonical_path(key): index for key, index in self.payload_indexes.items()}
        object.__setattr__(self, "payload_indexes", indexes)


_ALWAYS_VERIFIED = {"size": "size", "distance": "distance", "comparator": "comparator", "modifier": "modifier"}
_VERIFIED_IF_EXPLICIT = {
    "datatype": "datatype",
    "quantization": "quantization",
    "m": "m",
    "ef_construct": "efConstruct",
    "on_disk": "onDisk",
}
"""Wire names of the attributes of `VectorDescription`: those that are always verified, and those that are verified if
the operator has set them."""


def differences(wanted: CollectionSchema, actual: CollectionDescription) -> list[Difference]:
    """Return every verified field in which `actual` differs from `wanted`, in the order of the schema.

    Fields that change search results are always verified: the existence of the schema's vectors, their kind, size,
    distance, comparator and modifier, and the types of payload indexes; so are components of one byte, which lose all
    that the model computes. Fields that affect only memory or time (other datatypes, quantization, HNSW parameters,
    on_disk, shards and similar ones) are verified if the operator has set them (`wanted.explicit`); otherwise they may
    have been tuned. Additional vectors and indexes are ignored. A missing
    index is reported by `missing_indexes` instead, and a graph with m = 0 may be a deferred one.
    """
    result: list[Difference] = []
    for kind, wanted_vector in _expected(wanted).items():
        actual_vector = actual.vectors.get(wanted.names.of(kind))
        name = wanted.names.of(kind) or UNNAMED
        if actual_vector is None:
            result.append(Difference(name, ABSENT, wanted_vector.kind))
        elif actual_vector.kind != wanted_vector.kind:
            result.append(Difference(f"{name}.kind", actual_vector.kind, wanted_vector.kind))
        else:
            explicit = {
                attribute: wire
                for attribute, wire in _VERIFIED_IF_EXPLICIT.items()
                if f"{kind}.{wire}" in wanted.explicit
            }
            if actual_vector.m == 0:
                explicit.pop("m", None)
            if actual_vector.has_byte_components:
                explicit["datatype"] = "datatype"
            result += [
                Difference(
                    f"{name}.{wire}",
                    _format(getattr(actual_vector, attribute)),
                    _format(getattr(wanted_vector, attribute)),
                )
                for attribute, wire in (_ALWAYS_VERIFIED | explicit).items()
                if getattr(actual_vector, attribute) != getattr(wanted_vector, attribute)
            ]
    collection_fields = {
        "payloadOnDisk": (actual.payload_on_disk, wanted.payload_on_disk),
        "shards": (actual.placement.shards, wanted.placement.shards),
        "replication": (actual.placement.replication, wanted.placement.replication),
        "writeConsistency": (actual.placement.write_consistency, wanted.placement.write_consistency),
    }
    result += [
        Difference(name, _format(actual_value), _format(wanted_value))
        for name, (actual_value, wanted_value) in collection_fields.items()
        if name in wanted.explicit and actual_value != wanted_value
    ]
    for key, index in wanted.indexes.items():
        existing = actual.payload_indexes.get(key)
        if existing is not None:
            result += _index_differences(key, index, existing)
    return result


def missing_indexes(wanted: CollectionSchema, actual: CollectionDescription) -> dict[str, PayloadIndex]:
    """Return the payload indexes that the collection lacks. They can be added at any time."""
    return {key: index for key, index in wanted.indexes.items() if key not in actual.payload_indexes}


def _index_differences(key: str, wanted: PayloadIndex, actual: PayloadIndex) -> list[Difference]:
    if actual.type != wanted.type:
        return [Difference(f"payloadIndexes.{key}", actual.type, wanted.type)]
    return [Difference(f"payloadIndexes.{key}.isTenant", "false", "true")] if wanted.tenant > actual.tenant else []


def _expected(wanted: CollectionSchema) -> dict[Kind, VectorDescription]:
    dense, sparse, colbert = wanted.dense, wanted.sparse, wanted.colbert
    expected: dict[Kind, VectorDescription] = {}
    if dense is not None:
        expected["dense"] = VectorDescription(
            "dense",
            size=dense.size,
            distance=dense.distance,
            datatype=dense.datatype,
            quantization=dense.quantization,
            m=dense.m,
            ef_construct=dense.ef_construct,
            on_disk=dense.on_disk,
        )
    if sparse is not None:
        expected["sparse"] = VectorDescription(
            "sparse", modifier=sparse.modifier, datatype=sparse.datatype, on_disk=sparse.on_disk
        )
    if colbert is not None:
        expected["colbert"] = VectorDescription(
            "multivector",
            size=colbert.size,
            distance=colbert.distance,
            comparator=colbert.comparator,
            datatype=colbert.datatype,
            quantization=colbert.quantization,
            on_disk=colbert.on_disk,
        )
    return expected


def mismatch(collection: str, fields: Sequence[Difference]) -> SchemaMismatch:
    """Create the error that lists every differing field with both values."""
    details = "; ".join(f"{field.field} is {field.found}, wanted {field.wanted}" for field in fields)
    return SchemaMismatch(
        f"collection {collection!r} exists with another schema and is left as it is: {details}",
        collection=collection,
        differences=fields,
    )


def verify(collection: str, wanted: CollectionSchema, actual: CollectionDescription) -> None:
    """Raise `SchemaMismatch` if `actual` differs from `wanted` in a verified field."""
    fields = differences(wanted, actual)
    if fields:
        raise mismatch(collection, fields)


def verify_index(collection: str, key: str, wanted: PayloadIndex, actual: PayloadIndex) -> None:
    """Raise `SchemaMismatch` if the existing index on a key is not the wanted one."""
    fields = _index_differences(key, wanted, actual)
    if fields:
        raise mismatch(collection, fields)


def _format(value: str | int | None) -> str | int:
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else value
