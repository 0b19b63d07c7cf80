"""Filters have Qdrant's format, work the same on both stores, and are refused with the path of the mistake."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import InvalidRequest
from qdrant_sink.edge.filters import edge_filter
from qdrant_sink.errors import StoreRejected
from qdrant_sink.filters import matches_all, parse_filter
from qdrant_sink.searching import run
from qdrant_sink.server.models import client_filter
from qdrant_sink.store import Store
from tests.sink.samples import SCHEMA, draft, search_by
from tests.sink.stores import lacks_version
from tests.sink.writing import write

PAYLOADS: list[dict[str, Any]] = [
    {"n": 1, "city": "Bern", "on": True, "at": "2024-05-01T12:00:00Z", "tags": ["a", "b"], "x": None},
    {"n": 2.5, "city": "Basel", "on": False, "at": "2024-06-01", "tags": [], "text": "the quick fox"},
    {"n": 7, "city": "Zug", "at": "2024-07-01T00:00:00+02:00", "where": {"lon": 8.5, "lat": 47.2}},
    {"parts": [{"name": "bolt", "size": 3}, {"name": "nut", "size": 4}], "deep": {"er": {"key": "v"}}},
]
ID = "00000000-0000-0000-0000-000000000003"

SELECTS: list[tuple[dict[str, Any], set[int]]] = [
    ({"must": [{"key": "city", "match": {"value": "Bern"}}]}, {0}),
    ({"must": {"key": "n", "match": {"value": 7}}}, {2}),
    ({"must": [{"key": "on", "match": {"value": True}}]}, {0}),
    ({"must": [{"key": "on", "match": {"value": False}}]}, {1}),
    ({"must": [{"key": "city", "match": {"any": ["Bern", "Zug"]}}]}, {0, 2}),
    ({"must": [{"key": "n", "match": {"any": [1, 7]}}]}, {0, 2}),
    ({"must": [{"key": "city", "match": {"any": []}}]}, set()),
    ({"must": [{"key": "city", "match": {"except": ["Bern"]}}]}, {1, 2}),
    ({"must": [{"key": "text", "match": {"text": "quick"}}]}, {1}),
    ({"must": [{"key": "text", "match": {"text_any": "slow quick"}}]}, {1}),
    ({"must": [{"key": "text", "match": {"phrase": "quick fox"}}]}, {1}),
    ({"must": [{"key": "city", "match": {"prefix": "B"}}]}, {0, 1}),
    ({"must": [{"key": "city", "match": {"substring": "er"}}]}, {0}),
    ({"must": [{"key": "n", "range": {"gt": 1, "lte": 7.0}}]}, {1, 2}),
    ({"must": [{"key": "n", "range": {"gte": 1, "lt": 2.5, "gt": None}}]}, {0}),
    ({"must": [{"key": "at", "range": {"gte": "2024-06-01T00:00:00Z"}}]}, {1, 2}),
    ({"must": [{"key": "at", "range": {"lt": "2024-06-01"}}]}, {0}),
    ({"must": [{"key": "at", "range": {"gt": "2024-06-30T21:59:59", "lt": "2024-06-30 22:00:01"}}]}, {2}),
    ({"must": [{"key": "at", "range": {"lte": "2024-05-01T14:00:00+02:00"}}]}, {0}),
    ({"must": [{"key": "tags", "values_count": {"gte": 2}}]}, {0}),
    ({"must": [{"is_empty": {"key": "tags"}}]}, {1, 2, 3}),
    ({"must": [{"is_null": {"key": "x"}}]}, {0}),
    ({"must": [{"key": "tags", "is_empty": False}]}, {0}),
    ({"must": [{"key": "x", "is_null": True}]}, {0}),
    ({"must": [{"has_id": [1, ID]}]}, {1, 3}),
    ({"must": [{"has_vector": "dense"}]}, {0, 1, 2, 3}),
    ({"must": [{"has_vector": ""}]}, set()),
    ({"must": [{"slice": {"total": 1, "index": 0}}]}, {0, 1, 2, 3}),
    ({"must_not": [{"slice": {"total": 1, "index": 0}}]}, set()),
    ({"must": [{"key": "city", "match": {"prefix": ""}}]}, {0, 1, 2}),
    ({"must": [{"key": "at", "range": {"lte": "2024-05-01t12:00:00.0000009z"}}]}, {0}),
    ({"must": [{"key": "at", "range": {"gte": "2024-06-01 02:00:00.123456789+02", "lt": "2024-7-1"}}]}, {2}),
    ({"must": [{"key": "at", "range": {"gt": "2024-05-31T23:59:60Z"}}]}, {2}),
    ({"must": [{"key": "parts[1].size", "match": {"value": 4}}]}, {3}),
    ({"must": [{"key": "parts[0].size", "match": {"value": 4}}]}, set()),
    ({"must": [{"key": "city", "match": {"value": "Bern"}, "range": None, "is_null": None}]}, {0}),
    ({"must": [{"has_id": [1, "URN:UUID:" + ID]}]}, {1, 3}),
    ({"min_should": {"conditions": [{"has_id": [1]}], "min_count": 0}}, {0, 1, 2, 3}),
    ({"must": [{"must": None, "should": None}]}, {0, 1, 2, 3}),
    ({"must_not": None, "should": [{"key": "n", "match": {"value": 7}}]}, {2}),
    ({"must": [{"key": "deep.er.key", "match": {"value": "v"}}]}, {3}),
    ({"must": [{"key": "parts[].size", "match": {"value": 4}}]}, {3}),
    (
        {
            "must": [
                {
                    "nested": {
                        "key": "parts",
                        "filter": {
                            "must": [
                                {"key": "name", "match": {"value": "nut"}},
                                {"key": "size", "match": {"value": 4}},
                            ]
                        },
                    }
                }
            ]
        },
        {3},
    ),
    (
        {"must": [{"key": "where", "geo_radius": {"center": {"lon": 8.5, "lat": 47.2}, "radius": 100}}]},
        {2},
    ),
    (
        {
            "must": [
                {
                    "key": "where",
                    "geo_bounding_box": {
                        "top_left": {"lon": 8, "lat": 48},
                        "bottom_right": {"lon": 9, "lat": 47},
                    },
                }
            ]
        },
        {2},
    ),
    (
        {
            "must": [
                {
                    "key": "where",
                    "geo_polygon": {
                        "exterior": {
                            "points": [
                                {"lon": 8, "lat": 47},
                                {"lon": 9, "lat": 47},
                                {"lon": 9, "lat": 48},
                                {"lon": 8, "lat": 47},
                            ]
                        }
                    },
                }
            ]
        },
        {2},
    ),
    ({"should": [{"key": "n", "match": {"value": 1}}, {"key": "n", "match": {"value": 7}}]}, {0, 2}),
    ({"must_not": [{"key": "city", "match": {"value": "Bern"}}]}, {1, 2, 3}),
    ({"must": [{"should": [{"key": "n", "match": {"value": 1}}]}]}, {0}),
    (
        {
            "min_should": {
                "conditions": [
                    {"key": "n", "match": {"value": 1}},
                    {"key": "on", "match": {"value": True}},
                    {"key": "city", "match": {"value": "Zug"}},
                ],
                "min_count": 2,
            }
        },
        {0},
    ),
    ({}, {0, 1, 2, 3}),
    ({"must": []}, {0, 1, 2, 3}),
]


def test_both_stores_select_the_same_points(request: pytest.FixtureRequest, store: Store, collection: str) -> None:
    """Every condition selects the same points on every store."""
    store.ensure(collection, SCHEMA)
    ids = [0, 1, 2, uuid.UUID(ID)]
    write(store, collection, [draft(i, id=ids[i], payload=p) for i, p in enumerate(PAYLOADS)], SCHEMA)
    everything = draft(0).vectors.dense
    lacking = []
    for where, expected in SELECTS:
        try:
            assert store.count(collection, where) == len(expected), where
        except StoreRejected as error:
            if not lacks_version(request, error):
                raise
            lacking.append(error.message)
            continue
        [hits] = run(store, collection, [search_by(dense=everything, using=("dense",), where=where)])
        assert {hit.id for hit in hits} == {ids[i] for i in expected}, where
    if lacking:
        pytest.skip(f"all other conditions hold; {'; '.join(sorted(set(lacking)))}")


REFUSED: list[tuple[Any, str]] = [
    ([], r"^filter: must be an object, got a list$"),
    ({"musst": []}, r"^filter: unknown key 'musst'; allowed keys: must, should, must_not, min_should$"),
    ({"must": ["x"]}, r"^filter\.must\[0\]: must be an object, got a string$"),
    ({"must": [{"key": "a"}]}, r"^filter\.must\[0\]: must have key and exactly one of match, .* got none$"),
    ({"must": [{"key": "a", "match": {"value": 1}, "range": {"gt": 1}}]}, r"got match, range; write one"),
    (
        {"must": [{"key": "a", "match": {"valeu": 1}}]},
        r"^filter\.must\[0\]\.match: unknown key 'valeu'",
    ),
    ({"must": [{"key": "a", "match": {}}]}, r"match: must have exactly one of .* got 0$"),
    (
        {"must": [{"key": "a", "match": {"value": 1.5}}]},
        r"match\.value: must be a string, an integer or a boolean",
    ),
    (
        {"must": [{"key": "a", "match": {"value": 2**63}}]},
        r"match\.value: must be a signed 64-bit integer, got an integer of 64 bits",
    ),
    (
        {"must": [{"key": "a", "match": {"any": ["a", 1]}}]},
        r"match\.any: must hold only strings or only integers",
    ),
    ({"must": [{"key": "a", "match": {"any": "a"}}]}, r"match\.any: must be a list, got a string"),
    ({"must": [{"key": "a", "match": {"text": 1}}]}, r"match\.text: must be a string, got an integer"),
    ({"must": [{"key": "a", "match": {"value": None}}]}, r"match: must have exactly one of .* got 0$"),
    ({"must": [{"has_id": None}]}, r"^filter\.must\[0\]: has_id is missing$"),
    ({"must": [None]}, r"^filter\.must\[0\]: must be an object, got null$"),
    ({"must": [{"nested": {"key": "a", "filter": None}}]}, r"nested: filter is missing$"),
    (
        {"must": [{"key": "a", "match": {"value": "\ud800"}}]},
        r"match\.value: character 0 is a lone surrogate",
    ),
    ({"must": [{"key": "a", "range": {"gt": True}}]}, r"range\.gt: must be a number, got a boolean"),
    ({"must": [{"key": "a", "range": {"gt": float("nan")}}]}, r"range\.gt: must be a finite number"),
    (
        {"must": [{"key": "a", "range": {"gt": "tomorrow"}}]},
        r"range\.gt: must be a number or an RFC 3339 date",
    ),
    ({"must": [{"key": "a", "range": {"gt": "2024-02-31"}}]}, r"range\.gt: must be a date that exists in the calendar"),
    (
        {"must": [{"key": "a", "range": {"gt": "2024-02-01", "lt": 3}}]},
        r"range\.lt: must be a date like the other",
    ),
    (
        {"must": [{"key": "a..b", "match": {"value": 1}}]},
        r"key: must be a path of keys .* got a string of \d characters$",
    ),
    (
        {"must": [{"key": 'a"b', "match": {"value": 1}}]},
        r"key: must be a path of keys .* got a string of \d characters$",
    ),
    ({"must": [{"has_id": ["x"]}]}, r"has_id\[0\]: must be an unsigned 64-bit integer or a UUID"),
    ({"must": [{"has_id": [-1]}]}, r"has_id\[0\]: an integer id must be 0 to"),
    ({"must": [{"slice": {"total": 2, "index": 2}}]}, r"slice\.index: must be below total \(2\), got 2$"),
    (
        {"must": [{"slice": {"total": 2**32, "index": 0}}]},
        r"slice\.total: must be an integer from 0 to 4294967295",
    ),
    ({"must": [{"slice": {"total": 1}}]}, r"slice: index is missing$"),
    (
        {"must": [{"key": "a", "values_count": {"gt": -1}}]},
        r"values_count\.gt: must be an integer from 0 to 18446744073709551615, got an integer out of range",
    ),
    (
        {"must": [{"key": "a", "geo_radius": {"center": {"lon": 8, "lat": 91}, "radius": 1}}]},
        r"lat: must be -90",
    ),
    (
        {"must": [{"key": "a", "geo_radius": {"center": {"lon": 8, "lat": 1}}}]},
        r"geo_radius: radius is missing",
    ),
    ({"must": [{"nested": {"key": "a"}}]}, r"nested: filter is missing"),
    ({"min_should": {"conditions": []}}, r"^filter\.min_should: min_count is missing"),
    ({"min_should": {"conditions": [], "min_count": 0}}, r"^filter\.min_should\.conditions: must have at least 1 cond"),
    (
        {"min_should": {"conditions": [{}], "min_count": -1}},
        r"^filter\.min_should\.min_count: must be an integer",
    ),
    ({"must": [{"key": "a", "range": {"gt": "+10000-01-01"}}]}, r"range\.gt: must be a date of the years 1 to 9999$"),
    ({"must": [{"key": "a", "range": {"gt": "0001-01-01 00:00+01"}}]}, r"range\.gt: must be a date of the years 1 to"),
    ({"must": [{"key": "a", "range": {"gt": "2024-01-01T00:00:00+24"}}]}, r"range\.gt: must be a date that exists"),
    ({"must": [{"key": "a", "range": {"gt": "2024-01-01T00:00:00+01:60"}}]}, r"range\.gt: must be a date that exists"),
]


@pytest.mark.parametrize(("where", "message"), REFUSED)
def test_an_invalid_filter_is_refused_with_its_path(where: Any, message: str) -> None:
    """The message contains the path of the invalid condition and not its value."""
    with pytest.raises(InvalidRequest, match=message):
        parse_filter(where)


def test_endless_nesting_is_refused() -> None:
    """A filter with a thousand levels is refused and does not cause a crash."""
    where: dict[str, Any] = {"must": [{"key": "a", "match": {"value": 1}}]}
    for _ in range(1000):
        where = {"must": [where]}
    with pytest.raises(InvalidRequest, match="filters must be nested at most 16 levels deep"):
        parse_filter(where)


def test_stores_refuse_invalid_filters(store: Store, collection: str) -> None:
    """Every store validates filters before it uses them."""
    store.ensure(collection, SCHEMA)
    wrong = {"must": [{"key": "a", "matsch": {"value": 1}}]}
    with pytest.raises(InvalidRequest, match=r"filter\.must\[0\]: unknown key 'matsch'"):
        store.count(collection, wrong)
    with pytest.raises(InvalidRequest, match="matsch"):
        store.delete(collection, where=wrong)
    with pytest.raises(InvalidRequest, match="matsch"):
        run(store, collection, [search_by(dense=draft(0).vectors.dense, using=("dense",), where=wrong)])


def test_a_deletion_needs_a_condition(store: Store, collection: str) -> None:
    """A filter without an effective condition, in any form, does not delete points."""
    empty: list[dict[str, Any]] = [
        {},
        {"must": []},
        {"must": [{"should": []}]},
        {"must": {"must_not": [{}]}},
        {"must_not": [{"has_id": []}]},
        {"should": [{"must": []}, {"key": "parity", "match": {"value": 1}}]},
        {"min_should": {"conditions": [{}], "min_count": 1}},
        {"must": [{"min_should": {"conditions": [{}, {"has_id": [7]}], "min_count": 1}}]},
        {"must": None, "should": None, "must_not": None, "min_should": None},
        {"must": [{"must": None, "min_should": None}]},
        {"min_should": {"conditions": [{"has_id": [7]}], "min_count": 0}},
        {"must": [{"slice": {"total": 1, "index": 0}}]},
        {"must": [{"key": "absent", "values_count": {"gte": 0}}]},
        {"must": [{"key": "absent", "values_count": {"lt": None}}]},
        {"must_not": [{"key": "absent", "values_count": {"lt": 0}}]},
        {"must_not": [{"key": "parity", "match": {"any": []}}]},
        {"must_not": [{"min_should": {"conditions": [{"has_id": [7]}], "min_count": 2}}]},
        {"must_not": [{"must": [{"has_id": [0]}, {"has_id": []}]}]},
        {"must_not": [{"must_not": [{"slice": {"total": 1, "index": 0}}]}]},
    ]
    store.ensure(collection, SCHEMA)
    write(store, collection, [draft(0)], SCHEMA)
    for where in empty:
        assert matches_all(where)
        with pytest.raises(InvalidRequest, match="at least one condition"):
            store.delete(collection, where=where)
    assert store.count(collection) == 1


def test_a_filter_of_the_maximum_depth_is_accepted(store: Store, collection: str) -> None:
    """A filter of the maximum depth passes every decoder, without delay."""
    where: dict[str, Any] = {"must": [{"key": "parity", "match": {"value": 1}}]}
    for _ in range(15):
        where = {"must": [where]}
    store.ensure(collection, SCHEMA)
    write(store, collection, [draft(0), draft(1)], SCHEMA)
    start = time.monotonic()
    assert store.count(collection, where) == 1
    assert time.monotonic() - start < 30  # exponential work in the depth would take for ever


_WORDS = [
    "must", "should", "must_not", "min_should", "conditions", "min_count", "key", "match", "value", "any", "except",
    "text", "range", "gt", "lte", "values_count", "is_empty", "is_null", "has_id", "has_vector", "nested", "filter",
    "slice", "total", "index", "geo_radius", "center", "radius", "lon", "lat", "geo_polygon", "exterior", "points",
]  # fmt: skip
_scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from([0, 1, -1, 2**32, 2**63, 2**64, 2**1100, 0.5, float("inf")]),
    st.sampled_from(["", "a", "a.b", '"', "2024-01-01", "\ud800", "+99999-1-1", ID]),
)
_json = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), inner, max_size=3),
    max_leaves=12,
)
_bounds = st.dictionaries(st.sampled_from(["gt", "lte"]), _scalars)
_matches = st.dictionaries(st.sampled_from(_WORDS[8:12]), _json, max_size=1)
_conditions = st.one_of(
    st.fixed_dictionaries({"key": _scalars, "match": _matches}),
    st.fixed_dictionaries({"key": st.just("a"), "range": _bounds}),
    st.fixed_dictionaries({"key": st.just("a"), "values_count": _bounds}),
    st.fixed_dictionaries({"has_id": st.lists(_scalars, max_size=3)}),
    st.fixed_dictionaries({"slice": st.fixed_dictionaries({"total": _scalars, "index": _scalars})}),
    _json,
)
_clause = st.lists(_conditions, max_size=3) | _conditions


@given(st.dictionaries(st.sampled_from(_WORDS[:3]), _clause, max_size=3) | _json)
def test_a_filter_is_either_refused_or_understood_by_both_stores(where: Any) -> None:
    """No input crashes. What is accepted has a canonical form that both stores convert."""
    try:
        canonical = parse_filter(where)
    except InvalidRequest:
        return
    assert parse_filter(canonical) == canonical
    assert json.loads(json.dumps(canonical)) == canonical
    edge_filter(where)
    client_filter(where)
    matches_all(where)
