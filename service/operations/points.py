"""The points operation: stored points by their ids, or page by page.

The ids of a page are read first, and then the points in portions, so that an answer that becomes too large ends before
all points are in memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from embedder import Cancellation, Kind
from qdrant_sink import (
    NAMES,
    ORDERED_TYPES,
    Admit,
    IndexRequired,
    OrderPosition,
    OrderValue,
    PartReader,
    PartSizes,
    PointId,
    PointOrder,
    Store,
    VectorNames,
    Vectors,
    WithPayload,
    ordered_page,
    point_id,
)
from service.memory_budget import MemoryBudget
from service.operations.collections import Collections
from service.operations.store_access import StoreAccess
from service.validation import invalid_field


@dataclass(frozen=True, slots=True, eq=False)
class PointsRequest:
    """Read points either by their ids or as a page of all that match a filter.

    Attributes:
        collection: name of the collection; None for the default.
        ids: ids as the caller gave them; None for a page.
        id_scope: name from which ids are derived; None for the name of the collection.
        filter: filter of the page in Qdrant's JSON; None matches every point.
        limit: maximum number of points of the page.
        after: position after the previous page, a point without an order; None for the first page.
        order: order of the page; None for the order of the ids.
        with_payload: part of the payload to read.
        with_vectors: kinds of vectors to read.
    """

    collection: str | None = None
    ids: Sequence[int | str] | None = None
    id_scope: str | None = None
    filter: Mapping[str, Any] | None = None
    limit: int = 10
    after: PointId | OrderPosition | None = None
    order: PointOrder | None = None
    with_payload: WithPayload = True
    with_vectors: tuple[Kind, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class ReadPoint:
    """A point that was read.

    Attributes:
        id: id of the point.
        requested: id as the caller gave it; None in a page.
        payload: payload; None if it was not requested.
        vectors: vectors; None if the point has none of the requested kinds.
    """

    id: PointId
    requested: int | str | None = None
    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None


@dataclass(frozen=True, slots=True, eq=False)
class PointsResult:
    """Points in the order of the given ids, or of the page.

    Attributes:
        points: the points that exist, once for each id.
        missing: the given ids without a point, each once; None for a page.
        next: position of the next page; None after the last one, or for ids.
    """

    points: Sequence[ReadPoint]
    missing: Sequence[int | str] | None = None
    next: PointId | OrderPosition | None = None


class Points:
    """The points operation. Usable from any event loop.

    Args:
        store: access to the store.
        collections: the collections of the worker.
        memory: the memory that requests may hold together.
    """

    def __init__(self, store: StoreAccess, collections: Collections, memory: MemoryBudget) -> None:
        self._store = store
        self._collections = collections
        self._memory = memory
        self._sizes = PartSizes()

    async def __call__(self, request: PointsRequest, admit: Admit = lambda _size, _numbers: None) -> PointsResult:
        """Read points. When the call ends, also by its cancellation, its thread reads no further portion.

        Args:
            request: the request.
            admit: check of the size of the answer after each portion, which is called in another thread.

        Raises:
            WorkerError: a filter is needed and missing, an id is invalid, an index is missing, the collection does not
                exist or is not allowed, the store fails, or `admit` raised.
        """
        collection = self._collections.named(request.collection, "collection")
        with Cancellation(), self._memory.joined() as held:
            reader = PartReader(self._sizes, admit=admit, hold=held.grow)
            if request.ids is None:
                self._collections.check_filter(request.filter)
                return await self._store.call(lambda: self._page(request, collection, reader))
            scope = request.id_scope or collection
            requested = request.ids
            return await self._store.call(lambda: self._by_ids(request, collection, _ids(requested, scope), reader))

    def _by_ids(
        self, request: PointsRequest, collection: str, ids: Sequence[tuple[PointId, int | str]], reader: PartReader
    ) -> PointsResult:
        points = self._read(request, collection, ids, reader)
        present = {point.requested for point in points}
        return PointsResult(points, [*dict.fromkeys(raw for _, raw in ids if raw not in present)])

    def _page(self, request: PointsRequest, collection: str, reader: PartReader) -> PointsResult:
        store = self._store.opened()
        ids, following = self._collections.catalogue.indexes.run(
            store, collection, lambda: self._page_ids(store, request, collection)
        )
        if not request.with_payload and not request.with_vectors:
            return PointsResult([ReadPoint(point) for point in ids], next=following)
        reader.hold_hits(len(ids))
        return PointsResult(self._read(request, collection, [(point, None) for point in ids], reader), next=following)

    def _page_ids(
        self, store: Store, request: PointsRequest, collection: str
    ) -> tuple[Sequence[PointId], PointId | OrderPosition | None]:
        where, order, after = request.filter or {}, request.order, request.after
        nothing: WithPayload = False
        if order is None and not isinstance(after, OrderPosition):
            page, following = store.scroll(
                collection, where, nothing, limit=request.limit, after=after, interactive=True
            )
            return list(page), following
        if order is None or (after is not None and not isinstance(after, OrderPosition)):
            raise TypeError("a page has either an order and its position, or neither")
        kind = _index_type(store, collection, order.key)
        if order.start_from is not None:
            _check_bound("orderBy.startFrom", order.start_from, kind, order.key)
        if after is not None:
            _check_bound("after.value", after.value, kind, order.key)
        return ordered_page(store, collection, where, order, kind, limit=request.limit, after=after)

    def _vectors(self, request: PointsRequest, collection: str) -> tuple[tuple[Kind, ...], VectorNames]:
        """The kinds of vectors to read, and the names of the vectors."""
        if not request.with_vectors:
            return (), NAMES
        recognised = self._collections.catalogue.recognised(collection)
        recognised.require(request.with_vectors)
        kinds = tuple(kind for kind in request.with_vectors if kind in recognised.schema.kinds)
        return kinds, recognised.schema.names

    def _read(
        self,
        request: PointsRequest,
        collection: str,
        ids: Sequence[tuple[PointId, int | str | None]],
        reader: PartReader,
    ) -> list[ReadPoint]:
        """Read the points of these ids, each with the id as the caller gave it, in portions."""
        kinds, names = self._vectors(request, collection)
        counts = Counter(point for point, _ in ids)
        stored = reader.fetch(self._store.opened(), collection, counts, (request.with_payload, kinds, names))
        return [
            ReadPoint(point, requested, stored[point].payload, stored[point].vectors)
            for point, requested in ids
            if point in stored
        ]


def _ids(requested: Sequence[int | str], scope: str) -> list[tuple[PointId, int | str]]:
    """The ids of points, each with the id as the caller gave it."""
    return [(point_id(raw, scope, field=f"ids[{n}]"), raw) for n, raw in enumerate(requested)]


def _index_type(store: Store, collection: str, key: str) -> str:
    """Return the type of the index by which points are ordered.

    Raises:
        IndexRequired: the key has no such index.
    """
    index = store.describe(collection).description.payload_indexes.get(key)
    if index is None or index.type not in ORDERED_TYPES:
        got = "none" if index is None else index.type
        raise IndexRequired(
            f"orderBy needs a payload index of type {', '.join(ORDERED_TYPES)} on {key!r}, got {got}; "
            "add the key to payloadIndexes in QDRANT_COLLECTION_CONFIG, or order by another key",
            key=key,
        )
    return index.type


def _check_bound(field: str, value: OrderValue, index_type: str, key: str) -> None:
    """Check that a value of the request is one that the index can have."""
    is_date = isinstance(value, datetime)
    if is_date != (index_type == "datetime"):
        wanted, got = ("a number", "a date") if is_date else ("a date", "a number")
        raise invalid_field(field, f"must be {wanted} for {key!r}, which has an index of type {index_type}, got {got}")
    if index_type == "integer" and isinstance(value, float) and not -(2**63) <= value < 2**63:
        raise invalid_field(field, f"must be from -2^63 to 2^63 - 1 for {key!r}, which has integers, got {value}")
