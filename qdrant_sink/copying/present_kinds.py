"""The kinds of vectors that points of a collection have, which are fewer than its schema has if none were stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from embedder.vectors import KINDS, Kind
from qdrant_sink.copying.schema import VECTOR_KINDS
from qdrant_sink.errors import FeatureMissing
from qdrant_sink.filters import Filter
from qdrant_sink.schema_diff import CollectionDescription
from qdrant_sink.store import Store


def present_kinds(store: Store, collection: str, vectors: Mapping[Kind, Sequence[str]]) -> tuple[Kind, ...]:
    """Return the kinds of which at least one point of a collection has a vector.

    A server before 1.13 does not know the condition. Then all kinds are returned, and points without vectors are
    rejected one by one.

    Args:
        store: the store.
        collection: name of the collection.
        vectors: names of the vectors to look for, by kind.
    """
    try:
        return tuple(
            kind for kind, names in vectors.items() if any(_has_vector(store, collection, name) for name in names)
        )
    except FeatureMissing:
        return tuple(vectors)


def vectors_by_kind(description: CollectionDescription) -> dict[Kind, list[str]]:
    """Return the names of all vectors of a collection by kind, in the order of the kinds."""
    by_kind: dict[Kind, list[str]] = {}
    for kind in KINDS:
        names = [name for name, vector in description.vectors.items() if vector.kind == VECTOR_KINDS[kind]]
        if names:
            by_kind[kind] = names
    return by_kind


def _has_vector(store: Store, collection: str, name: str) -> bool:
    where: Filter = {"must": [{"has_vector": name}]}
    return bool(store.scroll(collection, where, False, limit=1)[0])  # noqa: FBT003
