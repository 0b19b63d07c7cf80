"""Pages of the ids of points in the order of a payload key.

A store orders points by values alone. Which points of one value it returns, and in which order, is arbitrary, and a
point with several values is returned once for each. Here a point stands at the first of its values, and points of one
value are in the order of their ids. So every point is on exactly one page, however many points have the same value, and
the position after a page is a value and an id.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any, Protocol

from qdrant_sink.errors import StoreRejected
from qdrant_sink.filters import Filter, ParsedFilter, parse_filter
from qdrant_sink.point_order import (
    INTEGER_MAX,
    OrderPosition,
    OrderValue,
    PointOrder,
    bound_before,
    is_bound,
    order_value,
)
from qdrant_sink.points import PointId, Stored, WithPayload


class ScrollStore(Protocol):
    """The part of `Store` that reads pages of an order."""

    def scroll(
        self,
        collection: str,
        where: Filter,
        with_payload: WithPayload,
        /,
        *,
        limit: int,
        after: PointId | None,
        interactive: bool,
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return a page of the matching points in the order of their ids, and the id at which the next page begins."""
        ...

    def scroll_ordered(
        self, collection: str, where: Filter, order: PointOrder, /, *, limit: int
    ) -> Sequence[tuple[PointId, float]]:
        """Return the first matching points of an order with their values."""
        ...


def ordered_page(
    store: ScrollStore,
    collection: str,
    where: Filter,
    order: PointOrder,
    index_type: str,
    *,
    limit: int,
    after: OrderPosition | None = None,
) -> tuple[list[PointId], OrderPosition | None]:
    """Return a page of the ids of the matching points, and the position after it; None after the last page.

    Args:
        store: the store.
        collection: name of the collection.
        where: filter of the points.
        order: order of the points.
        index_type: type of the payload index of the order, one of `ORDERED_TYPES`.
        limit: maximum number of ids.
        after: position after the previous page; None for the first page.

    Raises:
        InvalidRequest: the filter is invalid, or the page ends at a value at which none can begin; see `order_value`.
        WorkerError: the store fails.
    """
    pages = _OrderedPages(store, collection, parse_filter(where), _first_possible(order, index_type), index_type)
    ids: list[PointId] = []
    position = after
    if after is not None and index_type != "datetime":  # a position that was not changed has the type of the index
        position = OrderPosition(_number(after.value, index_type), after.id)
    while position is None or len(ids) < limit:
        if position is not None and position.id is not None:
            tied, following = pages.tied(position.value, limit - len(ids), position.id)
            ids += tied
            position = OrderPosition(position.value, following)
            if following is not None:
                return ids, position
            continue
        wanted = limit - len(ids)
        rows = pages.beyond(position, wanted)
        if not rows:  # fewer than asked for need not be the last ones, since a store drops equal values of a point
            return ids, None
        number = rows[-1][1]
        # The points of the last value may be only some of all, so that they are read again in the order of their ids.
        before = _in_order([row for row in rows if row[1] != number])
        ids += before
        last = order_value(number, index_type, order.key)
        tied, following = pages.tied(last, limit - len(ids), None)
        is_first_value = not {point for point, value in rows if value == number} <= set(before)
        # They may have been deleted meanwhile.
        if not tied and is_first_value and pages.beyond(position, wanted)[-1:] == rows[-1:]:
            raise _misread(order.key)
        ids += tied
        position = OrderPosition(last, following)
        if following is not None:
            return ids, position
    return ids, position if pages.beyond(position, 1) else None


class _OrderedPages:
    """Requests for the parts of a page."""

    def __init__(
        self, store: ScrollStore, collection: str, where: ParsedFilter, order: PointOrder, index_type: str
    ) -> None:
        self._store = store
        self._collection = collection
        self._where = where
        self._order = order
        self._index_type = index_type

    def beyond(self, position: OrderPosition | None, limit: int) -> Sequence[tuple[PointId, float]]:
        """Return the first points after all those of the value of a position."""
        if position is None:
            return self._store.scroll_ordered(self._collection, self._where, self._order, limit=limit)
        bound, _ = self._split(position.value)
        where = self._filter(must_not=self._until(position.value, included=True))
        order = replace(self._order, start_from=min(bound, INTEGER_MAX) if isinstance(bound, int) else bound)
        rows = self._store.scroll_ordered(self._collection, where, order, limit=limit)
        if rows and not self._is_beyond(rows[0][1], position.value):
            raise _misread(order.key)
        return rows

    def _is_beyond(self, number: float, value: Any) -> bool:
        first: Any = order_value(number, self._index_type, self._order.key)
        return bool(first < value if self._order.descending else first > value)

    def tied(
        self, value: OrderValue, limit: int, after: PointId | None
    ) -> tuple[dict[PointId, Stored], PointId | None]:
        """Return the points at this value from an id on, and the id at which the others begin."""
        bound, _ = self._split(value)
        at = self._range(gte=value, lte=value) if bound == value else self._match(value=value)
        where = self._filter(must=[at], must_not=self._until(value, included=False))
        nothing: WithPayload = False
        return self._store.scroll(self._collection, where, nothing, limit=limit, after=after, interactive=True)

    def _until(self, value: OrderValue, *, included: bool) -> list[dict[str, Any]]:
        """Return conditions: a point meets one of them if it has a value before this one, or this one if included."""
        start, (bound, listed) = self._order.start_from, self._split(value)
        first, last = ("lte", "gte") if self._order.descending else ("gte", "lte")
        bounds = {last if included or bound != value else last.removesuffix("e"): bound}
        conditions = [self._range(**bounds, **({} if start is None else {first: start}))]
        if isinstance(bound, int) and bound > INTEGER_MAX:  # Qdrant would read it as the greatest integer
            conditions = []
        if included and bound != value:
            listed = [*listed, value]
        return [*conditions, self._match(any=listed)] if listed else conditions

    def _split(self, value: OrderValue) -> tuple[OrderValue, list[OrderValue]]:
        """Return the last value up to this one at which a range can end, and the values between the two.

        They are the same but for an integer that a server does not read exactly as float64. Usually fewer than 1024
        integers are between.
        """
        if not isinstance(value, int) or is_bound(value):
            return value, []
        bound = bound_before(value, descending=self._order.descending)
        return bound, [*range(value + 1, bound)] if self._order.descending else [*range(bound + 1, value)]

    def _range(self, **bounds: OrderValue) -> dict[str, Any]:
        return {"key": self._order.key, "range": {name: _json(value) for name, value in bounds.items()}}

    def _match(self, **condition: Any) -> dict[str, Any]:
        return {"key": self._order.key, "match": condition}

    def _filter(self, **conditions: Sequence[Mapping[str, Any]]) -> Filter:
        return self._where.extended(**conditions)


def _misread(key: str) -> StoreRejected:
    return StoreRejected(
        f"orderBy: Qdrant does not read a value of {key!r} as exactly as it writes it, so that no page can end there; "
        "use gRPC in place of REST, or order by integers or dates"
    )


def _in_order(rows: Sequence[tuple[PointId, float]]) -> list[PointId]:
    """Return each point once, at the first of its values, and those of one value in the order of their ids."""
    result: dict[PointId, None] = {}
    for _, tied in groupby(rows, key=itemgetter(1)):
        result |= dict.fromkeys(sorted((point for point, _ in tied), key=_rank))
    return list(result)


def _rank(point: PointId) -> tuple[bool, int]:
    """Return the rank of an id in Qdrant's order: integers come before UUIDs."""
    return (False, point) if isinstance(point, int) else (True, point.int)


def _number(value: Any, index_type: str) -> OrderValue:
    return float(value) if index_type == "float" else int(value)


def _json(value: OrderValue) -> float | str:
    return value if isinstance(value, int | float) else value.isoformat()


def _first_possible(order: PointOrder, index_type: str) -> PointOrder:
    """Return the order with the first integer from which an order of integers can start, in place of a fraction."""
    if index_type != "integer" or not isinstance(order.start_from, float):
        return order
    return replace(order, start_from=(math.floor if order.descending else math.ceil)(order.start_from))
