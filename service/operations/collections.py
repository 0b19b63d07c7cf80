"""Operations on collections: access, schema, count, delete and aliases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedder import PLANS, QUICK
from qdrant_sink import (
    COLLECTION_NAME_RULE,
    Catalogue,
    CollectionSchema,
    Document,
    DocumentPaths,
    Recognised,
    Replacement,
    VersionedCollections,
    is_collection_name,
    matches_all,
    point_id,
)
from service.logs import AUDIT, CALLER
from service.operations.store_access import StoreAccess
from service.settings import Settings
from service.validation import characters, counted, invalid_field

_QUICK_MAX_IDS: Final = 1000
"""Maximum ids of a deletion that are derived among quick work."""

DELETE_BATCH_MAX_IDS: Final = 10_000
"""Maximum number of ids in one call that deletes points."""


@dataclass(frozen=True, slots=True, eq=False)
class CountRequest:
    """Count the points of a collection, or those that match a filter.

    Attributes:
        collection: name of the collection; None for the default.
        filter: filter in Qdrant's JSON; None matches every point.
    """

    collection: str | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class CountResult:
    """The exact number of matching points."""

    count: int


@dataclass(frozen=True, slots=True, eq=False)
class DeleteRequest:
    """Delete points by their ids or by a filter, or all chunks of documents.

    Attributes:
        collection: name of the collection; None for the default.
        ids: ids as the caller gave them.
        doc_ids: ids of documents that are stored in chunks, as the caller gave them.
        id_scope: name from which ids are derived; None for the name of the collection.
        filter: filter in Qdrant's JSON with at least one condition.
    """

    collection: str | None = None
    ids: Sequence[int | str] | None = None
    doc_ids: Sequence[int | str] | None = None
    id_scope: str | None = None
    filter: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """The number of points that existed and are deleted."""

    deleted: int


class Collections:
    """The collections of a worker. Usable from any thread and any event loop.

    Args:
        settings: the settings, which name the default collection and the allowed ones.
        store: access to the store.
        wanted: the schema of the config.

    Attributes:
        wanted: the schema of new collections, whose fields that the operator has set existing ones must match.
        catalogue: says what a name leads to, and what that collection has.
    """

    def __init__(self, settings: Settings, store: StoreAccess, wanted: CollectionSchema) -> None:
        self._settings = settings
        self._store = store
        self.wanted = wanted
        self.catalogue = Catalogue(store.opened, wanted)

    def of_schema(self, wanted: CollectionSchema) -> Collections:
        """The same collections with another schema of new ones."""
        return Collections(self._settings, self._store, wanted)

    def named(self, name: str | None, field: str) -> str:
        """The name of a request's collection, or the default.

        Args:
            name: the name in the request; None for the default.
            field: path of the field, for the message of an error.

        Raises:
            InvalidRequest: the worker has no store, the name is missing and there is no default, it cannot be that of
                a collection, or the collection is not allowed.
        """
        self._store.check_named()
        collection = name or self._settings.qdrant_collection
        if collection is None:
            raise invalid_field(field, "is required: the worker has no default collection (QDRANT_COLLECTION)")
        if not is_collection_name(collection):
            raise invalid_field(field, f"must {COLLECTION_NAME_RULE}, got {characters(collection)}")
        allowed = self._settings.qdrant_collections
        if allowed and collection not in allowed:
            raise invalid_field(field, f"must be a collection that this worker serves, got {collection!r}")
        return collection

    def check_filter(self, where: Mapping[str, Any] | None) -> None:
        """Check that a request of one tenant does not get the points of all, because its filter is missing.

        Raises:
            InvalidRequest: collections have a tenant key, and the filter is missing or matches every point.
        """
        key = self.wanted.tenant_key
        if key is not None and (where is None or matches_all(where)):
            message = f"must have a condition where collections have tenants (tenantKey '{key}'), got none"
            raise invalid_field("filter", message)

    async def count(self, request: CountRequest) -> CountResult:
        """Count points.

        Raises:
            WorkerError: a filter is needed and missing, the collection does not exist or is not allowed, or the store
                fails.
        """
        collection = self.named(request.collection, "collection")
        self.check_filter(request.filter)
        store = self._store.opened
        count = await self._store.call(
            lambda: self.catalogue.indexes.run(store(), collection, lambda: store().count(collection, request.filter))
        )
        return CountResult(count)

    async def delete(self, request: DeleteRequest) -> DeleteResult:
        """Delete points.

        Raises:
            WorkerError: an id is invalid, the filter matches every point, the collection does not exist or is not
                allowed, or the store fails.
        """
        collection = self.named(request.collection, "collection")
        if request.filter is not None and matches_all(request.filter):
            raise invalid_field("filter", "must have at least one condition to delete by, got none")
        scope = request.id_scope or collection
        ids = len(request.ids or request.doc_ids or ())
        threads = QUICK if ids <= _QUICK_MAX_IDS else PLANS
        selection, delete = await threads.run(lambda: self._deletion(request, collection, scope))
        return DeleteResult(await self._store.patient_call(lambda: _audited(collection, selection, delete)))

    def _deletion(self, request: DeleteRequest, collection: str, scope: str) -> tuple[str, Callable[[], int]]:
        """What selects the points, for the audit, and the function that deletes them."""
        if request.doc_ids is not None:
            documents = [
                Document.of(point_id(raw, scope, field=f"docIds[{n}]"), scope, raw)
                for n, raw in enumerate(request.doc_ids)
            ]
            return counted(len(documents), "docId"), lambda: self._delete_documents(collection, documents)
        ids = [point_id(raw, scope, field=f"ids[{n}]") for n, raw in enumerate(request.ids or ())]
        selection = "a filter" if request.ids is None else counted(len(ids), "id")
        store = self._store.opened

        def delete() -> int:
            if request.ids is None:
                return store().delete(collection, where=request.filter)
            parts = (ids[start : start + DELETE_BATCH_MAX_IDS] for start in range(0, len(ids), DELETE_BATCH_MAX_IDS))
            return sum(store().delete(collection, ids=part) for part in parts)

        return selection, lambda: self.catalogue.indexes.run(store(), collection, delete)

    def _delete_documents(self, name: str, documents: Sequence[Document]) -> int:
        store = self._store.opened()
        collection = self.catalogue.resolve(name)
        distinct = dict.fromkeys(DocumentPaths.of(layout) for layout in self.catalogue.layouts(collection))
        return sum(
            Replacement(store, collection, paths, documents, VersionedCollections()).delete() for paths in distinct
        )

    async def exists(self, collection: str) -> bool:
        """Whether a collection exists that can be used; creates nothing but missing payload indexes.

        Raises:
            StoreError: the collection has another schema, or the store refuses or does not answer.
        """
        return await self._store.call(lambda: self.catalogue.exists(collection))

    async def recognised(self, collection: str) -> Recognised:
        """What an existing collection has.

        Raises:
            WorkerError: the collection does not exist or has another schema, or the store fails.
        """
        return await self._store.call(lambda: self.catalogue.recognised(collection))

    async def check_alias(self, alias: str, collection: str) -> None:
        """Check that an alias can be set to a collection, which need not exist yet.

        Raises:
            InvalidRequest: the alias is the name of a collection or is not allowed, or the collection is an alias.
        """
        self.named(alias, "alias")
        if not is_collection_name(collection):
            raise invalid_field("collection", f"must {COLLECTION_NAME_RULE}, got {characters(collection)}")
        of_alias, of_collection = await self._store.patient_call(
            lambda: [self._store.opened().collection_of(name) for name in (alias, collection)]
        )
        if alias in (of_alias, collection):
            raise invalid_field("alias", f"must not be the name of a collection, got {alias!r}; choose another name")
        if of_collection not in (None, collection):
            raise invalid_field("collection", f"must not be an alias, got {collection!r}; give the collection itself")

    async def set_alias(self, alias: str, collection: str) -> None:
        """Set an alias to a collection atomically."""
        name = self.named(alias, "alias")
        await self._store.patient_call(lambda: self._store.opened().alias(name, collection))


def _audited(collection: str, selection: str, delete: Callable[[], int]) -> int:
    """Delete points, write the line of the audit, and return how many points there were.

    Args:
        collection: the collection as the caller named it.
        selection: what selects the points, without its values.
        delete: deletes the points.
    """
    try:
        deleted = delete()
    except Exception as error:  # a collection that is dropped meanwhile, or a defect, may have lost points before
        AUDIT.info("%s deletes by %s from %r: failed (%s)", CALLER.get(), selection, collection, type(error).__name__)
        raise
    AUDIT.info("%s deletes by %s from %r: %d deleted", CALLER.get(), selection, collection, deleted)
    return deleted
