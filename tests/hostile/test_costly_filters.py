"""Filters that take long on a single point are refused by an estimate, and long calls let others in between."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pytest
import qdrant_edge as edge
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import InvalidRequest
from qdrant_sink.edge import EdgeStore, slices
from qdrant_sink.edge.work import MEASURED_CONDITIONS_MAX, MEASURED_WORDS_MAX_CHARACTERS, beginning, filter_point_s
from qdrant_sink.filters import ParsedFilter
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
    ]
)
FILTERS: Final = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.fixed_dictionaries({}, optional={name: st.lists(inner, max_size=12) for name in ("must", "should")}),
        st.builds(lambda one: {"nested": {"key": "n", "filter": {"must_not": one}}}, st.lists(LEAVES, max_size=12)),
        st.builds(lambda one: {"min_should": {"conditions": one, "min_count": 1}}, st.lists(inner, max_size=12)),
    ),
    max_leaves=40,
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[EdgeStore]:
    """A collection of 30 points."""
    opened = EdgeStore(tmp_path / "edge")
    opened.ensure("docs", SCHEMA)
    write(opened, "docs", job(30), SCHEMA)
    yield opened
    opened.close()


def leaves(part: Any) -> int:
    """The number of conditions of a filter."""
    if isinstance(part, list):
        return sum(map(leaves, part))
    if "nested" in part:
        return leaves(part["nested"]["filter"])
    clauses = [part[name] for name in ("must", "should", "must_not") if name in part]
    clauses += [part["min_should"]["conditions"]] if "min_should" in part else []
    return sum(map(leaves, clauses)) if clauses or not part else 1


def words_max(part: Any) -> int:
    """The number of characters of the longest condition on words of a filter."""
    if isinstance(part, dict):
        return max([len(part.get("text_any", "")), *map(words_max, part.values())])
    return max(map(words_max, part), default=0) if isinstance(part, list) else 0


@given(st.lists(FILTERS, min_size=1, max_size=8))
def test_the_beginning_of_a_filter_is_short(conditions: list[Json]) -> None:
    """What is compared with a point before its time is known has few conditions, and a short filter is not changed."""
    where = ParsedFilter({"must": conditions})
    part = beginning(where)
    assert leaves(part) == min(leaves(where), MEASURED_CONDITIONS_MAX)
    assert words_max(part) <= MEASURED_WORDS_MAX_CHARACTERS
    if leaves(where) < MEASURED_CONDITIONS_MAX and words_max(where) <= MEASURED_WORDS_MAX_CHARACTERS:
        assert part is where
    assert part.converted(filter_point_s) <= where.converted(filter_point_s)


def test_a_filter_that_compares_one_point_for_long_is_refused(
    store: EdgeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hundreds of conditions on large payloads are refused after a few were tried, wherever the filter stands."""
    compared: list[int] = []

    def counting_s(shard: Any, condition: Any) -> float:
        compared.append(len(shard.scroll(edge.ScrollRequest(limit=9, filter=condition))[0]))
        return 0.02 if len(compared) % 2 == 0 else 0.0  # four conditions on a text, beside a call without a point

    monkeypatch.setattr(slices, "_counting_s", counting_s)
    for refused in (
        lambda: store.count("docs", LONG),
        lambda: store.scroll("docs", LONG, False, limit=3),
        lambda: store.delete("docs", where=LONG),
        lambda: run(store, "docs", [search_by(dense=unit(np.ones(SIZE)), where=LONG)]),
    ):
        with pytest.raises(
            InvalidRequest, match=r"at most 1\.0 seconds for a point in the embedded store, got 2\.5 by an estimate"
        ):
            refused()
    assert len(compared) == 2 * 4
    assert store.count("docs") == 30


def test_a_long_filter_on_small_payloads_is_answered(store: EdgeStore) -> None:
    """The number of conditions alone refuses nothing."""
    assert store.count("docs", LONG) == 0
    assert store.count("docs", {"should": [*LONG["should"], {"key": "even", "match": {"value": True}}]}) == 15


def test_others_have_time_between_long_calls(store: EdgeStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a call that held the interpreter lock for long there is a pause, and after a short one there is none."""
    pauses: list[float] = []
    times = iter([0.0, 2.0, 2.0, 2.001])
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    monkeypatch.setattr(time, "sleep", pauses.append)
    opened = store._cached_collection("docs")
    for _ in range(2):
        with opened.opened():
            pass
    assert pauses == [pytest.approx(0.1)]
