"""Add named vectors to an existing collection of a Qdrant server (1.18 or newer).

The server's call has no fields for a graph, the place of the rows and their quantization; a new vector inherits those
of the collection. They are set by a second call, before any row arrives. A process that ends between the two calls
leaves a vector without rows, whose settings the next call completes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from qdrant_client import models

from embedder.vectors import KINDS, Kind
from qdrant_sink.errors import StoreUnavailable
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.schema_diff import verify
from qdrant_sink.server.collections import Call
from qdrant_sink.server.schema import (
    collection_description,
    new_vector_config,
    sparse_vectors_config,
    vector_settings,
)
from qdrant_sink.store import check_collection


class AddedVectors:
    """Adds vectors to collections.

    Args:
        call: function that calls the client; see `Call`.
    """

    def __init__(self, call: Call) -> None:
        self._call = call

    def missing(self, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> list[Kind]:
        """Return those of the kinds whose vectors the collection lacks."""
        check_collection(collection)
        info = self._call(collection, lambda client: client.get_collection(collection))
        vectors = collection_description(info).vectors
        return [kind for kind in kinds if schema.names.of(kind) not in vectors]

    def add(self, collection: str, schema: CollectionSchema, kinds: Sequence[Kind]) -> bool:
        """Add the vectors that the collection lacks, and verify the others; see `Store.add_vectors`.

        Returns:
            Whether settings were changed, after which the server rebuilds the collection.
        """
        for kind in self.missing(collection, schema, kinds):
            self._create(collection, schema, kind)
        others: dict[str, Any] = {kind: None for kind in KINDS if kind not in kinds}
        wanted = replace(schema, payload_indexes={}, tenant_key=None, explicit=frozenset(), **others)
        info = self._call(collection, lambda client: client.get_collection(collection))
        verify(collection, wanted, collection_description(info))
        changed = [self._set(collection, schema, kind) for kind in kinds]
        return any(changed)

    def _create(self, collection: str, schema: CollectionSchema, kind: Kind) -> None:
        config = new_vector_config(schema, kind)
        name = schema.names.of(kind)
        result = self._call(collection, lambda client: client.create_vector_name(collection, name, config, wait=True))
        if result.status != models.UpdateStatus.COMPLETED:
            raise StoreUnavailable(f"Qdrant accepted the vector {name!r} but has not added it yet; retry later")

    def _set(self, collection: str, schema: CollectionSchema, kind: Kind) -> bool:
        """Give a vector without rows the settings of the schema, and return whether it has no rows."""
        name = schema.names.of(kind)
        has_rows = models.Filter(must=[models.HasVectorCondition(has_vector=name)])
        rows, _ = self._call(
            collection, lambda client: client.scroll(collection, has_rows, limit=1, with_payload=False)
        )
        if rows:
            return False
        change: dict[str, Any]
        if kind == "sparse":
            change = {"sparse_vectors_config": sparse_vectors_config(schema)}
        else:
            change = {"vectors_config": {name: vector_settings(schema, kind)}}
        if not self._call(collection, lambda client: client.update_collection(collection, **change)):
            raise StoreUnavailable(
                f"Qdrant accepted the settings of vector {name!r} but has not applied them yet; retry later"
            )
        return True
