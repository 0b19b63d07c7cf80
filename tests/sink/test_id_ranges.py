"""All ids are divided among threads, and each point is read once, however the ids are distributed."""

from __future__ import annotations

import uuid
from bisect import bisect_left
from concurrent.futures import ThreadPoolExecutor

from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.copying.id_ranges import IdRanges
from qdrant_sink.points import INTEGER_ID_MAX, PointId

INTEGERS = st.one_of(st.integers(0, 300), st.integers(0, INTEGER_ID_MAX), st.just(INTEGER_ID_MAX))
UUIDS = st.one_of(st.integers(0, 300), st.integers(0, 2**128 - 1), st.just(2**128 - 1)).map(lambda n: uuid.UUID(int=n))
IDS = st.sets(st.one_of(INTEGERS, UUIDS), max_size=200)


def in_order(ids: set[PointId]) -> list[PointId]:
    """Sort ids as Qdrant does: integers before UUIDs."""
    return sorted(ids, key=lambda point: (isinstance(point, uuid.UUID), int(point)))


def page(ids: list[PointId], start: PointId, limit: int) -> tuple[list[PointId], PointId | None]:
    """Read a page as a store does."""
    first = bisect_left(
        ids, (isinstance(start, uuid.UUID), int(start)), key=lambda point: (isinstance(point, uuid.UUID), int(point))
    )
    following = ids[first + limit : first + limit + 1]
    return ids[first : first + limit], following[0] if following else None


def read(ranges: IdRanges, ids: list[PointId], limit: int) -> list[PointId]:
    """Read ranges until there are none, as a thread does."""
    result: list[PointId] = []
    while (taken := ranges.take()) is not None:
        has_more = True
        while has_more:
            found, following = page(ids, taken.start, limit)
            mine, has_more = ranges.advance(taken, found, following)
            result += mine
    return result


@given(IDS, st.integers(1, 7), st.integers(1, 4))
def test_threads_read_each_point_once(ids: set[PointId], limit: int, workers: int) -> None:
    """Whatever the ids are, the threads together read every point exactly once."""
    points, ranges = in_order(ids), IdRanges()
    with ThreadPoolExecutor(workers) as threads:
        parts = [threads.submit(read, ranges, points, limit) for _ in range(workers)]
    read_ids = [point for part in parts for point in part.result()]
    assert in_order(set(read_ids)) == points
    assert len(read_ids) == len(points)


def test_a_range_that_is_divided_while_its_page_is_read_loses_and_repeats_nothing() -> None:
    """Of a page that was read before the division, the points that the other thread took are left to that thread."""
    points: list[PointId] = [2**63 - 2, 2**63 - 1, 2**63, 2**63 + 1, 2**64 - 1]
    ranges = IdRanges()
    first = ranges.take()
    assert first is not None
    assert ranges.advance(first, *page(points, first.start, 1)) == ([2**63 - 2], True)
    late = page(points, first.start, 4)
    assert ranges.take() is not None  # that of all UUIDs
    second = ranges.take()
    assert second is not None
    assert isinstance(second.start, int)
    assert second.start > 2**63
    mine, has_more = ranges.advance(first, *late)
    theirs, _ = ranges.advance(second, *page(points, second.start, 10))
    assert not has_more
    assert mine
    assert theirs
    assert mine + theirs == points[1:]


def test_sequential_ids_are_shared_after_few_empty_ranges() -> None:
    """Ids from 0 upwards fill a small part of all possible ids; a second thread finds its half of them all the same."""
    points: list[PointId] = list(range(100_000))
    ranges = IdRanges()
    first, second = ranges.take(), ranges.take()
    assert first is not None
    assert second is not None
    requests = 0
    while True:
        found, following = page(points, second.start, 1000)
        requests += 1
        mine, has_more = ranges.advance(second, found, following)
        if mine:
            break
        assert not has_more
        found, following = page(points, first.start, 1000)
        if requests == 1:
            ranges.advance(first, found, following)
        taken = ranges.take()
        assert taken is not None
        second = taken
    assert requests < 64
    assert len(mine) == 1000


def test_stop_releases_waiting_threads() -> None:
    """A thread that waits for a range ends when another one fails."""
    ranges = IdRanges()
    assert ranges.take() is not None
    assert ranges.take() is not None
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(ranges.take)
        ranges.stop()
        assert waiting.result(timeout=10) is None
    assert ranges.take() is None
