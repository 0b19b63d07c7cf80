"""Create, verify and index the collections of a Qdrant server, and move aliases.

No state is kept between calls. Work that a killed worker left unfinished, such as missing payload indexes or a deferred
graph, is detected on the server and completed by the next call.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

from qdrant_client import QdrantClient, models

from embedder.errors import InvalidRequest, NotFound
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.errors import StoreRejected, StoreUnavailable
from qdrant_sink.schema import CollectionSchema, PayloadIndex
from qdrant_sink.schema_diff import CollectionDescription, missing_indexes, verify, verify_index
from qdrant_sink.server.graph_warnings import GraphWarnings
from qdrant_sink.server.schema import (
    collection_description,
    collection_state,
    graph_diff,
    index_params,
    sparse_vectors_config,
    vectors_config,
)
from qdrant_sink.store import check_collection

T = TypeVar("T")

log = logging.getLogger(__name__)

POLL_INTERVAL_MIN_S: Final = 0.05
POLL_INTERVAL_MAX_S: Final = 2.0
"""Minimum and maximum time between two polls of a collection that is being indexed."""


class Call(Protocol):
    """Function that calls the connected client for a collection, retries the call and maps its errors."""

    def __call__(self, collection: str, call: Callable[[QdrantClient], T]) -> T:
        """Return the result of `call`."""
        ...


class ServerCollections:
    """Operations of a store on collections and aliases.

    Args:
        call: function that calls the client; see `Call`.
        pause: function that waits for some seconds and returns whether the store was closed in the meantime.
        warnings: warnings about deferred graphs.
    """

    def __init__(self, call: Call, pause: Callable[[float], bool], warnings: GraphWarnings) -> None:
        self._call = call
        self._pause = pause
        self._warnings = warnings

    def ensure(self, collection: str, schema: CollectionSchema) -> None:
        """Create the collection and its payload indexes, or verify it and add missing indexes.

        A collection that another worker creates concurrently is verified. Creating an index twice is harmless.
        """
        check_collection(collection)
        actual = self._description_or_none(collection)
        created = actual is None
        if actual is None:
            self._create(collection, schema)
            actual = self._description(collection)
        verify(collection, schema, actual)
        missing = missing_indexes(schema, actual)
        for key, index in missing.items():
            self._create_index(collection, key, index)
            if not created:
                log.info("collection %r had no payload index on %r; created it (%s)", collection, key, index.type)
        if missing:
            verify(collection, schema, self._description(collection))

    def ensure_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        """Create a payload index unless the collection has one on this key; see `Store.ensure_index`."""
        check_collection(collection)
        existing = self._description(collection).payload_indexes.get(key)
        if existing is None:
            self._create_index(collection, key, index)
            log.info("collection %r had no payload index on %r; created it (%s)", collection, key, index.type)
        else:
            verify_index(collection, key, index, existing)

    def verify(
        self, collection: str, schema: CollectionSchema, description: CollectionDescription | None = None
    ) -> bool:
        """Whether `ensure` would have nothing to create. Raises SchemaMismatch; see `Store.verify`."""
        check_collection(collection)
        actual = self._description_or_none(collection) if description is None else description
        if actual is None:
            return False
        verify(collection, schema, actual)
        if schema.dense is not None and schema.dense.m > 0:
            self._warnings.seen(collection, has_graph=actual.vectors[schema.names.dense].m != 0)
        return not missing_indexes(schema, actual)

    def defer_index(self, collection: str, schema: CollectionSchema) -> None:
        """Defer the graph of the dense vector, unless its m was tuned to a value other than that of the schema.

        A collection without dense vectors has no graph to defer.
        """
        check_collection(collection)
        m = self._actual_m(collection, schema)
        if schema.dense is None:
            return
        if m == schema.dense.m and m > 0:
            self._update_m(collection, schema, 0)
        elif m > 0:
            log.warning(
                "collection %r has dense.m = %d instead of %d, so its graph is not deferred; set dense.m in "
                "QDRANT_COLLECTION_CONFIG to the value of the collection",
                collection,
                m,
                schema.dense.m,
            )

    def restore_index(self, collection: str, schema: CollectionSchema) -> None:
        """Restore the graph of the dense vector if it is deferred.

        If the graph is already restored, the collection is not changed, because every change restarts its optimisation.
        """
        check_collection(collection)
        if schema.dense is not None and schema.dense.m > 0 and self._actual_m(collection, schema) == 0:
            self._update_m(collection, schema, schema.dense.m)

    def metadata(self, collection: str) -> Mapping[str, Any]:
        """Return the metadata of a collection; empty before Qdrant 1.16."""
        check_collection(collection)
        return self._call(collection, lambda client: client.get_collection(collection)).config.metadata or {}

    def update_metadata(self, collection: str, changes: Mapping[str, Any]) -> None:
        """Set keys of the metadata. The server merges them into the others, and starts no optimisation."""
        check_collection(collection)
        self._update(collection, metadata=dict(changes))

    def wait_until_green(self, collection: str, *, timeout_s: float) -> None:
        """Wait until the server has finished the optimisation of a collection, and start it if it is pending.

        Raises:
            StoreUnavailable: the optimisation failed or took longer than `timeout_s`, or the store was closed.
        """
        deadline = time.monotonic() + timeout_s
        pause_s = POLL_INTERVAL_MIN_S
        previous_status = ""
        while True:
            status = self._call(collection, lambda client: client.get_collection(collection)).status.value
            if status == "green":
                return
            if status == "grey" != previous_status:  # the server restarted: any change starts the pending optimisation
                self._update(collection, optimizers_config=models.OptimizersConfigDiff())
            previous_status = status
            remaining_s = deadline - time.monotonic()
            if status == "red":
                raise StoreUnavailable(f"collection {collection!r} is red: Qdrant failed to build its index")
            if remaining_s <= 0:
                raise StoreUnavailable(
                    f"collection {collection!r} is {status} and not green after {timeout_s:g} s: "
                    "its index is still being built; retry later"
                )
            if self._pause(min(pause_s, remaining_s)):
                raise StoreUnavailable("the store is closed")
            pause_s = min(2 * pause_s, POLL_INTERVAL_MAX_S)

    def collection_of(self, name: str) -> str | None:
        """Resolve a name to its collection: the name itself, the target of an alias, or None for an unknown name."""
        check_collection(name)
        target = self.aliases().get(name)  # usually a short list
        if target is not None:
            return target
        return name if self._call(name, lambda client: client.collection_exists(name)) else None

    def names(self) -> list[str]:
        """Return the names of all collections that the API key may see, in alphabetical order."""
        response = self._call("", lambda client: client.get_collections())
        return sorted(description.name for description in response.collections)

    def aliases(self) -> dict[str, str]:
        """Return the collections of all aliases that the API key may see, by alias in alphabetical order."""
        response = self._call("", lambda client: client.get_aliases())
        return dict(sorted((alias.alias_name, alias.collection_name) for alias in response.aliases))

    def describe(self, collection: str) -> CollectionState:
        """Return the state of a collection."""
        check_collection(collection)
        return collection_state(self._call(collection, lambda client: client.get_collection(collection)))

    def description(self, collection: str) -> CollectionDescription:
        """Return the vectors and payload indexes of a collection."""
        check_collection(collection)
        return self._description(collection)

    def alias(self, alias: str, collection: str) -> None:
        """Point an alias at a collection atomically."""
        check_collection(alias)
        check_collection(collection)
        names = self.names()
        if alias in names:
            raise InvalidRequest(f"alias: {alias!r} is the name of a collection; choose another")
        if collection not in names:
            raise NotFound(f"collection {collection!r} does not exist")
        change: list[models.AliasOperations] = [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=collection, alias_name=alias)),
        ]
        if not self._call(collection, lambda client: client.update_collection_aliases(change)):
            raise StoreUnavailable(
                f"Qdrant accepted the change of alias {alias!r} but has not applied it yet; retry later"
            )

    def drop(self, collection: str) -> None:
        """Delete a collection with all its points, and the aliases that lead to it; see `Store.drop`."""
        check_collection(collection)
        if collection in self.aliases():
            raise InvalidRequest(f"collection: {collection!r} is an alias; name the collection itself")
        if collection not in self.names():
            raise NotFound(f"collection {collection!r} does not exist")
        # An attempt without an answer may have deleted it, so that a further one finds nothing to delete.
        self._call(collection, lambda client: client.delete_collection(collection))
        if self._call(collection, lambda client: client.collection_exists(collection)):
            raise StoreUnavailable(f"Qdrant has not deleted collection {collection!r} yet; retry later")

    def _description_or_none(self, collection: str) -> CollectionDescription | None:
        try:
            return self._description(collection)
        except NotFound:
            return None

    def _description(self, collection: str) -> CollectionDescription:
        return collection_description(self._call(collection, lambda client: client.get_collection(collection)))

    def _actual_m(self, collection: str, schema: CollectionSchema) -> int:
        """Return the number of edges per node in the graph of the dense vector."""
        vector = self._description(collection).vectors.get(schema.names.dense)
        return (vector and vector.m) or 0

    def _create(self, collection: str, schema: CollectionSchema) -> None:
        placement = schema.placement
        try:
            self._call(
                collection,
                lambda client: client.create_collection(
                    collection,
                    vectors_config=vectors_config(schema),
                    sparse_vectors_config=sparse_vectors_config(schema),
                    shard_number=placement.shards,
                    replication_factor=placement.replication,
                    write_consistency_factor=placement.write_consistency,
                    on_disk_payload=schema.payload_on_disk,
                    metadata=None if schema.model is None else schema.model.metadata,  # ignored before 1.16
                ),
            )
        except StoreRejected:
            # Another worker, or an earlier attempt without an answer, may have created the collection. If it does
            # not exist, the server has really refused it.
            if not self._call(collection, lambda client: client.collection_exists(collection)):
                raise

    def _create_index(self, collection: str, key: str, index: PayloadIndex) -> None:
        params = index_params(index)
        result = self._call(
            collection, lambda client: client.create_payload_index(collection, key, field_schema=params, wait=True)
        )
        if result.status != models.UpdateStatus.COMPLETED:
            raise StoreUnavailable(
                f"Qdrant accepted the payload index on {key!r} but has not built it yet; retry later"
            )

    def _update_m(self, collection: str, schema: CollectionSchema, m: int) -> None:
        self._update(collection, vectors_config=graph_diff(schema, m=m))

    def _update(self, collection: str, **change: Any) -> None:
        if not self._call(collection, lambda client: client.update_collection(collection, **change)):
            raise StoreUnavailable(
                f"Qdrant accepted the change of collection {collection!r} but has not applied it yet; retry later"
            )
