"""Collections by name: what a name leads to, and whether that collection has the schema.

Nothing is remembered, because a collection can be deleted and created again with another schema at any time, by any
client. A search then would be answered by vectors of another distance without an error. So every read verifies the
schema, concurrently with the embedding of its queries, and concurrent reads share one verification.

A job resolves its name once, at its start, and uses that collection until it ends, so that moving the alias does not
split the job. A read sends the requested name to the store, which resolves it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from embedder.errors import NotFound
from qdrant_sink.indexes import MissingIndexes
from qdrant_sink.schema import CollectionSchema, PayloadIndex
from qdrant_sink.shared_calls import SharedCalls


class Verifies(Protocol):
    """The part of `Store` that resolves, verifies and creates collections."""

    def collection_of(self, name: str, /, *, patient: bool = False) -> str | None:
        """Resolve a name to its collection; None for an unknown name."""
        ...

    def verify(self, collection: str, schema: CollectionSchema, /) -> bool:
        """Whether the collection exists and `ensure` would have nothing to create."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema, /) -> None:
        """Create the collection with this schema, or verify the existing one."""
        ...

    def ensure_index(self, collection: str, key: str, index: PayloadIndex, /) -> None:
        """Create a payload index unless the collection has one on this key."""
        ...


class Catalogue:
    """Collections of one schema in one store. It is thread-safe, and its methods block while they call the store.

    Every method accepts an alias and raises the errors of the store; see the table in `qdrant_sink.store`.

    Args:
        open_store: function that returns the store and opens it if necessary.
        schema: schema of the collections.

    Attributes:
        indexes: adds the payload indexes of the schema that collections lack.
    """

    def __init__(self, open_store: Callable[[], Verifies], schema: CollectionSchema) -> None:
        self._open_store = open_store
        self._schema = schema
        self.indexes = MissingIndexes(schema)
        self._verifications: SharedCalls[bool] = SharedCalls()

    def resolve(self, name: str) -> str:
        """Resolve a name to its collection. A name that is neither a collection nor an alias is returned unchanged.

        The call is retried for as long as a write.
        """
        return self._open_store().collection_of(name, patient=True) or name

    def verify(self, name: str) -> bool:
        """Whether the collection exists with the schema and its payload indexes. Nothing is created.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        return self._verifications(name, lambda: self._open_store().verify(name, self._schema))

    def check_read(self, name: str) -> None:
        """Check that a collection can be read, and create its missing payload indexes if that is possible.

        Raises:
            NotFound: the collection does not exist.
            SchemaMismatch: the collection has another schema.
        """
        if self.verify(name):
            return
        store = self._open_store()
        if store.collection_of(name) is None:
            raise NotFound(f"collection {name!r} does not exist")
        self.indexes.add(store, name)

    def ensure(self, name: str) -> None:
        """Create the collection, or verify it and create missing payload indexes.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        self._open_store().ensure(name, self._schema)
