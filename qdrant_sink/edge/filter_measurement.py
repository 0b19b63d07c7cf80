"""Measure the conditions of a filter on all points of a collection, in calls that are short whatever its payloads hold.

A call compares one condition with as many points as the sizes of their payloads allow at most, and with fewer where
points take long. The points of a call that took long are compared one by one. A condition that a payload index answers
reads no payload, and is measured on the first points only.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Final

import qdrant_edge as edge

from embedder.cancellation import check_cancelled
from embedder.errors import InvalidRequest
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.filter_leaves import Leaf, filter_leaves
from qdrant_sink.edge.filter_rates import HEAVY_S, FilterTime, LeafRate, filter_time
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.edge.payload_size import LARGE_BYTES
from qdrant_sink.edge.schema import payload_indexes
from qdrant_sink.edge.work import POINT_MAX_S, SPLIT_S
from qdrant_sink.filters import Filter, ParsedFilter, parse_filter
from qdrant_sink.points import payload_nbytes

PAGE_POINTS: Final = 1000
"""Number of ids that are read in one call, and maximum number of points that a call compares."""

MEASURED_S: Final = HEAVY_S / 2
"""Time in seconds that a call of a measurement should take."""

FIRST_POINTS: Final = 8
"""Maximum number of points of the first call of a measurement."""

SIZED_POINTS: Final = 16
"""Number of payloads that are read in one call to find their sizes, in a collection where nothing is known of them."""

TURN_S: Final = 0.05
"""Time in seconds after which a caller that waits for the measurement of another one asks whether it still has to."""

REPETITIONS: Final = 2
"""Number of times that a slow comparison is repeated, since the thread may have had to wait."""


def measured_time(collection: EdgeCollection, where: Filter) -> FilterTime:
    """Return the time of a filter by its measured conditions, after those that are not measured yet are.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: the filter is invalid or not supported, or a single point takes more than `POINT_MAX_S`.
    """
    parsed = parse_filter(where)
    leaves = parsed.converted(filter_leaves)
    with collection.opened() as shard, mapped("filter"):
        points = shard.info().points_count
        indexes = {key: index.type for key, index in payload_indexes(shard).items()}
    with _turn(collection.filter_rates.measuring):
        rates = [
            _indexed(collection, leaf, points)
            if indexes.get(leaf.key) in leaf.indexes
            else _measured(collection, leaf, points)
            for leaf in leaves
        ]
    taken = filter_time(parsed, rates, points)
    if taken.worst_s > POINT_MAX_S:
        raise InvalidRequest(
            f"filter: must take at most {POINT_MAX_S:.1f} seconds for a point in the embedded store, got "
            f"{taken.worst_s:.1f} by an estimate; use fewer conditions and words on large payloads, or a Qdrant server"
        )
    return replace(taken, sequence=collection.filter_rates.sequence) if not rates else taken


def id_pages(collection: EdgeCollection, after: edge.PointId | None = None) -> Iterator[list[edge.PointId]]:
    """Yield the ids of all points from a position on in their order, in pages."""
    following = after
    while True:
        check_cancelled()
        with collection.opened() as shard, mapped("ids"):
            records, following = shard.scroll(
                edge.ScrollRequest(limit=PAGE_POINTS, offset=following, with_payload=False, with_vector=False)
            )
        yield [record.id for record in records]
        if following is None:
            return


def among(ids: Sequence[edge.PointId], condition: edge.Filter) -> edge.Filter:
    """Return a filter that compares only these points with another."""
    return edge.Filter(must=[edge.HasIdCondition(set(ids)), condition])


def fixed_s(collection: EdgeCollection, condition: edge.Filter) -> float:
    """Return the seconds that a call takes without a point: the filter is copied by each."""
    return min(_comparing_s(collection, (), condition) for _ in range(1 + REPETITIONS))


def _comparing_s(collection: EdgeCollection, ids: Sequence[edge.PointId], condition: edge.Filter) -> float:
    request = edge.CountRequest(exact=True, filter=among(ids, condition))
    with collection.opened() as shard, mapped("filter"):
        began = time.perf_counter()
        shard.count(request)
        return time.perf_counter() - began


@contextmanager
def _turn(measuring: threading.Lock) -> Iterator[None]:
    """Let one caller measure a collection, after which the others find what they need measured."""
    while not measuring.acquire(timeout=TURN_S):
        check_cancelled()
    try:
        yield
    finally:
        measuring.release()


def _indexed(collection: EdgeCollection, leaf: Leaf, points: int) -> LeafRate:
    """Return the time of a condition that an index answers, from the first points: it does not depend on payloads."""
    rates = collection.filter_rates
    sequence, rate = rates.began(), rates.rate(leaf)
    if rate is None or rate.points < min(points, PAGE_POINTS):
        condition = edge_filter(ParsedFilter({"must": [leaf.condition]}))
        ids = next(id_pages(collection))
        seconds = min(_comparing_s(collection, ids, condition) for _ in range(1 + 2 * REPETITIONS))
        light_s = max(0.0, seconds - fixed_s(collection, condition))
        rate = LeafRate(points=len(ids), light_points=len(ids), light_s=light_s)
        rates.record(leaf, rate)
    return replace(rate, sequence=sequence)


def _measured(collection: EdgeCollection, leaf: Leaf, points: int) -> LeafRate:
    rates = collection.filter_rates
    sequence, rate = rates.began(), rates.rate(leaf)
    recent = None if rate is None else rates.unmeasured(rate, points)
    if rate is None or recent is None:
        _find_sizes(collection)
        rate, pages = LeafRate(), id_pages(collection) if points else iter(())
    elif recent:
        rate, pages = replace(rate), iter([recent])
    else:
        return rate
    measurement = _Measurement(collection, leaf, rate)
    for page in pages:
        measurement.add(page)
    rate.sequence = sequence
    rates.record(leaf, rate)
    return rate


def _find_sizes(collection: EdgeCollection) -> None:
    """Find the sizes of all payloads once, in a collection of an earlier release, which has not kept them."""
    if collection.payload_size.is_known:
        return
    large: dict[edge.PointId, int] = {}
    other: edge.PointId = 0
    largest = 0
    for page in id_pages(collection):
        for start in range(0, len(page), SIZED_POINTS):
            check_cancelled()
            with collection.opened() as shard, mapped("payloads"):
                records = shard.retrieve(page[start : start + SIZED_POINTS], with_payload=True, with_vector=False)
            for record in records:
                size = payload_nbytes(record.payload or {})
                if size > LARGE_BYTES:
                    large[record.id] = size
                elif size > largest:
                    other, largest = record.id, size
    with collection.opened():  # no write is noted meanwhile
        collection.payload_size.found({other: largest, **large})


class _Measurement:
    def __init__(self, collection: EdgeCollection, leaf: Leaf, rate: LeafRate) -> None:
        self._collection = collection
        self._condition = edge_filter(ParsedFilter({"must": [leaf.condition]}))
        self._rate = rate
        self._fixed_s = fixed_s(collection, self._condition)
        self._byte_s = leaf.byte_s

    def add(self, ids: Sequence[edge.PointId]) -> None:
        start = 0
        while start < len(ids):
            check_cancelled()
            end, bound_s = start + 1, self._bound_s(ids[start])
            for point in ids[end : start + self._size()]:
                bound_s += self._bound_s(point)
                if bound_s > SPLIT_S:
                    break
                end += 1
            self._compare(ids[start:end])
            start = end

    def _bound_s(self, point: edge.PointId) -> float:
        return self._byte_s * self._collection.payload_size.bound(point)

    def _size(self) -> int:
        rate = self._rate
        if not rate.light_points:
            return 1 if rate.points else FIRST_POINTS
        return max(1, int(MEASURED_S / max(rate.light_point_s, 1e-9)))

    def _compare(self, ids: Sequence[edge.PointId]) -> None:
        seconds = self._seconds(ids)
        for _ in range(REPETITIONS):
            if seconds <= max(HEAVY_S, self._rate.worst_s):
                break
            seconds = min(seconds, self._seconds(ids))
        if seconds > HEAVY_S and len(ids) > 1:
            for point in ids:
                self._compare([point])
            return
        if seconds > HEAVY_S:
            seconds = min(seconds, max(HEAVY_S, self._bound_s(ids[0])))  # the thread had to wait if it took longer
        self._rate.add(ids, seconds)
        if seconds > HEAVY_S:
            self._collection.filter_rates.mark_heavy(ids[0])

    def _seconds(self, ids: Sequence[edge.PointId]) -> float:
        return max(0.0, _comparing_s(self._collection, ids, self._condition) - self._fixed_s)
