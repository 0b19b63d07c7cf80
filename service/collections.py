"""Whole collections: which may be named, their schema, the graph around a bulk load, aliases."""

from __future__ import annotations

from embedder.errors import InvalidRequest
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import check_collection
from service.ingest import Ingest
from service.settings import Settings
from service.store_calls import StoreCalls


class Collections:
    """The collections of a worker. Usable from any thread and any event loop.

    Args:
        settings: name the default, and those that may be named.
        calls: the store.
        ingest: remembers which collections have the schema.
        schema: of all of them.
    """

    def __init__(self, settings: Settings, calls: StoreCalls, ingest: Ingest, schema: CollectionSchema) -> None:
        self._settings = settings
        self._calls = calls
        self._ingest = ingest
        self._schema = schema

    def named(self, name: str | None, field: str) -> str:
        """The collection that a request means: the one that it names, or the default.

        Raises:
            InvalidRequest: it names none and there is no default, or one that may not be named; says `field`.
        """
        collection = name or self._settings.qdrant_collection
        if collection is None:
            raise InvalidRequest(f"{field} is required: the worker has no default (QDRANT_COLLECTION)")
        allowed = self._settings.qdrant_collections
        if allowed and collection not in allowed:
            raise InvalidRequest(f"{field}: '{collection}' is not among the collections that this worker serves")
        return collection

    async def prepare_load(self, collection: str, *, defer: bool = False) -> bool:
        """Before a bulk load: make or verify the collection; build no graph while points arrive if it is empty.

        Args:
            collection: by name.
            defer: build none even if it has points, whose searches then compare with each of them.

        Returns:
            Whether the graph is deferred: `build_index` must follow.
        """
        self.named(collection, "collection")
        return await self._calls.call(lambda: self._prepare_load(collection, defer=defer))

    def _prepare_load(self, collection: str, *, defer: bool) -> bool:
        store = self._calls.opened()
        self._ingest.ensure(collection)
        if not defer and store.count(collection):
            return False
        store.defer_index(collection, self._schema)
        return True

    async def check_alias(self, alias: str, collection: str) -> None:
        """Raise `InvalidRequest` if this alias cannot come to mean this collection, which need not be there yet.

        It has the name of a collection, or of none that this worker serves; or the collection is an alias itself.
        """
        self.named(alias, "alias")
        check_collection(alias)
        check_collection(collection)
        of_alias, of_collection = await self._calls.call(
            lambda: [self._calls.opened().collection_of(name) for name in (alias, collection)]
        )
        if alias in (of_alias, collection):
            raise InvalidRequest(f"alias: '{alias}' is the name of a collection; choose another")
        if of_collection not in (None, collection):
            raise InvalidRequest(f"collection: '{collection}' is an alias; an alias leads to a collection")

    async def verify(self, collection: str) -> bool:
        """Whether a collection is there with the model's schema; creates nothing.

        Raises:
            StoreError: it has another schema, or the store refuses or does not answer.
        """
        return await self._calls.call(lambda: self._ingest.verify(collection))

    async def build_index(self, collection: str, *, timeout_s: float) -> None:
        """After a bulk load: returns when the graph is built and the collection is green."""
        await self._calls.load(lambda: self._calls.opened().build_index(collection, self._schema, timeout_s=timeout_s))

    async def alias(self, alias: str, collection: str) -> None:
        """Have an alias mean this collection, in one step."""
        await self._calls.call(lambda: self._calls.opened().alias(self.named(alias, "alias"), collection))
