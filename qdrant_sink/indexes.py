"""Payload indexes of the schema that an existing collection lacks. They are created at its first use of any kind.

A server in strict mode, as Qdrant's cloud has it, filters only by indexed keys. A collection that was created without
the indexes of the schema, or before they were configured, is not always written first.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

from embedder.errors import WorkerError
from qdrant_sink.errors import IndexRequired
from qdrant_sink.schema import CollectionSchema, PayloadIndex

T = TypeVar("T")

log = logging.getLogger(__name__)

RETRY_INTERVAL_S: Final = 60.0
"""Minimum time between two attempts to add indexes to a collection for reads, which may not need them."""


class HasIndexes(Protocol):
    """The part of `Store` that creates payload indexes."""

    def ensure_index(self, collection: str, key: str, index: PayloadIndex, /) -> None:
        """Create a payload index unless the collection has one on this key."""
        ...


class MissingIndexes:
    """Adds the payload indexes of a schema to collections. It is thread-safe, and its methods block.

    Args:
        schema: schema of the collections.
        clock: monotonic clock in seconds.
    """

    def __init__(self, schema: CollectionSchema, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._schema = schema
        self._clock = clock
        self._lock = threading.Lock()  # guards the next attribute
        self._attempts: dict[str, float] = {}

    def add(self, store: HasIndexes, collection: str) -> None:
        """Create the missing indexes of a collection that is about to be read.

        Indexes that cannot be created are logged, because the read may not need them. A collection is attempted once in
        `RETRY_INTERVAL_S`, so that a key without the right to create indexes does not slow down every read.
        """
        now = self._clock()
        with self._lock:
            self._attempts = {name: at for name, at in self._attempts.items() if now - at < RETRY_INTERVAL_S}
            if collection in self._attempts:
                return
            self._attempts[collection] = now
        for key, index in self._schema.indexes.items():
            try:
                store.ensure_index(collection, key, index)
            except WorkerError as error:
                log.warning(
                    "collection %r lacks the payload index on %r, which cannot be created: %s",
                    collection,
                    key,
                    error.message,
                )

    def run(self, store: HasIndexes, collection: str, call: Callable[[], T]) -> T:
        """Run a call with a filter. An index of the schema that it needs and lacks is created, and the call repeated.

        Args:
            store: the store of the call.
            collection: name of the collection, or an alias.
            call: function that reads, counts or deletes; it may be called once per index of the schema and once more.

        Raises:
            IndexRequired: the schema has no such index, or it cannot be created; the message says which.
            WorkerError: the error of the call.
        """
        created: set[str] = set()
        while True:
            try:
                return call()
            except IndexRequired as required:
                key = required.key
                index = self._schema.indexes.get(key)
                if index is None or (key in created and not required.types):
                    raise
                if key in created:
                    raise IndexRequired(
                        f"Qdrant filters only by indexed keys (strict mode), and {key!r}, which payloadIndexes has as "
                        f"{index.type}, has no index of a type that suits this condition ({required.types}); write "
                        "another condition for the key",
                        key=key,
                        types=required.types,
                    ) from required
                created.add(key)
                try:
                    store.ensure_index(collection, key, index)
                except WorkerError as error:
                    raise IndexRequired(
                        f"Qdrant filters only by indexed keys (strict mode), and the index on {key!r}, which "
                        f"payloadIndexes has, cannot be created: {error.message}",
                        key=key,
                    ) from error
