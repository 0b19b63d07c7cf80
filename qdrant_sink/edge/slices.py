"""Expensive filters of the embedded engine, evaluated in slices of the collection by calls of their own.

The engine evaluates a filter on every point, with the interpreter lock held: 1 000 conditions on 1 000 points take 0.9
seconds. A slice is the points whose ids have one remainder; its condition comes first and spares the others.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final

import qdrant_edge as edge

from embedder.cancellation import check_cancelled
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.work import CALL_S, SPLIT_S, filter_point_s
from qdrant_sink.filters import Filter, parse_filter

CHEAP_POINT_S: Final = 2e-5
"""Time per point in seconds below which the points are not counted."""


def filter_slices(collection: EdgeCollection, where: Filter) -> int:
    """Return the number of calls in which a filter should be evaluated; 1 for nearly all filters."""
    point_s = parse_filter(where).converted(filter_point_s)
    if point_s < CHEAP_POINT_S:
        return 1
    with collection.opened() as shard, mapped("filter"):
        total_s = point_s * shard.info().points_count
    return 1 if total_s <= SPLIT_S else math.ceil(total_s / CALL_S)


def sliced_filters(collection: EdgeCollection, where: Filter) -> Iterator[edge.Filter]:
    """Yield filters that together select the points of this one, each once. Each is for a call of its own.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported.
    """
    condition = edge_filter(where)
    total = filter_slices(collection, where)
    if total == 1:
        yield condition
        return
    for index in range(total):
        check_cancelled()
        yield slice_of(condition, total, index)


def slice_of(condition: edge.Filter | None, total: int, index: int) -> edge.Filter:
    """Return the filter of one slice, which evaluates the condition on the points of the slice only."""
    # The type stubs of qdrant-edge-py 0.9 do not list the class.
    part = edge.SliceCondition(total, index)  # type: ignore[attr-defined]
    return edge.Filter(must=[part] if condition is None else [part, condition])


def resolved_filter(collection: EdgeCollection, where: Filter | None) -> edge.Filter | None:
    """Return a filter that is cheap to evaluate: the ids of the points that match now, if this one is expensive.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported.
    """
    if where is None or filter_slices(collection, where) == 1:
        return None if where is None else edge_filter(where)
    ids: set[edge.PointId] = set()
    for condition in sliced_filters(collection, where):
        with collection.opened() as shard, mapped("filter"):
            limit = max(1, shard.info().points_count)
            request = edge.ScrollRequest(limit=limit, filter=condition, with_payload=False, with_vector=False)
            ids.update(record.id for record in shard.scroll(request)[0])
    return edge.Filter(must=[edge.HasIdCondition(ids)])
