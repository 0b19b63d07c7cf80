"""The time of comparing points of one collection with conditions, from measurements of all its points.

A mean over a sample says nothing of the points that it leaves out: a text of 4 MB takes 100 000 times as long as one of
a few words. So a condition is measured on every point before a call may compare many of them, and later on the points
that were written since. Points that take long by themselves are remembered by their ids.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Final

import qdrant_edge as edge

from qdrant_sink.edge.filter_leaves import Leaf, filter_leaves
from qdrant_sink.filters import ParsedFilter

HEAVY_S: Final = 5e-4
"""Time in seconds from which a point is heavy: it is counted by itself in the time of a call."""

HEAVY_MAX_POINTS: Final = 4096
"""Maximum number of heavy points of a collection that are remembered. Beyond it all points count as heavy."""

RECENT_MAX_POINTS: Final = 32_768
"""Maximum number of recently written points of a collection that are remembered. Beyond it all are measured anew."""

FORGOTTEN_S: Final = 0.05
"""Time in seconds of the slowest point from which a measurement is forgotten where this point is written or deleted."""

FORMER_MAX_POINTS: Final = 64
"""Maximum number of former points in a measurement of a small collection."""

FILTER_RATES_MAX: Final = 1024
"""Maximum number of keys and kinds of conditions of a collection whose times are remembered."""


@dataclass(slots=True)
class LeafRate:
    """The measured time of one condition.

    Attributes:
        sequence: number of the last write whose points are measured.
        points: number of points that were measured.
        light_points: number of those that are not heavy.
        light_s: time of these in seconds.
        heavy_s: time of the heavy ones in seconds.
        worst_s: time of the slowest point in seconds.
        worst: the slowest point if it is heavy.
    """

    sequence: int = 0
    points: int = 0
    light_points: int = 0
    light_s: float = 0.0
    heavy_s: float = 0.0
    worst_s: float = 0.0
    worst: edge.PointId | None = None

    @property
    def light_point_s(self) -> float:
        """Mean time in seconds of a point that is not heavy."""
        return self.light_s / max(1, self.light_points)

    def add(self, ids: Sequence[edge.PointId], seconds: float) -> None:
        """Add the time of a call that compared these points, or one that is heavy."""
        self.points += len(ids)
        if seconds > HEAVY_S:
            self.heavy_s += seconds
        else:
            self.light_points += len(ids)
            self.light_s += seconds
        if seconds > self.worst_s:
            self.worst_s, self.worst = seconds, ids[0] if seconds > HEAVY_S else None


@dataclass(frozen=True, slots=True)
class FilterTime:
    """The time of a filter, at most: the engine may skip conditions.

    Attributes:
        sequence: number of the last write whose points are measured.
        points: number of points of the collection.
        total_s: time in seconds of a call that compares all of them.
        light_s: mean time per point that is not heavy in seconds.
        worst_s: time of the slowest point in seconds.
    """

    sequence: int
    points: int
    total_s: float
    light_s: float
    worst_s: float

    @property
    def mean_s(self) -> float:
        """Mean time per point in seconds."""
        return self.total_s / max(1, self.points)


class FilterRates:
    """The times of conditions, and the points that are heavy or recently written. Thread-safe.

    Attributes:
        measuring: lock of the caller that measures. One at a time does, and the others find the result.
        sequence: number of the last write.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rates: dict[str, LeafRate] = {}  # most recent last
        self._heavy: dict[edge.PointId, None] | None = {}  # None: too many to be remembered
        self._recent: dict[edge.PointId, int] = {}  # number of the last write, most recent last
        self._forgotten = 0
        self._changed: set[edge.PointId] = set()  # since a measurement began
        self.measuring = threading.Lock()
        self.sequence = 0

    def wrote(self, ids: Iterable[edge.PointId]) -> None:
        """Note points that are written."""
        points = set(ids)
        self.deleted(points)
        with self._lock:
            self.sequence += 1
            for point in points:
                self._recent.pop(point, None)
                self._recent[point] = self.sequence
            while len(self._recent) > RECENT_MAX_POINTS:
                self._forgotten = self._recent.pop(next(iter(self._recent)))

    def deleted(self, ids: AbstractSet[edge.PointId]) -> None:
        """Note points that are deleted. The times in which one of them was the slowest are forgotten."""
        with self._lock:
            self._changed.update(ids)
            for name in [
                name for name, rate in self._rates.items() if rate.worst_s > FORGOTTEN_S and rate.worst in ids
            ]:
                del self._rates[name]

    def forget(self) -> None:
        """Forget everything. For filters that were measured before, all points count as heavy."""
        with self._lock:
            self._rates.clear()
            self._recent.clear()
            self._heavy = {}
            self.sequence += 1
            self._forgotten = self.sequence

    def began(self) -> int:
        """Note that a measurement begins; returns the number of the last write, whose points it includes."""
        with self._lock:
            self._changed.clear()
            return self.sequence

    def rate(self, leaf: Leaf) -> LeafRate | None:
        """Return the time of a condition; None if it was not measured."""
        return self._rates.get(leaf.name)

    def unmeasured(self, rate: LeafRate, points: int) -> list[edge.PointId] | None:
        """Return the points that were written since a measurement; None if all of the collection's must be measured.

        They must too where points were overwritten or deleted so often that the mean is that of former ones.

        Args:
            rate: the measurement.
            points: number of points of the collection.
        """
        with self._lock:
            if rate.sequence < self._forgotten or rate.points > 2 * points + FORMER_MAX_POINTS:
                return None
            if rate.sequence == self.sequence:
                return []
            return [point for point, sequence in self._recent.items() if sequence > rate.sequence]

    def record(self, leaf: Leaf, rate: LeafRate) -> None:
        """Remember the time of a condition, unless its slowest point was written or deleted meanwhile."""
        with self._lock:
            self._rates.pop(leaf.name, None)
            if rate.worst_s > FORGOTTEN_S and rate.worst in self._changed:
                return
            self._rates[leaf.name] = rate
            while len(self._rates) > FILTER_RATES_MAX:
                del self._rates[next(iter(self._rates))]

    def mark_heavy(self, point: edge.PointId) -> None:
        """Note a heavy point."""
        with self._lock:
            if self._heavy is not None:
                self._heavy[point] = None
                if len(self._heavy) > HEAVY_MAX_POINTS:
                    self._heavy = None

    def is_heavy(self, point: edge.PointId, time: FilterTime) -> bool:
        """Whether a point is heavy for some condition, or was written since a filter was measured."""
        heavy = self._heavy
        if heavy is None or point in heavy or time.sequence < self._forgotten:
            return True
        return self._recent.get(point, 0) > time.sequence

    def observe(self, where: ParsedFilter, points: int, seconds: float) -> None:
        """Raise the times of the conditions of a filter to what a call took that compared so many points."""
        leaves = where.converted(filter_leaves)
        rates = [rate for leaf in leaves if (rate := self.rate(leaf)) is not None]
        if len(rates) < len(leaves):
            return  # one was forgotten meanwhile
        expected_s = filter_time(where, rates, points).total_s
        if 0 < expected_s < seconds:
            for rate in rates:
                rate.light_s *= seconds / expected_s
                rate.heavy_s *= seconds / expected_s


def filter_time(where: ParsedFilter, rates: Sequence[LeafRate], points: int) -> FilterTime:
    """Return the time of a filter by those of its conditions, which come in the order of `filter_leaves`."""
    total_s = light_s = worst_s = 0.0
    for leaf, rate in zip(where.converted(filter_leaves), rates, strict=True):
        total_s += points * leaf.words_s + leaf.weight * (points * rate.light_point_s + rate.heavy_s)
        light_s += leaf.words_s + leaf.weight * rate.light_point_s
        worst_s += leaf.words_s + leaf.weight * rate.worst_s
    sequence = min((rate.sequence for rate in rates), default=0)
    return FilterTime(sequence, points, total_s, light_s, worst_s)
