"""Expensive filters of the embedded engine, evaluated in parts of the collection by calls of their own.

The engine evaluates a filter on every point, with the interpreter lock held. How long that takes depends on the
payloads more than on the filter: 200 conditions on an array of 1000 values take 70 ms for a single point. So the time
per point is measured on a few points before the first call with conditions on the same keys, and again by every call. A
filter that takes long is evaluated on one window of ids after another, as many as a call may take.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeVar

import qdrant_edge as edge

from embedder.cancellation import check_cancelled
from embedder.errors import InvalidRequest
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.work import CALL_S, POINT_MAX_S, SPLIT_S, FilterRates, beginning, filter_point_s
from qdrant_sink.filters import Filter, ParsedFilter, parse_filter

T = TypeVar("T")

CHEAP_POINT_S: Final = 2e-5
"""Time per point in seconds below which a search evaluates its filter itself. It may look at few of the points."""

SAMPLES: Final = (1, 8, 64)
"""Numbers of points on which a filter is measured, one after the other while it is cheap."""

WINDOW_MAX_POINTS: Final = 1000
"""Maximum number of points in a window, which bounds it where small payloads are followed by large ones."""


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
    parsed, condition = parse_filter(where), edge_filter(where)
    points, rates = _measured(collection, parsed), collection.filter_rates
    opened = opened or collection.opened
    if rates.seconds(parsed) * points <= SPLIT_S:
        with opened() as shard, mapped("filter"):
            began = time.perf_counter()
            result = call(shard, condition)
            rates.observe(parsed, points, time.perf_counter() - began)
        yield result
        return
    following, size = None, 1
    fixed_s = _fixed_s(collection, condition)
    while True:
        check_cancelled()
        with opened() as shard, mapped("filter"):
            size = max(1, min(WINDOW_MAX_POINTS, int(max(CALL_S, fixed_s) / max(rates.seconds(parsed), 1e-9))))
            records, following = _ids(shard, size, following)
            began = time.perf_counter()
            result = call(shard, _among(records, condition))
            rates.observe(parsed, len(records), max(0.0, time.perf_counter() - began - fixed_s))
        yield result
        if following is None:
            return


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
    if not _is_expensive(collection, where):
        return condition
    ids: set[edge.PointId] = set()
    for part in in_windows(collection, where, _matching_ids):
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
    parsed, condition = parse_filter(where), edge_filter(where)
    if not _is_expensive(collection, where):
        with collection.opened() as shard, mapped("scroll"):
            return shard.scroll(request(filter=condition, limit=limit, offset=after))
    found: list[edge.Record] = []
    following, rates = after, collection.filter_rates
    fixed_s = _fixed_s(collection, condition)
    while True:
        check_cancelled()
        lacking = limit - len(found)
        size = max(1, min(WINDOW_MAX_POINTS, int(max(CALL_S, fixed_s) / rates.seconds(parsed))))
        with collection.opened() as shard, mapped("scroll"):
            records, following = _ids(shard, size, following)
            began = time.perf_counter()
            matching, more = shard.scroll(
                request(filter=_among(records, condition), limit=max(lacking, 1), offset=None)
            )
            if more is None:  # otherwise not all of them were compared
                rates.observe(parsed, len(records), max(0.0, time.perf_counter() - began - fixed_s))
        if not lacking and matching:
            return found, matching[0].id
        found += matching
        if more is not None or following is None:
            return found, more


def _is_expensive(collection: EdgeCollection, where: Filter) -> bool:
    parsed = parse_filter(where)
    points = _measured(collection, parsed)
    seconds = collection.filter_rates.seconds(parsed)
    return seconds >= CHEAP_POINT_S and seconds * points > SPLIT_S


def _ids(
    shard: edge.EdgeShard, limit: int, after: edge.PointId | None
) -> tuple[list[edge.Record], edge.PointId | None]:
    return shard.scroll(edge.ScrollRequest(limit=limit, offset=after, with_payload=False, with_vector=False))


def _among(records: Sequence[edge.Record], condition: edge.Filter) -> edge.Filter:
    return edge.Filter(must=[edge.HasIdCondition({record.id for record in records}), condition])


def _matching_ids(shard: edge.EdgeShard, condition: edge.Filter) -> list[edge.PointId]:
    limit = max(1, shard.info().points_count)
    request = edge.ScrollRequest(limit=limit, filter=condition, with_payload=False, with_vector=False)
    return [record.id for record in shard.scroll(request)[0]]


def _fixed_s(collection: EdgeCollection, condition: edge.Filter) -> float:
    """Return the seconds that a call takes without a point: the filter is copied by each."""
    with collection.opened() as shard, mapped("filter"):
        return _counting_s(shard, _among((), condition))


def _counting_s(shard: edge.EdgeShard, condition: edge.Filter) -> float:
    began = time.perf_counter()
    shard.count(edge.CountRequest(exact=True, filter=condition))
    return time.perf_counter() - began


def _check_point_s(shard: edge.EdgeShard, where: ParsedFilter, rates: FilterRates) -> None:
    """Compare one point with the beginning of a long filter, and refuse the filter if the whole takes too long.

    Raises:
        InvalidRequest: a single point takes more than `POINT_MAX_S` by the estimate.
    """
    part = where.converted(beginning)
    if part is where or (rates.knows(where) and rates.seconds(where) <= POINT_MAX_S):
        return
    records, _ = _ids(shard, 1, None)
    condition = edge_filter(part)
    fixed_s = _counting_s(shard, _among((), condition))
    point_s = max(0.0, _counting_s(shard, _among(records, condition)) - fixed_s)
    point_s *= where.converted(filter_point_s) / part.converted(filter_point_s)
    if point_s > POINT_MAX_S:
        raise InvalidRequest(
            f"filter: must take at most {POINT_MAX_S:.1f} seconds for a point in the embedded store, got "
            f"{point_s:.1f} by an estimate; use fewer conditions and words on large payloads, or a Qdrant server"
        )


def _measured(collection: EdgeCollection, where: ParsedFilter) -> int:
    """Measure a filter on a few points if its keys are new, and return the number of points.

    Raises:
        InvalidRequest: a single point takes too long.
    """
    rates = collection.filter_rates
    with collection.opened() as shard, mapped("filter"):
        points = shard.info().points_count
        _check_point_s(shard, where, rates)
        if points == 0 or rates.knows(where):
            return points
        condition = edge_filter(where)
        sample = edge.ScrollRequest(
            limit=SAMPLES[-1],
            filter=slice_of(None, max(1, points // SAMPLES[-1]), 0),
            with_payload=False,
            with_vector=False,
        )
        records, _ = shard.scroll(sample)
        fixed_s, seconds = _counting_s(shard, _among((), condition)), 0.0
        for count in SAMPLES:
            chosen = records[:count]
            seconds = max(0.0, _counting_s(shard, _among(chosen, condition)) - fixed_s) / max(1, len(chosen))
            if seconds * SAMPLES[-1] > CALL_S:
                break
        rates.observe(where, 1, seconds)
        return points
