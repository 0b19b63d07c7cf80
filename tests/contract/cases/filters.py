"""Qdrant's filters: every kind of condition by its count, and every mistake by its path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from tests.contract.cases.shared import count, stored
from tests.contract.steps import Scenario

BERLIN: Final = {"lon": 13.4, "lat": 52.5}
RING: Final = {
    "points": [
        {"lon": 0, "lat": 45},
        {"lon": 20, "lat": 45},
        {"lon": 20, "lat": 55},
        {"lon": 0, "lat": 55},
        {"lon": 0, "lat": 45},
    ]
}


def _key(key: str, **test: Any) -> Mapping[str, Any]:
    return {"must": [{"key": key, **test}]}


_VALID: Final[Mapping[str, Mapping[str, Any]]] = {
    "match-value": _key("topic", match={"value": "files"}),
    "match-integer": _key("topic", match={"value": 10}),
    "match-boolean": _key("free", match={"value": True}),
    "match-any": _key("topic", match={"any": ["files", "data"]}),
    "match-any-integers": _key("n", match={"any": [1, 2, 30]}),
    "match-any-of-none": _key("topic", match={"any": []}),
    "match-except": _key("topic", match={"except": ["files"]}),
    "match-text": _key("text", match={"text": "backup"}),
    "match-text-any": _key("text", match={"text_any": "backup kernel"}),
    "match-phrase": _key("text", match={"phrase": "relational database"}),
    "range": _key("price", range={"gte": 1.5, "lt": 5.5}),
    "range-open": _key("price", range={"gt": 1.5, "lte": None}),
    "range-of-dates": _key("when", range={"gte": "2024-01-01", "lt": "2024-05-31T00:00:00Z"}),
    "range-of-dates-in-nanoseconds": _key("when", range={"gte": "2024-05-01 12:00:00.123456789+00", "lt": None}),
    "match-empty-text": _key("text", match={"text": ""}),
    "values-count": _key("tags", values_count={"gte": 2}),
    "is-empty-of-a-key": _key("tags", is_empty=True),
    "is-null-of-a-key": _key("gone", is_null=True),
    "is-empty": {"must": [{"is_empty": {"key": "place"}}]},
    "is-null": {"must": [{"is_null": {"key": "gone"}}]},
    "has-id": {"must": [{"has_id": [1, 3, 99]}]},
    "has-vector": {"must": [{"has_vector": "colbert"}]},
    "has-vector-unnamed": {"must": [{"has_vector": ""}]},
    "slice": {"must": [{"slice": {"total": 1, "index": 0}}]},
    "nulls": {"must": [{"key": "n", "match": {"value": 1}, "range": None}], "should": None, "min_should": None},
    "min-should-zero": {"min_should": {"min_count": 0, "conditions": [{"has_id": [1]}]}},
    "nested": {
        "must": [
            {
                "nested": {
                    "key": "offers",
                    "filter": {
                        "must": [{"key": "shop", "match": {"value": "a"}}, {"key": "price", "range": {"gt": 5}}]
                    },
                }
            }
        ]
    },
    "path-of-a-list": _key("offers[].price", range={"gt": 5}),
    "path-of-an-item": _key("offers[1].price", range={"gt": 5}),
    "path-in-quotes": _key('"owner"."name"', match={"value": "kim"}),
    "path-of-an-object": _key("owner.name", match={"value": "kim"}),
    "geo-bounding-box": _key(
        "place", geo_bounding_box={"top_left": {"lon": 0, "lat": 55}, "bottom_right": {"lon": 20, "lat": 50}}
    ),
    "geo-radius": _key("place", geo_radius={"center": BERLIN, "radius": 1000.0}),
    "geo-polygon": _key("place", geo_polygon={"exterior": RING, "interiors": []}),
    "should": {"should": [{"key": "n", "match": {"value": 1}}, {"key": "n", "match": {"value": 2}}]},
    "must-not": {"must_not": [{"key": "topic", "match": {"value": "files"}}]},
    "one-condition-without-a-list": {"must": {"key": "n", "match": {"value": 1}}},
    "min-should": {
        "min_should": {
            "min_count": 2,
            "conditions": [
                {"key": "free", "match": {"value": True}},
                {"key": "topic", "match": {"value": "files"}},
                {"key": "price", "range": {"lt": 2}},
            ],
        }
    },
    "filters-in-filters": {
        "must": [{"should": [{"key": "n", "match": {"value": 1}}, {"must_not": [{"key": "n", "range": {"gt": 2}}]}]}]
    },
    "empty-clauses": {"must": [], "should": None, "must_not": []},
}

_NESTED: dict[str, Any] = {"must": [{"has_id": [1]}]}
for _ in range(17):
    _NESTED = {"must": [_NESTED]}

_INVALID: Final[Mapping[str, Mapping[str, Any]]] = {
    "unknown-clause": {"musst": []},
    "condition-a-string": {"must": ["topic"]},
    "condition-unknown": {"must": [{"match": {"value": 1}}]},
    "condition-empty-key": _key("", match={"value": 1}),
    "condition-no-path": _key("a..b", match={"value": 1}),
    "two-tests": _key("n", match={"value": 1}, range={"gt": 0}),
    "no-test": _key("n"),
    "unknown-test": _key("n", equals=1),
    "match-two-ways": _key("n", match={"value": 1, "any": [1]}),
    "match-a-float": _key("n", match={"value": 1.5}),
    "match-mixed": _key("n", match={"any": [1, "a"]}),
    "match-huge": _key("n", match={"value": 2**70}),
    "range-a-list": _key("n", range=[1, 2]),
    "range-mixed": _key("when", range={"gt": 1, "lt": "2024-01-01"}),
    "range-no-date": _key("when", range={"gt": "yesterday"}),
    "range-year-zero": _key("when", range={"gt": "0000-01-01"}),
    "range-no-day": _key("when", range={"gt": "2024-02-30"}),
    "values-count-negative": _key("tags", values_count={"gt": -1}),
    "is-empty-a-string": _key("tags", is_empty="yes"),
    "has-id-a-word": {"must": [{"has_id": ["word"]}]},
    "has-id-null": {"must": [{"has_id": None}]},
    "has-id-negative": {"must": [{"has_id": [-1]}]},
    "slice-past-the-end": {"must": [{"slice": {"total": 2, "index": 2}}]},
    "geo-latitude": _key("place", geo_radius={"center": {"lon": 0, "lat": 91}, "radius": 1}),
    "geo-center-missing": _key("place", geo_radius={"radius": 1}),
    "geo-ring-open": _key("place", geo_polygon={"exterior": {"points": RING["points"][:3]}}),
    "geo-exterior-missing": _key("place", geo_polygon={}),
    "min-should-of-nothing": {"min_should": {"min_count": 0, "conditions": []}},
    "min-should-without-count": {"min_should": {"conditions": []}},
    "nested-without-filter": {"must": [{"nested": {"key": "offers"}}]},
    "nested-too-deep": _NESTED,
}

SCENARIOS: Final = (
    Scenario(
        "conditions",
        [stored("ten-points"), *(count(name, filter=condition) for name, condition in _VALID.items())],
    ),
    Scenario(
        "mistakes",
        [count(f"invalid-{name}", filter=condition) for name, condition in _INVALID.items()],
        stores=("edge",),
    ),
)
