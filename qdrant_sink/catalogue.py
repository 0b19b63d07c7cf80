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
from qdrant_sink.indexes import MissingIndexes
from qdrant_sink.schema import CollectionSchema, PayloadIndex
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

    def ensure_index(self, collection: str, key: str, index: PayloadIndex, /) -> None:
        """Create a payload index unless the collection has one on this key."""
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
        open_store: function that returns the store and opens it if necessary.
        schema: schema of the collections.
        clock: monotonic clock in seconds.

    Attributes:
        indexes: adds the payload indexes of the schema that collections lack.
    """

    def __init__(
        self,
        open_store: Callable[[], Verifies],
        schema: CollectionSchema,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._open_store = open_store
        self._schema = schema
        self.indexes = MissingIndexes(schema)
        self._clock = clock
        self._lock = threading.Lock()  # guards the next two attributes; not held during calls of the store
        self._resolutions: dict[str, _Resolution] = {}
        self._verified: set[str] = set()

    def resolve(self, name: str, *, max_age_s: float = 0.0) -> str:
        """Resolve a name to its collection. A name that is neither a collection nor an alias is returned unchanged.

        Args:
            name: name of a collection, or an alias.
            max_age_s: maximum age of a cached resolution in seconds. With 0 the store is always asked, and the call is
                retried for as long as a write, which suits jobs that write.
        """
        asked_at = self._clock()
        with self._lock:
            cached = self._resolutions.get(name)
        if cached is not None and asked_at - cached.asked_at < max_age_s:
            return cached.collection
        collection = self._open_store().collection_of(name, patient=max_age_s == 0)
        with self._lock:
            if collection is None:
                removed = self._resolutions.pop(name, None)
                # If it is created again, it may have another schema.
                self._verified -= {name} if removed is None else {name, removed.collection}
                return name
            for key in {name, collection}:
                latest = self._resolutions.get(key)
                if latest is None or latest.asked_at <= asked_at:  # otherwise another thread asked later
                    self._resolutions[key] = _Resolution(asked_at, collection)
        return collection

    def verify(self, name: str) -> bool:
        """Whether the collection exists with the schema. It is checked once per collection; nothing is created.

        This method is meant for reads: it uses names that were resolved up to `RESOLUTION_MAX_AGE_S` ago.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        return self._verify(self.resolve(name, max_age_s=RESOLUTION_MAX_AGE_S), name)

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

    def ensure(self, name: str) -> str:
        """Create or verify the collection, regardless of the cache, and return the name of the collection.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        with self._lock:
            is_verified = name in self._verified  # verified names are names of collections, not aliases
        collection = name if is_verified else self.resolve(name)
        try:
            self._open_store().ensure(collection, self._schema)
        except WorkerError as error:
            with self._lock:
                self._verified.discard(collection)
            if isinstance(error, SchemaMismatch):
                raise mismatch(name, error.differences) from None  # the error has the caller's name
            raise
        with self._lock:
            self._verified.add(collection)
        return collection

    def _verify(self, collection: str, name: str) -> bool:
        with self._lock:
            if collection in self._verified:
                return True
        try:
            if not self._open_store().verify(collection, self._schema):
                return False
        except SchemaMismatch as error:
            raise mismatch(name, error.differences) from None
        with self._lock:
            self._verified.add(collection)
        return True
