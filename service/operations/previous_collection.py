"""The old collection of a finished re-index: the way back to it, and its end."""

from __future__ import annotations

from embedder import NotFound
from qdrant_sink import Store
from service.logs import AUDIT, CALLER
from service.operations.collections import Collections
from service.operations.reindex_values import PreviousCollection
from service.operations.store_access import StoreAccess
from service.operations.unended_loads import check_loads_ended
from service.validation import invalid_field


class PreviousCollections:
    """Operations on the old collections of finished re-indexes. Usable from any event loop.

    Args:
        collections: the collections of the worker.
        target: access to the store of the new collections.
        source: access to the store of the old collections.
    """

    def __init__(self, collections: Collections, target: StoreAccess, source: StoreAccess) -> None:
        self._collections = collections
        self._target = target
        self._source = source

    async def back(self, collection: str, into: str, alias: str, *, allow_empty: bool = False) -> PreviousCollection:
        """Move the alias from the new collection back to the old one.

        Args:
            collection: the old collection.
            into: the new collection.
            alias: the alias, which leads to the new collection.
            allow_empty: move it although the old collection has no points and the new one has some.

        Raises:
            InvalidRequest: the alias leads elsewhere, the old collection has no points, a name is that of an alias, or
                the collections are in two stores.
            WorkerError: a collection does not exist, or the store fails.
        """
        if self._source is not self._target:
            raise invalid_field("alias", "cannot lead back to a collection of another store")
        for name, field in ((collection, "collection"), (into, "into")):
            self._collections.named(name, field)
        await self._collections.check_alias(alias, collection)
        state = await self._target.patient_call(lambda: self._state(collection, into))
        leads_to = await self._target.patient_call(lambda: self._target.opened().collection_of(alias, patient=True))
        if leads_to != into:
            where = "nowhere" if leads_to is None else f"to {leads_to!r}"
            raise invalid_field("alias", f"must lead to {into!r} to be moved back, and {alias!r} leads {where}")
        if state.stored and not state.points and not allow_empty:
            raise invalid_field(
                "collection",
                f"must have points to take the alias back, and {collection!r} has none while {into!r} has "
                f"{state.stored}; allowEmpty moves it nevertheless",
            )
        await self._collections.set_alias(alias, collection)
        return state

    async def drop(self, collection: str, into: str) -> PreviousCollection:
        """Delete the old collection.

        Args:
            collection: the old collection, to which no alias leads.
            into: the new collection, to which an alias leads, or which has at least as many points.

        Raises:
            InvalidRequest: an alias leads to the old collection, a name is that of an alias, the new collection is not
                in use and has fewer points, or a load or a copy into one of the two is not finished.
            WorkerError: a collection does not exist, or a store fails.
        """
        for name, field in ((collection, "collection"), (into, "into")):
            self._collections.named(name, field)
        return await self._source.patient_call(lambda: self._drop(collection, into))

    def _drop(self, collection: str, into: str) -> PreviousCollection:
        state = self._state(collection, into)
        source, target = self._source.opened(), self._target.opened()
        alias = next((alias for alias, to in source.aliases().items() if to == collection), None)
        if alias is not None:
            raise invalid_field(
                "collection", f"must not be in use, and the alias {alias!r} leads to {collection!r}; move it first"
            )
        if into not in target.aliases().values() and state.stored < state.points:
            raise invalid_field(
                "into",
                f"must have the points of {collection!r} ({state.points}) or an alias that leads to it, and {into!r} "
                f"has {state.stored} points and no alias; run the re-index to its end first",
            )
        check_loads_ended(source, collection, "collection")
        check_loads_ended(target, into, "into")
        try:
            source.drop(collection)
        except Exception as error:
            AUDIT.info("%s deletes collection %r: failed (%s)", CALLER.get(), collection, type(error).__name__)
            raise
        AUDIT.info("%s deletes collection %r: %d points deleted", CALLER.get(), collection, state.points)
        return state

    def _state(self, collection: str, into: str) -> PreviousCollection:
        """Both collections with their numbers of points, after checking that they are two collections."""
        source, target = self._source.opened(), self._target.opened()
        if collection == into and source is target:
            raise invalid_field("into", f"must be another collection, got {into!r}")
        return PreviousCollection(
            collection,
            _points(source, collection, "collection"),
            into,
            _points(target, into, "into"),
        )


def _points(store: Store, collection: str, field: str) -> int:
    resolved = store.collection_of(collection, patient=True)
    if resolved is None:
        raise NotFound(f"collection {collection!r} does not exist")
    if resolved != collection:
        raise invalid_field(field, f"must not be an alias, got {collection!r}; give the collection itself")
    return store.count(collection, patient=True)
