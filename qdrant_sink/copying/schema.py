"""The schema of a collection that gets the points of another one, and what the copy loses.

Like everywhere in this package, the fields that the operator has set are as they are wanted, and all others as the
collection has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, cast, get_args

from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.schema import (
    ColbertSchema,
    CollectionSchema,
    Datatype,
    DenseSchema,
    Distance,
    PayloadIndex,
    Placement,
    Quantization,
    SparseSchema,
    VectorNames,
)
from qdrant_sink.schema_diff import UNNAMED, CollectionDescription, VectorDescription, VectorKind

VECTOR_KINDS: Final[Mapping[Kind, VectorKind]] = {"dense": "dense", "sparse": "sparse", "colbert": "multivector"}
"""What each kind of vector is in a collection."""

_WIRE_FIELDS: Final = {
    "distance": "distance",
    "datatype": "datatype",
    "quantization": "quantization",
    "m": "m",
    "ef_construct": "efConstruct",
    "on_disk": "onDisk",
    "modifier": "modifier",
}
"""Wire names of the fields of a vector that an operator can set."""

_COLBERT_DISTANCES: Final = ("cosine", "dot")

_DATATYPES: Final = get_args(Datatype)


@dataclass(frozen=True, slots=True)
class SourceVectors:
    """The vectors of a collection that are copied.

    Attributes:
        names: names of the vectors in the collection. Those of the kinds that are not copied belong to no vector.
        kinds: kinds that the collection has.
        left: names of all other vectors, in alphabetical order.
    """

    names: VectorNames
    kinds: tuple[Kind, ...]
    left: tuple[str, ...]


def source_vectors(
    collection: str,
    description: CollectionDescription,
    preferred: VectorNames,
    chosen: Mapping[Kind, str],
    kinds: Sequence[Kind] = KINDS,
    *,
    replaced: Sequence[Kind] = (),
) -> SourceVectors:
    """Find the vector of each kind in a collection: the chosen one, the one of the preferred name, or the only one.

    Args:
        collection: name of the collection for errors.
        description: what the collection has.
        preferred: names of the config.
        chosen: names that the request gives, by kind.
        kinds: kinds to look for.
        replaced: kinds that are not copied; of several vectors of such a kind all are left out.

    Raises:
        InvalidRequest: a chosen vector is missing or of another kind, or several could be the one to copy.
    """
    names: dict[Kind, str] = {}
    for kind in kinds:
        candidates = sorted(name for name, vector in description.vectors.items() if vector.kind == VECTOR_KINDS[kind])
        name = chosen.get(kind)
        if name is not None and name not in candidates:
            raise InvalidRequest(
                f"must name a {kind} vector of the collection ({_listed(candidates)}), got {name!r}"
            ).at("vectors")
        if name is None and preferred.of(kind) in candidates:
            name = preferred.of(kind)
        if name is None and len(candidates) > 1:
            if kind in replaced:
                continue
            raise InvalidRequest(
                f"must name one of the vectors of collection {collection!r} that could be the {kind} one "
                f"({_listed(candidates)}), got none"
            ).at("vectors")
        if name is not None or candidates:
            names[kind] = candidates[0] if name is None else name
    unused = {kind: f"{kind}-of-no-vector" for kind in KINDS}
    return SourceVectors(
        VectorNames(**{**unused, **names}),
        tuple(names),
        tuple(sorted(description.vectors.keys() - set(names.values()))),
    )


def existing_part(kind: Kind, vector: VectorDescription) -> DenseSchema | SparseSchema | ColbertSchema:
    """Return the schema of a vector that exists. Types that this worker does not create become the default."""
    datatype = cast("Datatype", vector.datatype if vector.datatype in _DATATYPES else "float32")
    quantization = vector.quantization if vector.quantization in get_args(Quantization) else "none"
    on_disk = bool(vector.on_disk)
    if kind == "sparse":
        return SparseSchema(datatype, "idf" if vector.modifier == "idf" else None, on_disk)
    if kind == "colbert":
        return ColbertSchema(
            vector.size or 0,
            distance=cast("Any", vector.distance),
            datatype=datatype,
            on_disk=on_disk,
            m=vector.m or 0,
            quantization=cast("Quantization", quantization),
        )
    return DenseSchema(
        vector.size or 0,
        cast("Distance", vector.distance),
        m=vector.m or 0,
        ef_construct=vector.ef_construct or 100,
        datatype=datatype,
        on_disk=on_disk,
        quantization=cast("Quantization", quantization),
    )


def reindexed_schema(
    wanted: CollectionSchema, state: CollectionState, source: SourceVectors, copied: Sequence[Kind]
) -> CollectionSchema:
    """Return the schema of the new collection.

    Args:
        wanted: schema of the config, with the kinds of the new collection. A kind that is embedded has the size of the
            model.
        state: the collection to copy.
        source: its vectors.
        copied: kinds that are copied; the others of `wanted` are embedded.

    Raises:
        InvalidRequest: two vectors would have one name, or a copied vector has components of a type that has lost what
            the model computed.
    """
    actual = state.description
    parts: dict[str, Any] = {}
    names: dict[str, str] = {}
    for kind in KINDS:
        part = getattr(wanted, kind)
        has_vector = kind in source.kinds and part is not None
        if has_vector:
            part = _part(kind, part, actual.vectors[source.names.of(kind)], wanted.explicit, is_copied=kind in copied)
        parts[kind] = part
        is_set = f"vectorNames.{kind}" in wanted.explicit
        names[kind] = source.names.of(kind) if has_vector and not is_set else wanted.names.of(kind)
    present = [names[kind] for kind in KINDS if parts[kind] is not None]
    duplicate = next((name for name in present if present.count(name) > 1), None)
    if duplicate is not None:
        raise InvalidRequest(
            f"vectorNames: must be different names, got {duplicate!r} twice; set them in QDRANT_COLLECTION_CONFIG"
        )
    for kind in KINDS:  # the name of an absent vector is not used, and must not be that of another one
        if parts[kind] is None and names[kind] in present:
            names[kind] = f"{names[kind]}-{kind}"
    explicit = wanted.explicit
    wanted_placement, placement = wanted.placement, actual.placement
    return replace(
        wanted,
        **parts,
        names=VectorNames(**names),
        payload_on_disk=wanted.payload_on_disk if "payloadOnDisk" in explicit else actual.payload_on_disk,
        placement=Placement(
            wanted_placement.shards if "shards" in explicit else placement.shards,
            wanted_placement.replication if "replication" in explicit else placement.replication,
            wanted_placement.write_consistency if "writeConsistency" in explicit else placement.write_consistency,
        ),
        explicit=explicit | {"kinds"} | {f"vectorNames.{kind}" for kind in KINDS if parts[kind] is not None},
    )


def kept_indexes(schema: CollectionSchema, actual: CollectionDescription) -> dict[str, PayloadIndex]:
    """Return the payload indexes of the old collection that the schema of the new one does not have."""
    return {key: index for key, index in actual.payload_indexes.items() if key not in schema.indexes}


def losses(
    schema: CollectionSchema, actual: CollectionDescription, source: SourceVectors, copied: Sequence[Kind]
) -> list[str]:
    """Return what the new collection has not any more of the vectors of the old one, one sentence for each loss."""
    result = [f"the vector {name or UNNAMED!r} is left out" for name in source.left]
    for kind in copied:
        if kind == "sparse":
            continue  # the store keeps the weights as they came; types and modifiers are those of the index
        vector, part = actual.vectors[source.names.of(kind)], getattr(schema, kind)
        was_normalised = vector.distance == "cosine"
        if was_normalised and part.distance != "cosine":
            result.append(f"{kind}: vectors of the distance cosine are stored with norm 1, and stay so")
        if not was_normalised and part.distance == "cosine":
            result.append(f"{kind}: the distance cosine normalises vectors to norm 1, so their norms are lost")
        if vector.datatype == "float16" and part.datatype == "float32":
            result.append(f"{kind}: vectors that are stored in float16 stay rounded to it")
        if vector.datatype == "float32" and part.datatype == "float16":
            result.append(f"{kind}: vectors are rounded to float16")
    return result


def _part(kind: Kind, wanted: Any, vector: VectorDescription, explicit: frozenset[str], *, is_copied: bool) -> Any:
    """The schema of one vector: as it exists, with the fields that the operator has set."""
    if is_copied and kind != "sparse" and vector.datatype is not None and vector.datatype not in _DATATYPES:
        raise InvalidRequest(
            f"the {kind} vector is stored as {vector.datatype}, which has lost what the model computed; embed it anew "
            f"from the stored texts (embed: {kind})"
        )
    part = existing_part(kind, vector)
    fields = {
        field: getattr(wanted, field)
        for field, wire in _WIRE_FIELDS.items()
        if hasattr(part, field) and f"{kind}.{wire}" in explicit
    }
    if kind != "sparse" and not is_copied:
        fields["size"] = wanted.size
    if kind == "dense" and "m" not in fields and not vector.m:
        fields["m"] = wanted.m  # without edges the graph may be deferred
    if kind == "colbert" and vector.distance not in _COLBERT_DISTANCES:
        fields["distance"] = wanted.distance
    return replace(part, **fields)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(repr(name or UNNAMED) for name in names) or "it has none"
