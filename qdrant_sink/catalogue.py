"""What is remembered of collections: which names stand for which, and which of them have the schema.

Everything is keyed by the collection that a name stands for, never by the name that was asked for: an alias and the
collection's own name are one collection. A job resolves its name once, at its start, and then uses that collection
throughout, so that an alias that moves meanwhile does not split it. A read asks the store by the name that it was
given, which is right at every moment; what it may take from here, up to `RESOLUTION_MAX_AGE_S` old, is only which
collection's schema has been verified.
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
"""Age up to which a read trusts what a name stood for. Searches in quick succession verify nothing anew."""


class Verifies(Protocol):
    """The part of a store that knows collections; see `Store`."""

    def collection_of(self, name: str, /, *, patient: bool = False) -> str | None:
        """The collection that a name stands for; None for an unknown name."""
        ...

    def verify(self, collection: str, schema: CollectionSchema, /) -> bool:
        """Whether the collection exists with all that `ensure` would give it."""
        ...

    def ensure(self, collection: str, schema: CollectionSchema, /) -> None:
        """Create the collection with this schema, or verify that it has it."""
        ...


@dataclass(frozen=True, slots=True)
class _Resolution:
    """The collection that a name stood for when the store was asked, by the clock of the catalogue."""

    asked_at: float
    collection: str


class Catalogue:
    """The collections of one schema in one store. Thread-safe; blocks for the store.

    Every method raises the errors of the store, see the table of `qdrant_sink.store`.

    Args:
        opened: returns the store, which it may open first.
        schema: schema of the collections.
        clock: seconds, monotonic.
    """

    def __init__(
        self, opened: Callable[[], Verifies], schema: CollectionSchema, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._opened = opened
        self._schema = schema
        self._clock = clock
        self._guard = threading.Lock()  # of the next two; never held while the store is asked
        self._resolved: dict[str, _Resolution] = {}
        self._verified: set[str] = set()

    def resolve(self, name: str, *, max_age_s: float = 0.0) -> str:
        """The collection that a name stands for; the name itself while there is neither collection nor alias.

        Args:
            name: of a collection, or an alias.
            max_age_s: age in seconds up to which an earlier resolution is good enough; 0 asks the store, patiently:
                it is what a job that stores can afford.
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
                # If it is created anew, it may have another schema.
                self._verified -= {name} if gone is None else {name, gone.collection}
                return name
            for alias in {name, collection}:
                latest = self._resolved.get(alias)
                if latest is None or latest.asked_at <= asked_at:  # otherwise another thread has asked since
                    self._resolved[alias] = _Resolution(asked_at, collection)
        return collection

    def verify(self, name: str) -> bool:
        """Whether the collection exists with the schema, checked once per collection; creates nothing.

        For a read: see `RESOLUTION_MAX_AGE_S`.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        return self._verify(self.resolve(name, max_age_s=RESOLUTION_MAX_AGE_S), name)

    def check_read(self, name: str) -> None:
        """Check that a collection can be read; a missing payload index does not matter.

        Raises:
            NotFound: the name stands for no collection.
            SchemaMismatch: the collection has another schema.
        """
        if not self.verify(name) and self._opened().collection_of(name) is None:
            raise NotFound(f"collection {name!r} does not exist")

    def ensure(self, name: str) -> str:
        """Create the collection or verify it, whatever is remembered of it; returns what the name stands for.

        Raises:
            SchemaMismatch: the collection has another schema.
        """
        with self._guard:
            known = name in self._verified  # then it is a collection's own name
        collection = name if known else self.resolve(name)
        try:
            self._opened().ensure(collection, self._schema)
        except WorkerError as error:
            with self._guard:
                self._verified.discard(collection)
            if isinstance(error, SchemaMismatch):
                raise mismatch(name, error.differences) from None  # the caller knows it by this name
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
