"""Whole collections: which may be named, their schema, how many points they hold, the graph around a bulk load."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedder import InvalidRequest
from qdrant_sink import Catalogue, CollectionSchema, check_collection, point_id
from service.operations.store_access import StoreAccess
from service.settings import Settings


@dataclass(frozen=True, slots=True, eq=False)
class CountRequest:
    """How many points a collection holds, or how many match a filter.

    Attributes:
        collection: by name; None for the default.
        filter: in Qdrant's JSON; None matches every point.
    """

    collection: str | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CountResult:
    """The exact number of points that match."""

    count: int


@dataclass(frozen=True, slots=True, eq=False)
class DeleteRequest:
    """Points to remove: by their ids or by a filter, exactly one of both.

    Attributes:
        collection: by name; None for the default.
        ids: as their callers gave them.
        id_scope: what derived ids belong to; None for the name of the collection.
        filter: in Qdrant's JSON, with at least one condition.
    """

    collection: str | None = None
    ids: Sequence[int | str] | None = None
    id_scope: str | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """How many points were there and are removed."""

    deleted: int


class Collections:
    """The collections of a worker. Usable from any thread and any event loop.

    Args:
        settings: name the default, and those that may be named.
        store: the access to the store.
        schema: the schema of all of them.

    Attributes:
        schema: as given.
        catalogue: remembers which collections have the schema, and which names stand for which.
    """

    def __init__(self, settings: Settings, store: StoreAccess, schema: CollectionSchema) -> None:
        self._settings = settings
        self._store = store
        self.schema = schema
        self.catalogue = Catalogue(store.opened, schema)

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

    async def count(self, request: CountRequest) -> CountResult:
        """Count points.

        Raises:
            WorkerError: the collection does not exist or may not be named, or the store fails.
        """
        collection = self.named(request.collection, "collection")
        store = self._store.opened
        return CountResult(await self._store.call(lambda: store().count(collection, request.filter)))

    async def delete(self, request: DeleteRequest) -> DeleteResult:
        """Remove points.

        Raises:
            WorkerError: an id is not valid, the collection does not exist or may not be named, or the store fails.
        """
        collection = self.named(request.collection, "collection")
        scope = request.id_scope or collection
        ids = [point_id(raw, scope, field=f"ids[{n}]") for n, raw in enumerate(request.ids or ())]
        store = self._store.opened
        deleted = await self._store.call(lambda: store().delete(collection, ids=ids, where=request.filter))
        return DeleteResult(deleted)

    async def verify(self, collection: str) -> bool:
        """Whether a collection is there with the model's schema; creates nothing.

        Raises:
            StoreError: it has another schema, or the store refuses or does not answer.
        """
        return await self._store.call(lambda: self.catalogue.verify(collection))

    async def prepare_load(self, collection: str, *, defer: bool = False) -> bool:
        """Before a bulk load: make or verify the collection, and build no graph while points arrive if it is empty.

        Args:
            collection: by name.
            defer: build none even if it has points, whose searches then compare with each of them.

        Returns:
            Whether the graph is deferred: `build_index` must follow.
        """
        self.named(collection, "collection")
        return await self._store.call(lambda: self._prepare_load(collection, defer=defer))

    def _prepare_load(self, collection: str, *, defer: bool) -> bool:
        store = self._store.opened()
        self.catalogue.ensure(collection)
        if not defer and store.count(collection):
            return False
        store.defer_index(collection, self.schema)
        return True

    async def build_index(self, collection: str, *, timeout_s: float) -> None:
        """After a bulk load: returns when the graph is built and the collection is green.

        A caller that waits no longer leaves the run to itself; closing the store ends it.
        """
        store = self._store.opened
        await self._store.call(lambda: store().build_index(collection, self.schema, timeout_s=timeout_s))

    async def check_alias(self, alias: str, collection: str) -> None:
        """Check that this alias can come to mean this collection, which need not be there yet.

        Raises:
            InvalidRequest: the alias has the name of a collection, or may not be named; or the collection is an alias.
        """
        self.named(alias, "alias")
        check_collection(alias)
        check_collection(collection)
        of_alias, of_collection = await self._store.call(
            lambda: [self._store.opened().collection_of(name) for name in (alias, collection)]
        )
        if alias in (of_alias, collection):
            raise InvalidRequest(f"alias: '{alias}' is the name of a collection; choose another")
        if of_collection not in (None, collection):
            raise InvalidRequest(f"collection: '{collection}' is an alias; an alias leads to a collection")

    async def set_alias(self, alias: str, collection: str) -> None:
        """Have an alias mean this collection, in one step."""
        await self._store.call(lambda: self._store.opened().alias(self.named(alias, "alias"), collection))
