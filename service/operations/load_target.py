"""What a load does to its collection: schema, graph and aliases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from qdrant_sink import CollectionSchema
from qdrant_sink.loading import LoadContent, ShardedLoad, Steps, in_force, records_of, sharded_loads
from service.operations.collections import Collections
from service.operations.load_aliases import MovedAliases, move_aliases
from service.operations.load_content import in_collection
from service.operations.load_values import LoadRequest
from service.operations.store_access import StoreAccess

INDEX_TIMEOUT_S: Final = 24 * 3600.0
"""Maximum time for building the HNSW graph."""


class LoadTarget:
    """The collection of a load. All methods block for the store.

    Args:
        store: access to the store.
        collections: the collections of the worker.
        request: the load.
        say: prints a message.
    """

    def __init__(
        self, store: StoreAccess, collections: Collections, request: LoadRequest, say: Callable[[str], None]
    ) -> None:
        self._store = store
        self._collections = collections
        self._request = request
        self._say = say

    def shards(self) -> tuple[Sequence[ShardedLoad], int]:
        """The loads that are divided into shards, and the number of points in the collection if there are some."""
        store, collection = self._store.opened(), self._request.collection
        sharded = sharded_loads(in_force(records_of(store.metadata(collection)).values()))
        return sharded, store.count(collection) if sharded else 0

    def ensured(self) -> tuple[str | None, LoadContent | None]:
        """Create or verify the collection.

        Returns:
            The collection that the alias leads to, and what decides the content of the points of the load.
        """
        request, catalogue = self._request, self._collections.catalogue
        catalogue.ensure(request.collection)
        alias_from = None if request.alias is None else self._store.opened().collection_of(request.alias, patient=True)
        if request.content is None:
            return alias_from, None
        schema = catalogue.recognised(request.collection).read_by(request.content.text_key)
        return alias_from, in_collection(request.content, schema, request.collection)

    def defer(self) -> bool:
        """Defer the graph if that is wanted. A collection without dense vectors has none."""
        store, request = self._store.opened(), self._request
        schema = self._schema()
        if schema.dense is None or (not request.defer_index and store.count(request.collection)):
            return False
        store.defer_index(request.collection, schema)
        return True

    def restore(self) -> None:
        """Restore the graph, without waiting for it."""
        self._store.opened().restore_index(self._request.collection, self._schema())

    def build_index(self) -> None:
        """Wait for the graph."""
        self._store.opened().build_index(self._request.collection, self._schema(), timeout_s=INDEX_TIMEOUT_S)

    def _schema(self) -> CollectionSchema:
        """The schema with the graph of the config, which is all that remains known of a graph that is deferred."""
        schema = self._collections.catalogue.recognised(self._request.collection).schema
        wanted = self._collections.wanted
        if schema.dense is None or wanted.dense is None:
            return schema
        return replace(schema, dense=replace(schema.dense, m=wanted.dense.m))

    def move(self, steps: Steps) -> MovedAliases:
        """Move the aliases of a step."""
        store, request = self._store.opened(), self._request
        for alias in steps.aliases:
            self._collections.named(alias, "alias")
        records = records_of(store.metadata(request.collection)).values()
        return move_aliases(
            store,
            request.collection,
            steps.aliases,
            own=steps.record.alias,
            led_to={record.alias: record.alias_from for record in records},
            allow_empty=request.allow_empty,
            say=self._say,
        )
