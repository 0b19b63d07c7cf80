"""The schema of a collection that is completed, from what the collection has and what it is to get."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, get_args

from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.copying import VECTOR_KINDS, existing_part
from qdrant_sink.schema import CollectionSchema, Datatype, Quantization, VectorNames
from qdrant_sink.schema_diff import UNNAMED, CollectionDescription, verify


def completed_schema(
    collection: str, wanted: CollectionSchema, actual: CollectionDescription, kinds: Sequence[Kind]
) -> CollectionSchema:
    """Return the schema that an existing collection has when it is completed.

    A vector that exists is recognised by its kind and, if it is to be completed, by its size: the one that has the name
    in `wanted`, or else the only one. It keeps its name and settings. A vector that is added has those of `wanted`.

    Args:
        collection: name of the collection for errors.
        wanted: schema of all three kinds.
        actual: what the collection has.
        kinds: kinds to complete.

    Raises:
        InvalidRequest: several vectors could be the one to complete.
        SchemaMismatch: the name of a vector that is to be added belongs to another one.
    """
    names: dict[Kind, str] = {}
    parts: dict[Kind, Any] = {}
    for kind in KINDS:
        name = _recognised(wanted, actual, kind, is_completed=kind in kinds)
        if name is not None:
            names[kind], parts[kind] = name, existing_part(kind, actual.vectors[name])
        else:
            names[kind] = wanted.names.of(kind)
            parts[kind] = getattr(wanted, kind) if kind in kinds else None
    present = {name for kind, name in names.items() if parts[kind] is not None}
    for kind in KINDS:  # a vector of another kind may have the name that the config gives to an absent one
        if parts[kind] is None and names[kind] in present:
            names[kind] = f"{names[kind]}-{kind}"
    schema = replace(
        wanted,
        dense=parts["dense"],
        sparse=parts["sparse"],
        colbert=parts["colbert"],
        names=VectorNames(names["dense"], names["sparse"], names["colbert"]),
        payload_indexes={},
        tenant_key=None,
        explicit=frozenset(),
    )
    taken: dict[str, Any] = {
        kind: parts[kind] if kind in kinds and names[kind] in actual.vectors else None for kind in KINDS
    }
    if any(part is not None for part in taken.values()):
        verify(collection, replace(schema, **taken), actual)
    return schema


def check_copyable(collection: str, schema: CollectionSchema, actual: CollectionDescription) -> None:
    """Check that a collection of this schema can hold all vectors of an existing collection.

    Raises:
        InvalidRequest: a vector has no place in the schema, or has a type that this worker does not create.
    """
    places = {schema.names.of(kind) for kind in schema.kinds}
    for name, vector in actual.vectors.items():
        problem = None if name in places else "is not one of its dense, sparse and ColBERT vectors"
        for value, types in ((vector.datatype, Datatype), (vector.quantization, Quantization)):
            if value is not None and value not in get_args(types):
                problem = f"has the type {value!r}, which this worker does not create"
        if problem is not None:
            raise InvalidRequest(
                f"collection {collection!r} cannot be copied: its vector {name or UNNAMED!r} {problem}; "
                "update the Qdrant server to 1.18 or newer, which adds vectors in place"
            )


def copied_schema(schema: CollectionSchema, state: CollectionState) -> CollectionSchema:
    """Return the schema of a new collection for the points of an existing one, without payload indexes.

    Its metadata name the model of the existing one, whose vectors are copied.
    """
    actual = state.description
    return replace(schema, payload_on_disk=actual.payload_on_disk, placement=actual.placement, model=state.model)


def _recognised(
    wanted: CollectionSchema, actual: CollectionDescription, kind: Kind, *, is_completed: bool
) -> str | None:
    """Return the name of the collection's vector of this kind; None if it has none."""
    size = None if kind == "sparse" or not is_completed else getattr(wanted, kind).size
    names = [
        name
        for name, vector in actual.vectors.items()
        if vector.kind == VECTOR_KINDS[kind] and size in (None, vector.size)
    ]
    preferred = wanted.names.of(kind)
    if preferred in names or not names:
        return preferred if names else None
    if len(names) == 1:
        return names[0]
    if not is_completed:
        return None
    choices = ", ".join(repr(name or UNNAMED) for name in sorted(names))
    raise InvalidRequest(
        f"kinds: the collection has several vectors that could be the {kind} one ({choices}); "
        f"set vectorNames.{kind} in QDRANT_COLLECTION_CONFIG to one of them, or to a new name"
    )
