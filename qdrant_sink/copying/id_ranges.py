"""Ranges of ids that several threads read concurrently, on every server and on Qdrant Edge.

Qdrant returns points in the order of their ids, integers before UUIDs, and a page can begin at any id, whether a point
has it or not. So the ids are divided without knowing them: a thread without work takes the upper half of what another
thread has not read yet. Half of the ids rarely has half of the points, and an empty half costs one request; after a few
of them all threads are busy, however the ids are distributed.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from threading import Condition
from typing import Final

from qdrant_sink.points import INTEGER_ID_MAX, PointId

_FIRST_UUID: Final = INTEGER_ID_MAX + 1
_END: Final = _FIRST_UUID + 2**128


class IdRange:
    """A range of ids that one thread reads. Only `IdRanges` changes it.

    Attributes:
        first: rank of the first id that is not read yet.
        end: rank after the last id.
        has_points: whether a point at or after `first` is known to exist.
    """

    __slots__ = ("end", "first", "has_points")

    def __init__(self, first: int, end: int) -> None:
        self.first = first
        self.end = end
        self.has_points = False

    @property
    def start(self) -> PointId:
        """The id at which the next page begins."""
        return self.first if self.first < _FIRST_UUID else uuid.UUID(int=self.first - _FIRST_UUID)


class IdRanges:
    """All ids, divided among threads. It is thread-safe.

    Each thread repeats: `take` a range, and read pages of it until `advance` says that it has no more.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._waiting = [IdRange(_FIRST_UUID, _END), IdRange(0, _FIRST_UUID)]
        self._read: list[IdRange] = []
        self._is_stopped = False

    def take(self) -> IdRange | None:
        """Return a range to read, and wait until there is one. None if all ids are read, or after `stop`."""
        with self._changed:
            while not self._is_stopped:
                taken = self._waiting.pop() if self._waiting else self._half()
                if taken is not None:
                    self._read.append(taken)
                    return taken
                if not self._read:
                    return None
                self._changed.wait()
            return None

    def advance(self, taken: IdRange, page: Iterable[PointId], following: PointId | None) -> tuple[list[PointId], bool]:
        """Record a page that was read from the start of a range.

        Args:
            taken: the range.
            page: ids of the page.
            following: the id at which the next page begins; None after the last page.

        Returns:
            The ids of the page that are still in the range, of which another thread may have taken a part; and whether
            the range has more.
        """
        with self._changed:
            ids = [point for point in page if _rank(point) < taken.end]
            taken.first = taken.end if following is None else min(_rank(following), taken.end)
            taken.has_points = taken.first < taken.end
            if not taken.has_points:
                self._read.remove(taken)
            self._changed.notify_all()
            return ids, taken.has_points

    def stop(self) -> None:
        """End the reading of all threads after their present page."""
        with self._changed:
            self._is_stopped = True
            self._changed.notify_all()

    def _half(self) -> IdRange | None:
        """Take the upper half of the largest range that has points; None if no range can be divided."""
        divisible = [part for part in self._read if part.has_points and part.end - part.first > 1]
        if not divisible:
            return None
        largest = max(divisible, key=lambda part: part.end - part.first)
        half = IdRange((largest.first + largest.end) // 2, largest.end)
        largest.end = half.first
        return half


def _rank(point: PointId) -> int:
    """The position of an id in the order of Qdrant."""
    return point if isinstance(point, int) else _FIRST_UUID + point.int
