"""Filters that take long on a single point are refused by an estimate, and long calls let others in between."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import pytest
import qdrant_edge as edge
from hypothesis import given
from hypothesis import strategies as st

from embedder.cancellation import Cancellation
from embedder.errors import Cancelled, InvalidRequest
from qdrant_sink.conformance import PAYLOAD_MAX_BYTES
from qdrant_sink.edge import EdgeStore, filter_measurement, slices
from qdrant_sink.edge import collection as collection_module
from qdrant_sink.edge.filter_leaves import VALUES_MEASURED_MAX, WORDS_MAX_CHARACTERS, filter_leaves
from qdrant_sink.edge.filter_rates import (
    FILTER_RATES_MAX,
    FORMER_MAX_POINTS,
    HEAVY_MAX_POINTS,
    HEAVY_S,
    RECENT_MAX_POINTS,
    FilterRates,
    LeafRate,
    filter_time,
)
from qdrant_sink.edge.payload_size import LARGE_BYTES, LARGE_MAX_POINTS
from qdrant_sink.edge.settings import PAYLOAD_SIZE_BYTES, PAYLOAD_SIZE_FILE
from qdrant_sink.filter_size import CONDITIONS_MAX
from qdrant_sink.filters import ParsedFilter, parse_filter
from qdrant_sink.points import Point
from qdrant_sink.schema import PayloadIndex
from qdrant_sink.searching import run
from tests.sink.samples import SCHEMA, SIZE, job, search_by, unit
from tests.sink.writing import write

Json = dict[str, Any]

LONG: Final[Json] = {"should": [{"key": "text", "match": {"text": f"w{n}"}} for n in range(600)]}
"""A filter of many conditions on words, each of which cuts a text into words anew."""

LEAVES: Final = st.sampled_from(
    [
        {"key": "a", "match": {"value": 1}},
        {"is_empty": {"key": "b"}},
        {"has_id": [1]},
        {"key": "c", "range": {"gt": 1}},
        {"key": "text", "match": {"text_any": "word " * 100}},
        {"key": "tags", "match": {"any": list(range(500))}},
    ]
)
FILTERS: Final = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({}, optional={name: st.lists(inner, max_size=4) for name in ("must", "should")}),
        st.builds(lambda one: {"nested": {"key": "n", "filter": {"must_not": one}}}, st.lists(LEAVES, max_size=4)),
        st.builds(lambda one: {"min_should": {"conditions": one, "min_count": 1}}, st.lists(inner, max_size=4)),
    ),
    max_leaves=12,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    """A collection of 30 points."""
    opened = EdgeStore(tmp_path / "edge")
    opened.ensure("docs", SCHEMA)
    write(opened, "docs", job(30), SCHEMA)
    yield opened
    opened.close()


def payload_conditions(part: Any) -> int:
    """The number of conditions of a filter that look at the payload."""
    if isinstance(part, list):
        return sum(map(payload_conditions, part))
    if "nested" in part:
        return max(1, payload_conditions(part["nested"]["filter"]))
    clauses = [part[name] for name in ("must", "should", "must_not") if name in part]
    clauses += [part["min_should"]["conditions"]] if "min_should" in part else []
    return sum(map(payload_conditions, clauses)) if clauses or not part else "has_id" not in part


@given(st.lists(FILTERS, min_size=1, max_size=3))
def test_a_filter_is_measured_by_short_conditions(conditions: list[Json]) -> None:
    """Every condition on the payload counts, those of one key and kind are measured once, by few words and values."""
    where = ParsedFilter({"must": conditions})
    leaves = where.converted(filter_leaves)
    assert sum(leaf.weight for leaf in leaves) >= payload_conditions({"must": conditions})
    assert len({leaf.name for leaf in leaves}) == len(leaves)
    for leaf in leaves:
        [(match, value)] = leaf.condition.get("match", {"value": 0}).items()
        assert match == "value" or len(value) <= max(WORDS_MAX_CHARACTERS, VALUES_MEASURED_MAX)


def test_the_time_of_a_filter_grows_with_its_conditions_and_words() -> None:
    """A filter takes as long as all its conditions together, on words of every length, also in nested filters."""

    def seconds(where: Json) -> float:
        parsed = parse_filter(where)
        rates = [LeafRate(light_points=10, light_s=1.0) for _ in parsed.converted(filter_leaves)]
        return filter_time(parsed, rates, 10).mean_s

    one = {"key": "a", "match": {"value": 1}}
    assert seconds({"must": [one]}) == pytest.approx(0.1)
    assert seconds({"must": [one] * 100}) == pytest.approx(10)
    assert seconds({"must": [{"nested": {"key": "b", "filter": {"should": [one] * 100}}}]}) == pytest.approx(10)
    assert seconds({"must": [{"nested": {"key": "b", "filter": {"must": [{"has_id": [1]}]}}}]}) == pytest.approx(0.1)
    assert seconds({"min_should": {"conditions": [one] * 9, "min_count": 2}}) == pytest.approx(0.9)
    assert seconds({"must": [{"key": "a", "match": {"text_any": "w" * 640}}]}) == pytest.approx(1, rel=0.01)
    assert seconds({"must": [{"key": "a", "match": {"text": "w" * 640}}]}) == pytest.approx(0.1, rel=0.01)
    assert seconds({"must": [{"has_id": [1]}]}) == 0


LARGE_S: Final = 0.2
"""Time in seconds of a condition and a large point of `compared`."""


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of the points of each measuring call: an id from 27 to 999 takes `LARGE_S`, any other almost nothing."""
    calls: list[list[int]] = []

    def comparing_s(_collection: Any, ids: Any, _condition: Any) -> float:
        if ids:
            calls.append(list(ids))
        return sum(LARGE_S if 27 <= point < 1000 else 1e-6 for point in ids)

    monkeypatch.setattr(filter_measurement, "_comparing_s", comparing_s)
    return calls


@pytest.fixture
def windows(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The ids of the points of each window in which a filter was evaluated."""
    seen: list[list[int]] = []
    among = filter_measurement.among

    def recorded(ids: Any, condition: edge.Filter) -> edge.Filter:
        seen.append(list(ids))
        return among(ids, condition)

    monkeypatch.setattr(slices, "among", recorded)
    return seen


WORD: Final[Json] = {"must": [{"key": "text", "match": {"text": "missing"}}]}


def grow(store: EdgeStore, size: int) -> None:
    """Let a collection expect payloads of this size in bytes, with a full list of large ones."""
    store._cached_collection("docs").payload_size.record(dict.fromkeys(range(5000, 5001 + LARGE_MAX_POINTS), size))


def put(store: EdgeStore, first: int, count: int) -> None:
    """Store points with small payloads."""
    points = [Point(n, {"text": "few words"}, dense=unit(np.ones(SIZE))) for n in range(first, first + count)]
    store.upsert("docs", points)


def test_large_payloads_behind_small_ones_are_evaluated_one_by_one(
    store: EdgeStore, compared: list[list[int]], windows: list[list[int]]
) -> None:
    """However many small payloads come first, no call of any operation compares two large ones with a filter."""
    grow(store, PAYLOAD_MAX_BYTES)
    operations = (
        lambda: store.count("docs", WORD),
        lambda: store.scroll("docs", WORD, False, limit=3),
        lambda: run(store, "docs", [search_by(dense=unit(np.ones(SIZE)), where=WORD)]),
        lambda: store.delete("docs", where=WORD),
    )
    for operation in operations:
        windows.clear()
        operation()
        assert windows == [list(range(27)), [27], [28], [29]]
    assert all(len(ids) == 1 for ids in compared)
    assert {ids[0] for ids in compared} == set(range(30)), "all points are measured, and only for the first operation"
    assert len(compared) <= 30 + filter_measurement.REPETITIONS


def test_points_that_were_written_since_are_measured_before_they_are_compared(
    store: EdgeStore, compared: list[list[int]], windows: list[list[int]]
) -> None:
    """Large payloads that come after the first filter are found, and nothing but what was written is measured again."""
    store.count("docs", WORD)
    grow(store, PAYLOAD_MAX_BYTES)
    compared.clear()
    put(store, 40, 2)
    windows.clear()
    store.count("docs", WORD)
    assert {point for ids in compared for point in ids} == {40, 41}
    assert [ids for ids in windows if ids[-1] >= 40] == [[40], [41]]
    compared.clear()
    store.count("docs", WORD)
    assert compared == []


def test_small_payloads_that_are_overwritten_hide_no_large_ones(
    store: EdgeStore, compared: list[list[int]], windows: list[list[int]]
) -> None:
    """However often small payloads are written and measured, the large ones are compared one by one."""
    grow(store, PAYLOAD_MAX_BYTES)
    store.count("docs", WORD)
    for _ in range(20):
        put(store, 0, 27)
        store.count("docs", WORD)
    windows.clear()
    store.count("docs", WORD)
    assert windows == [list(range(27)), [27], [28], [29]]
    assert len(compared) < 40 * 30


def test_what_is_written_beside_a_filter_is_compared_by_itself(
    store: EdgeStore, compared: list[list[int]], windows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A payload that is stored while a filter is evaluated is not compared together with others."""
    grow(store, PAYLOAD_MAX_BYTES)
    pages = filter_measurement.id_pages

    def writing(*arguments: Any) -> Iterator[Any]:
        for page in pages(*arguments):
            put(store, 20, 2)
            yield page

    monkeypatch.setattr(slices, "id_pages", writing)
    store.count("docs", WORD)
    assert windows == [list(range(20)), [20], [21], list(range(22, 27)), [27], [28], [29]]
    assert compared


def test_a_filter_that_compares_one_point_for_long_is_refused(store: EdgeStore, compared: list[list[int]]) -> None:
    """Hundreds of conditions on large payloads are refused after one of them was tried, wherever the filter stands."""
    grow(store, PAYLOAD_MAX_BYTES)
    for refused in (
        lambda: store.count("docs", LONG),
        lambda: store.scroll("docs", LONG, False, limit=3),
        lambda: store.delete("docs", where=LONG),
        lambda: run(store, "docs", [search_by(dense=unit(np.ones(SIZE)), where=LONG)]),
    ):
        with pytest.raises(
            InvalidRequest, match=r"at most 1\.0 seconds for a point in the embedded store, got 120\.0 by an estimate"
        ):
            refused()
    assert len(compared) <= 30 + filter_measurement.REPETITIONS
    assert store.count("docs") == 30


def test_a_filter_is_accepted_again_without_the_large_payloads(store: EdgeStore, compared: list[list[int]]) -> None:
    """Where the large payloads were deleted, by ids or by a filter, or overwritten, nothing is refused for them."""
    grow(store, PAYLOAD_MAX_BYTES)
    removals: tuple[Callable[[], int], ...] = (
        lambda: store.delete("docs", ids=[27]),
        lambda: store.delete("docs", where={"must": [{"has_id": [28]}]}),
        lambda: store.delete("docs", where={"must": [{"has_id": [29]}]}),
    )
    for remove in removals:
        with pytest.raises(InvalidRequest, match="for a point in the embedded store"):
            store.count("docs", LONG)
        remove()
    assert store.count("docs", LONG) == 0
    assert compared


def test_a_long_filter_on_small_payloads_is_answered(store: EdgeStore) -> None:
    """The number of conditions alone refuses nothing."""
    assert store.count("docs", LONG) == 0
    assert store.count("docs", {"should": [*LONG["should"], {"key": "even", "match": {"value": True}}]}) == 15


def test_a_filter_is_measured_again_with_a_payload_index(store: EdgeStore) -> None:
    """An index is the way out of a filter that takes long: what was measured without it no longer counts."""
    collection = store._cached_collection("docs")
    where = parse_filter(WORD)
    [leaf] = where.converted(filter_leaves)
    collection.filter_rates.record(leaf, LeafRate(points=30, heavy_s=60.0, worst_s=2.0))
    with pytest.raises(InvalidRequest, match="for a point in the embedded store"):
        store.count("docs", where)
    store.ensure_index("docs", "text", PayloadIndex("text"))
    assert store.count("docs", where) == 0


def test_conditions_that_an_index_answers_are_not_measured_on_all_points(
    store: EdgeStore, compared: list[list[int]], windows: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The engine does not read payloads for them, so that searches beside writes stay quick."""
    monkeypatch.setattr(filter_measurement, "PAGE_POINTS", 10)
    grow(store, PAYLOAD_MAX_BYTES)
    store.ensure_index("docs", "text", PayloadIndex("text"))
    assert store.count("docs", WORD) == 0
    assert compared
    assert all(ids == list(range(10)) for ids in compared)
    compared.clear()
    put(store, 40, 20)
    assert store.count("docs", WORD) == 0
    assert (compared, windows) == ([], [])


@pytest.mark.parametrize(
    ("condition", "types"),
    [
        ({"match": {"value": "a"}}, {"keyword", "uuid"}),
        ({"match": {"value": 1}}, {"integer"}),
        ({"match": {"value": True}}, {"bool"}),
        ({"match": {"any": ["a", "b"]}}, {"keyword", "uuid"}),
        ({"match": {"except": [1, 2]}}, {"integer"}),
        ({"match": {"text": "a"}}, {"text"}),
        ({"match": {"phrase": "a"}}, set()),
        ({"range": {"gt": 1.5}}, {"integer", "float"}),
        ({"range": {"gt": "2024-01-01T00:00:00Z"}}, {"datetime"}),
        ({"geo_radius": {"center": {"lon": 1.0, "lat": 1.0}, "radius": 1.0}}, {"geo"}),
        ({"values_count": {"gt": 1}}, set()),
    ],
)
def test_an_index_answers_conditions_of_its_type(condition: Json, types: set[str]) -> None:
    """Any other condition reads the payload, and so does every one on nested objects."""
    where = {"key": "k", **condition}
    [leaf] = parse_filter({"must": [where]}).converted(filter_leaves)
    assert leaf.key == "k"
    assert leaf.indexes == types
    [nested] = parse_filter({"must": [{"nested": {"key": "n", "filter": {"must": [where]}}}]}).converted(filter_leaves)
    assert nested.indexes == set()


def test_who_waits_for_a_measurement_can_leave(store: EdgeStore, compared: list[list[int]]) -> None:
    """One caller measures a collection at a time, and one whose client has gone begins nothing."""
    cancellation = Cancellation()
    cancellation.cancel()

    def count() -> None:
        cancellation.enter()
        store.count("docs", WORD)

    with store._cached_collection("docs").filter_rates.measuring, pytest.raises(Cancelled):
        copy_context().run(count)
    assert compared == []


def test_a_slow_point_that_is_deleted_while_it_is_measured_refuses_nothing() -> None:
    """A measurement whose slowest point has changed meanwhile is not remembered; of a quick one it makes no odds."""
    rates = FilterRates()
    [leaf] = parse_filter(WORD).converted(filter_leaves)
    for worst_s, is_kept in ((2.0, False), (0.001, True)):
        rates.began()
        rates.deleted({7})
        rates.record(leaf, LeafRate(points=30, worst_s=worst_s, worst=7))
        assert (rates.rate(leaf) is not None) is is_kept


def test_the_sizes_of_a_collection_of_an_earlier_release_are_found_once(tmp_path: Path) -> None:
    """Its first filter reads all payloads in small portions, and writes down what all later ones need to know."""
    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    put(store, 1, 40)
    store.upsert("docs", [Point(2, {"text": "x" * 100_000}, dense=unit(np.ones(SIZE)))])
    store.close()
    (tmp_path / "docs" / PAYLOAD_SIZE_FILE).unlink()
    store = EdgeStore(tmp_path)
    size = store._cached_collection("docs").payload_size
    store.upsert("docs", [Point(3, {"text": "x" * 200_000}, dense=unit(np.ones(SIZE)))])
    assert (size.is_known, size.bound(1)) == (False, PAYLOAD_MAX_BYTES)
    assert store.count("docs", WORD) == 0
    store.close()
    assert EdgeStore(tmp_path)._cached_collection("docs").payload_size.is_known
    assert [size.bound(point) for point in (1, 2, 3)] == [PAYLOAD_SIZE_BYTES, 131_072, 262_144]


def test_the_largest_payload_is_known_after_a_restart(tmp_path: Path) -> None:
    """A collection that was opened again has its bound; one whose file is missing is expected to have any payload."""

    def bounds(*points: int) -> list[int]:
        store = EdgeStore(tmp_path)
        try:
            return [store._cached_collection("docs").payload_size.bound(point) for point in points]
        finally:
            store.close()

    store = EdgeStore(tmp_path)
    store.ensure("docs", SCHEMA)
    put(store, 1, 1)
    assert store._cached_collection("docs").payload_size.bound(1) == PAYLOAD_SIZE_BYTES
    store.upsert("docs", [Point(2, {"text": "x" * 100_000}, dense=unit(np.ones(SIZE)))])
    put(store, 2, 1)
    store.close()
    assert bounds(1, 2, 3) == [PAYLOAD_SIZE_BYTES, 131_072, PAYLOAD_SIZE_BYTES]
    (tmp_path / "docs" / PAYLOAD_SIZE_FILE).write_text("{")
    assert bounds(1) == [PAYLOAD_MAX_BYTES]
    (tmp_path / "docs" / PAYLOAD_SIZE_FILE).unlink()
    assert bounds(1) == [PAYLOAD_MAX_BYTES]


def test_large_payloads_beyond_the_list_raise_the_bound_of_all(store: EdgeStore) -> None:
    """A few large payloads are known by their points; where they are many, every point may have one."""
    size = store._cached_collection("docs").payload_size
    size.record(dict.fromkeys(range(LARGE_MAX_POINTS), 100_000))
    assert [size.bound(0), size.bound(-1)] == [131_072, PAYLOAD_SIZE_BYTES]
    size.record({0: 200_000, -2: LARGE_BYTES - 1})
    assert [size.bound(0), size.bound(-1)] == [262_144, LARGE_BYTES]
    size.record({-2: 300_000})
    assert [size.bound(1), size.bound(-1)] == [131_072, 524_288]


def test_a_closed_collection_remembers_no_times(store: EdgeStore, compared: list[list[int]]) -> None:
    """What is remembered of filters takes memory for open collections only, and is measured again."""
    grow(store, PAYLOAD_MAX_BYTES)
    store.count("docs", WORD)
    collection = store._cached_collection("docs")
    taken = filter_measurement.measured_time(collection, WORD)
    assert not collection.filter_rates.is_heavy(1, taken)
    assert collection.close_if_idle()
    assert collection.filter_rates.is_heavy(1, taken), "a filter that is being evaluated goes on point by point"
    compared.clear()
    store.count("docs", WORD)
    assert {point for ids in compared for point in ids} == set(range(30))


def test_what_is_remembered_of_filters_is_bounded() -> None:
    """Beyond the limits all points are measured anew or count as heavy, and the oldest conditions are forgotten."""
    rates = FilterRates()
    where = parse_filter(WORD)
    [leaf] = where.converted(filter_leaves)
    rates.record(leaf, LeafRate(points=10, light_points=10, light_s=1.0))
    rate = rates.rate(leaf)
    assert rate is not None
    taken = filter_time(where, [rate], 10)
    rates.wrote(range(RECENT_MAX_POINTS))
    assert rates.unmeasured(rate, 10) == list(range(RECENT_MAX_POINTS))
    assert rates.is_heavy(1, taken)
    assert not rates.is_heavy(-1, taken)
    rates.wrote([RECENT_MAX_POINTS])
    assert rates.unmeasured(rate, 10) is None
    assert rates.is_heavy(-1, taken)
    often = LeafRate(sequence=rates.sequence, points=FORMER_MAX_POINTS + 22)
    assert rates.unmeasured(often, 11) == []
    assert rates.unmeasured(often, 10) is None
    current = filter_time(where, [often], 10)
    assert not rates.is_heavy(-1, current)
    for point in range(HEAVY_MAX_POINTS + 1):
        rates.mark_heavy(point)
    assert rates.is_heavy(-1, current)
    assert FILTER_RATES_MAX >= CONDITIONS_MAX
    for n in range(FILTER_RATES_MAX):
        [other] = parse_filter({"must": [{"key": f"k{n}", "match": {"value": 1}}]}).converted(filter_leaves)
        rates.record(other, LeafRate())
    assert rates.rate(leaf) is None


def test_the_time_of_a_filter_is_learned_from_what_it_took() -> None:
    """A search that took longer than expected raises the time of its conditions, and a short one changes nothing."""
    rates = FilterRates()
    where, other = (parse_filter({"must": [{"key": key, "match": {"value": 1}}]}) for key in ("tags", "title"))
    for parsed in (where, other):
        rates.record(parsed.converted(filter_leaves)[0], LeafRate(light_points=10, light_s=HEAVY_S))

    def seconds(parsed: ParsedFilter) -> float:
        rate = rates.rate(parsed.converted(filter_leaves)[0])
        assert rate is not None
        return rate.light_point_s

    rates.observe(where, 10, 1.0)
    assert seconds(where) == pytest.approx(0.1)
    rates.observe(where, 10, 0.0)
    rates.observe(where, 0, 1.0)
    assert seconds(where) == pytest.approx(0.1)
    assert seconds(other) == pytest.approx(HEAVY_S / 10)


@pytest.mark.timed
def test_others_wait_for_one_large_payload_at_a_time(store: EdgeStore) -> None:
    """Texts of 2 MB behind small ones are compared one after another, and another thread has its turn in between."""
    dense = unit(np.ones(SIZE))
    for n in range(100, 116):
        store.upsert("docs", [Point(n, {"text": f"word{n} " * 250_000}, dense=dense)])
    where = {"should": [{"key": "text", "match": {"text": f"missing{n}"}} for n in range(6)]}
    assert store.count("docs", where) == 0  # measures
    waits, done = [0.0], threading.Event()

    def tick() -> None:
        last = time.perf_counter()
        while not done.wait(0.002):
            now = time.perf_counter()
            waits.append(now - last)
            last = now

    ticking = threading.Thread(target=tick)
    ticking.start()
    began = time.perf_counter()
    assert store.count("docs", where) == 0
    whole_s = time.perf_counter() - began
    done.set()
    ticking.join()
    assert max(waits) < 4 * whole_s / 16


def test_others_have_time_between_long_calls(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call that held the interpreter lock for long there is a pause, and after a short one there is none."""
    pauses: list[float] = []
    times = iter([0.0, 2.0, 2.0, 2.001])
    clock = SimpleNamespace(perf_counter=lambda: next(times), sleep=pauses.append)
    monkeypatch.setattr(collection_module, "time", clock)  # not the module of all threads
    opened = store._cached_collection("docs")
    for _ in range(2):
        with opened.opened():
            pass
    assert pauses == [pytest.approx(0.1)]
