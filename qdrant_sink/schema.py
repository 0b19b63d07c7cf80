"""The collection as data: what BGE-M3 wants of it, what a store found, and where the two differ.

Both adapters translate what they find into `FoundVector` values and compare with the one function
`differences`, so that a collection is judged alike wherever it lives. An existing collection is
verified, never altered and never recreated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from embedder.errors import SchemaMismatch

Distance = Literal["cosine", "dot", "euclid", "manhattan"]
Datatype = Literal["float32", "float16"]
VectorKind = Literal["dense", "multivector", "sparse"]

ABSENT = "absent"


@dataclass(frozen=True, slots=True)
class DenseSchema:
    """One vector per point, searched through an HNSW graph.

    Attributes:
        size: components per vector.
        distance: how two vectors are compared.
        m: edges per node of the graph.
        ef_construct: candidates considered while the graph is built.
    """

    size: int
    distance: Distance = "cosine"
    m: int = 16
    ef_construct: int = 100


@dataclass(frozen=True, slots=True)
class SparseSchema:
    """Weights per token id, in an inverted index.

    Attributes:
        datatype: of the weights in the index (float16 costs about 0.2 % recall).
        modifier: "idf", or None: the weights of BGE-M3 are learned and must not be weighted again.
    """

    datatype: Datatype = "float32"
    modifier: Literal["idf"] | None = None


@dataclass(frozen=True, slots=True)
class ColbertSchema:
    """Several vectors per point, compared by MaxSim.

    Attributes:
        size: components per row.
        distance: how two rows are compared.
        comparator: how two sets of rows are compared.
        datatype: of the storage; float16 halves it and leaves the ranking as it is.
        on_disk: memory-mapped rather than in RAM.
        m: 0 builds no graph: the rows rerank candidates and are not searched themselves.
    """

    size: int
    distance: Distance = "cosine"
    comparator: Literal["max_sim"] = "max_sim"
    datatype: Datatype = "float16"
    on_disk: bool = True
    m: int = 0


@dataclass(frozen=True, slots=True)
class CollectionSchema:
    """The three named vectors of a collection: "dense", "sparse" and "colbert"."""

    dense: DenseSchema
    sparse: SparseSchema
    colbert: ColbertSchema


def schema_for(dense_size: int, colbert_size: int) -> CollectionSchema:
    """The schema of a BGE-M3 checkpoint whose heads have these sizes (both 1024 for BAAI/bge-m3)."""
    return CollectionSchema(
        dense=DenseSchema(size=dense_size),
        sparse=SparseSchema(),
        colbert=ColbertSchema(size=colbert_size),
    )


@dataclass(frozen=True, slots=True)
class FoundVector:
    """A named vector of an existing collection, as a store describes it.

    Attributes:
        kind: one vector, several, or weights per index.
        size: components; None for sparse.
        distance: lower case, as in `Distance`; None for sparse.
        comparator: of a multivector, lower case; None otherwise.
        modifier: of a sparse vector, lower case; None where there is none.
    """

    kind: VectorKind
    size: int | None = None
    distance: str | None = None
    comparator: str | None = None
    modifier: str | None = None


FoundSchema = Mapping[str, FoundVector]
"""What a store found: the vectors of a collection by name."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One field in which a collection is not what is wanted."""

    field: str
    found: str | int
    wanted: str | int


def differences(wanted: CollectionSchema, found: FoundSchema) -> list[Difference]:
    """Every verified field in which `found` differs, in the order of the schema.

    Verified is what changes which points are found: that the three vectors are there, their kind, size,
    distance, comparator and modifier. What costs only memory or time (datatype, on_disk, the HNSW
    parameters) is the operator's to tune and not verified, and further vectors are not in the way.
    """
    expected: dict[str, FoundVector] = {
        "dense": FoundVector("dense", size=wanted.dense.size, distance=wanted.dense.distance),
        "sparse": FoundVector("sparse", modifier=wanted.sparse.modifier),
        "colbert": FoundVector(
            "multivector",
            size=wanted.colbert.size,
            distance=wanted.colbert.distance,
            comparator=wanted.colbert.comparator,
        ),
    }
    result: list[Difference] = []
    for name, want in expected.items():
        have = found.get(name)
        if have is None:
            result.append(Difference(name, ABSENT, want.kind))
            continue
        if have.kind != want.kind:
            result.append(Difference(f"{name}.kind", have.kind, want.kind))
            continue
        for field in ("size", "distance", "comparator", "modifier"):
            is_, should = getattr(have, field), getattr(want, field)
            if is_ != should:
                result.append(Difference(f"{name}.{field}", _shown(is_), _shown(should)))
    return result


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


def verify(collection: str, wanted: CollectionSchema, found: FoundSchema) -> None:
    """Raise `SchemaMismatch` unless `found` serves `wanted`."""
    different = differences(wanted, found)
    if different:
        raise mismatch(collection, different)


def _shown(value: str | int | None) -> str | int:
    return "none" if value is None else value
