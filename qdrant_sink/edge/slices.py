"""Expensive filters of the embedded engine, evaluated in parts of the collection by calls of their own.

The engine evaluates a filter on every point, with the interpreter lock held. How long that takes depends on the
payloads more than on the filter: 200 conditions on an array of 1000 values take 70 ms for a single point. So the time
of every point is measured before the first call with conditions on the same keys (`edge.filter_measurement`). A filter
that takes long is evaluated on one window of ids after another, as many as a call may take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import qdrant_edge as edge

from embedder.cancellation import check_cancelled
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filter_measurement import among, fixed_s, id_pages, measured_time
from qdrant_sink.edge.filter_rates import FilterTime
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.work import CALL_S, SPLIT_S
from qdrant_sink.filters import Filter

T = TypeVar("T")

CHEAP_POINT_S: Final = 2e-5
"""Time per point in seconds below which a search evaluates its filter itself. It may look at few of the points."""


def in_windows(
    collection: EdgeCollection,
    where: Filter,
    call: Callable[[edge.EdgeShard, edge.Filter], T],
    *,
    opened: Callable[[], AbstractContextManager[edge.EdgeShard]] | None = None,
) -> Iterator[T]:
    """Yield the results of calls whose filters together select the points of this one, each once, in the order of ids.

    Args:
        collection: the collection.
        where: the filter.
        call: call of the engine, with the filter of the window.
        opened: how the shard is opened for each call; None to read.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported.
    """
    condition, taken = edge_filter(where), measured_time(collection, where)
    opened = opened or collection.opened
    if taken.total_s <= SPLIT_S:
        with opened() as shard, mapped("filter"):
            result = call(shard, condition)
        yield result
        return
    for ids in _windows(collection, condition, taken):
        with opened() as shard, mapped("filter"):
            result = call(shard, among(ids, condition))
        yield result


def slice_of(condition: edge.Filter | None, total: int, index: int) -> edge.Filter:
    """Return the filter of one slice: the points whose ids have one remainder, and only these are compared with it."""
    # The type stubs of qdrant-edge-py 0.9 do not list the class.
    part = edge.SliceCondition(total, index)  # type: ignore[attr-defined]
    return edge.Filter(must=[part] if condition is None else [part, condition])


def resolved_filter(collection: EdgeCollection, where: Filter | None) -> edge.Filter | None:
    """Return a filter that is cheap to evaluate: the ids of the points that match now, if this one is expensive.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported.
    """
    if where is None:
        return None
    condition = edge_filter(where)
    if not _is_expensive(measured_time(collection, where)):
        return condition
    ids: set[edge.PointId] = set()
    for part in in_windows(collection, where, matching_ids):
        ids.update(part)
    return edge.Filter(must=[edge.HasIdCondition(ids)])


def scrolled(
    collection: EdgeCollection,
    request: Callable[..., edge.ScrollRequest],
    where: Filter,
    *,
    limit: int,
    after: edge.PointId | None,
) -> tuple[list[edge.Record], edge.PointId | None]:
    """Return the first matching points from a position on, in the order of their ids, and the id of the next one.

    An expensive filter is evaluated on one window of ids after another until there are enough points.

    Args:
        collection: the collection.
        request: function that creates the request from its filter, limit and offset, for the parts that are wanted.
        where: the filter.
        limit: maximum number of points.
        after: id of the first point; None for the beginning.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported.
    """
    condition, taken = edge_filter(where), measured_time(collection, where)
    if not _is_expensive(taken):
        with collection.opened() as shard, mapped("scroll"):
            return shard.scroll(request(filter=condition, limit=limit, offset=after))
    found: list[edge.Record] = []
    for ids in _windows(collection, condition, taken, after):
        lacking = limit - len(found)
        with collection.opened() as shard, mapped("scroll"):
            matching, more = shard.scroll(request(filter=among(ids, condition), limit=max(lacking, 1), offset=None))
        if not lacking and matching:
            return found, matching[0].id
        found += matching
        if more is not None:
            return found, more
    return found, None


def matching_ids(shard: edge.EdgeShard, condition: edge.Filter) -> list[edge.PointId]:
    """Return the ids of the points that match, with a single comparison of each point."""
    limit = max(1, shard.info().points_count)
    request = edge.ScrollRequest(limit=limit, filter=condition, with_payload=False, with_vector=False)
    return [record.id for record in shard.scroll(request)[0]]


def _is_expensive(taken: FilterTime) -> bool:
    return taken.total_s > SPLIT_S and (taken.mean_s >= CHEAP_POINT_S or taken.worst_s > CALL_S)


def _windows(
    collection: EdgeCollection, condition: edge.Filter, taken: FilterTime, after: edge.PointId | None = None
) -> Iterator[list[edge.PointId]]:
    """Yield the ids of all points from a position on in their order, as many at a time as a call may compare."""
    call_s = max(CALL_S, fixed_s(collection, condition))
    for page in id_pages(collection, after):
        window: list[edge.PointId] = []
        window_s = 0.0
        for point in page:
            heavy = collection.filter_rates.is_heavy(point, taken)
            point_s = taken.worst_s if heavy else taken.light_s
            if window and window_s + point_s > call_s:
                check_cancelled()
                yield window
                window, window_s = [], 0.0
            window.append(point)
            window_s += point_s
        yield window
