"""The inventory operation: which collections there are, and what one of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from qdrant_sink import CollectionState, PayloadForm, SchemaMismatch, Taken
from service.operations.collections import Collections
from service.operations.store_access import StoreAccess
from service.settings import Settings


@dataclass(frozen=True, slots=True)
class CollectionsRequest:
    """List the collections, or describe one.

    Attributes:
        collection: name of the collection to describe, or of an alias; None to list all.
    """

    collection: str | None = None


@dataclass(frozen=True, slots=True)
class CollectionsResult:
    """The collections and aliases that the worker and the credentials of its store permit.

    Attributes:
        names: names of the collections in alphabetical order.
        aliases: collections by alias in alphabetical order.
        default: name of the default collection, which need not exist; None without a default.
        descriptions: what the operator says of these collections, by the name or the alias in the config.
    """

    names: Sequence[str]
    aliases: Mapping[str, str]
    default: str | None
    descriptions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class DescribedCollection:
    """What one collection holds.

    Attributes:
        name: name of the collection itself, also if the request named an alias.
        description: what the operator says of it, under the name of the request or its own; None for nothing.
        aliases: its aliases that the worker permits, in alphabetical order.
        state: vectors, payload indexes, number of points and status.
        form: layout and text key of the payloads.
        taken: what the worker takes from the collection rather than from the config; empty also if the worker cannot
            use the collection.
        ambiguous: the choices for each setting that has to decide before the worker can use all of the collection.
    """

    name: str
    description: str | None
    aliases: Sequence[str]
    state: CollectionState
    form: PayloadForm
    taken: Taken
    ambiguous: Mapping[str, Sequence[str]]


class Inventory:
    """The inventory operation. Usable from any event loop.

    Args:
        settings: the settings, which name the default collection and the allowed ones.
        store: access to the store.
        collections: the collections of the worker.
    """

    def __init__(self, settings: Settings, store: StoreAccess, collections: Collections) -> None:
        self._settings = settings
        self._store = store
        self._collections = collections

    async def __call__(self, request: CollectionsRequest) -> CollectionsResult | DescribedCollection:
        """List the collections, or describe the one of the request.

        Raises:
            WorkerError: the collection does not exist or is not allowed, or the store fails.
        """
        if request.collection is None:
            self._store.check_named()
            return await self._store.call(self._list)
        name = self._collections.named(request.collection, "collection")
        return await self._store.call(lambda: self._describe(name))

    def _list(self) -> CollectionsResult:
        store = self._store.opened()
        aliases = {alias: target for alias, target in store.aliases().items() if self._is_allowed(alias)}
        names = [name for name in store.collections() if self._is_allowed(name)]
        given = self._settings.qdrant_collection_config.descriptions
        descriptions = {name: given[name] for name in (*names, *aliases) if name in given}
        return CollectionsResult(names, aliases, self._settings.qdrant_collection, descriptions)

    def _describe(self, name: str) -> DescribedCollection:
        store = self._store.opened()
        targets = store.aliases()
        state = store.describe(name)
        collection = targets.get(name, name)
        aliases = [alias for alias, target in targets.items() if target == collection and self._is_allowed(alias)]
        given = self._settings.qdrant_collection_config.descriptions
        description = given.get(name, given.get(collection))
        catalogue = self._collections.catalogue
        try:
            recognised = catalogue.recognised(name)
        except SchemaMismatch as error:
            form, choices = catalogue.form(name), error.choices
            return DescribedCollection(collection, description, aliases, state, form, Taken(), choices)
        form, taken = recognised.form, recognised.taken
        return DescribedCollection(collection, description, aliases, state, form, taken, recognised.ambiguous)

    def _is_allowed(self, name: str) -> bool:
        allowed = self._settings.qdrant_collections
        return not allowed or name in allowed
