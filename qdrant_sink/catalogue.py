"""Cache of resolved names and verified collections.

The cache is keyed by the collection that a name resolves to and not by the requested name, so that an alias and its
collection share an entry. A job resolves its name once, at its start, and uses that collection until it ends, so that
moving the alias does not split the job. A read sends the requested name to the store, which resolves it correctly at
any time. A read uses the cache, which may be up to `RESOLUTION_MAX_AGE_S` old, only to look up whether the schema of
the collection is verified.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Protocol

from embedder.errors import NotFound, WorkerError
from qdrant_sink.errors import SchemaMismatch
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.schema_diff import mismatch

RESOLUTION_MAX_AGE_S: Final = 1.0
"""Maximum age of a resolved name that a read may use, so that searches in quick succession do not verify again."""


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


@dataclass(frozen=True, slots=True)
class _Resolution:
    """The collection that a name resolved to at `asked_at`, a time of the catalogue's clock."""

    asked_at: float
    collection: str


class Catalogue:
    """Collections of one schema in one store. It is thread-safe, and its methods block while they call the store.

    Every method raises the errors of the store; see the table in `qdrant_sink.store`.

    Args:
        opened: function that returns the store and opens it if necessary.
        schema: schema of the collections.
        clock: monotonic clock in seconds.
    """

    def __init__(
        self, opened: Callable[[], Verifies], schema: CollectionSchema, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._opened = opened
        self._schema = schema
        self._clock = clock
        self._guard = threading.Lock()  # guards the next two attributes; not held during calls of the store
        self._resolved: dict[str, _Resolution] = {}
        self._verified: set[str] = set()

    def resolve(self, name: str, *, max_age_s: float = 0.0) -> str:
        """Resolve a name to its collection. A name that is neither a collection nor an alias is returned unchanged.

        Args:
            name: name of a collection, or an alias.
            max_age_s: maximum age of a cached resolution in seconds. With 0 the store is always asked, and the call is
                retried for as long as a write, which suits jobs that write.
        """
        asked_at = self._clock()
        with self._guard:
            earlier = self._resolved.get(name)
        if earlier is not None and asked_at - earlier.asked_at < max_age_s:
            return earlier.collection
        collection = self._opened().collection_of(name, patient=max_age_s == 0)
        with self._guard:
            if collection is None:
                gone = self._resolved.pop(name, None)
                # If it is created again, it may have another schema.
                self._verified -= {name} if gone is None else {name, gone.collection}
                return name
            for alias in {name, collection}:
                latest = self._resolved.get(alias)
                if latest is None or latest.asked_at <= asked_at:  # otherwise another thread asked later
                    self._resolved[alias] = _Resolution(asked_at, collection)
        return collection

    def verify(self, name: str) -> bool:
        """Whether the collection exists with the schema. It is checked once per collection; nothing is created.

        This method is meant for reads: it uses names that were resolved up to `RESOLUTION_MAX_AGE_S` ago.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        return self._verify(self.resolve(name, max_age_s=RESOLUTION_MAX_AGE_S), name)

    def check_read(self, name: str) -> None:
        """Check that a collection can be read. Missing payload indexes are ignored.

        Raises:
            NotFound: the collection does not exist.
            SchemaMismatch: the collection has another schema.
        """
        if not self.verify(name) and self._opened().collection_of(name) is None:
            raise NotFound(f"collection {name!r} does not exist")

    def ensure(self, name: str) -> str:
        """Create or verify the collection, regardless of the cache, and return the name of the collection.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        with self._guard:
            known = name in self._verified  # verified names are names of collections, not aliases
        collection = name if known else self.resolve(name)
        try:
            self._opened().ensure(collection, self._schema)
        except WorkerError as error:
            with self._guard:
                self._verified.discard(collection)
            if isinstance(error, SchemaMismatch):
                raise mismatch(name, error.differences) from None  # the error has the caller's name
            raise
        with self._guard:
            self._verified.add(collection)
        return collection

    def _verify(self, collection: str, name: str) -> bool:
        with self._guard:
            if collection in self._verified:
                return True
        try:
            if not self._opened().verify(collection, self._schema):
                return False
        except SchemaMismatch as error:
            raise mismatch(name, error.differences) from None
        with self._guard:
            self._verified.add(collection)
        return True
