"""Convert filters from Qdrant's JSON format to objects of Qdrant Edge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import qdrant_edge as edge

from embedder.errors import InvalidRequest
from qdrant_sink.filters import Filter, as_list, check_filter


def edge_filter(raw: Filter | None) -> edge.Filter | None:
    """Validate and convert a filter. None and a filter without conditions match all points.

    Raises:
        InvalidRequest: the filter is invalid; see `check_filter`.
    """
    if raw is None:
        return None
    check_filter(raw)
    try:
        return _filter(raw)
    except (ValueError, TypeError, OverflowError) as exc:
        raise InvalidRequest("filter: Qdrant Edge does not support this filter") from exc


def _filter(raw: Filter) -> edge.Filter:
    def clause(conditions: Any) -> list[edge.ConditionType] | None:
        return [_condition(condition) for condition in as_list(conditions)] or None

    min_should = raw.get("min_should")
    return edge.Filter(
        must=clause(raw.get("must")),
        should=clause(raw.get("should")),
        must_not=clause(raw.get("must_not")),
        min_should=min_should and edge.MinShould(clause(min_should["conditions"]) or [], min_should["min_count"]),
    )


def _condition(raw: Mapping[str, Any]) -> edge.ConditionType:  # noqa: PLR0911 - one return per condition
    if "key" in raw:
        return _field_condition(raw)
    if "has_id" in raw:
        return edge.HasIdCondition(set(raw["has_id"]))
    if "has_vector" in raw:
        return edge.HasVectorCondition(raw["has_vector"])
    if "is_empty" in raw:
        return edge.IsEmptyCondition(raw["is_empty"]["key"])
    if "is_null" in raw:
        return edge.IsNullCondition(raw["is_null"]["key"])
    if "nested" in raw:
        return edge.NestedCondition(raw["nested"]["key"], _filter(raw["nested"]["filter"]))
    return _filter(raw)


def _field_condition(raw: Mapping[str, Any]) -> edge.FieldCondition:  # noqa: PLR0911 - one return per condition
    key = raw["key"]
    if raw.get("match") is not None:
        return edge.FieldCondition(key, match=_match(raw["match"]))
    if raw.get("range") is not None:
        return edge.FieldCondition(key, range=_range(raw["range"]))
    if raw.get("values_count") is not None:
        return edge.FieldCondition(key, values_count=edge.ValuesCount(**raw["values_count"]))
    if raw.get("geo_bounding_box") is not None:
        box = raw["geo_bounding_box"]
        corners = edge.GeoBoundingBox(_geo_point(box["top_left"]), _geo_point(box["bottom_right"]))
        return edge.FieldCondition(key, geo_bounding_box=corners)
    if raw.get("geo_radius") is not None:
        circle = raw["geo_radius"]
        radius = edge.GeoRadius(_geo_point(circle["center"]), circle["radius"])
        return edge.FieldCondition(key, geo_radius=radius)
    if raw.get("geo_polygon") is not None:
        polygon = raw["geo_polygon"]
        holes = polygon.get("interiors")
        rings = None if holes is None else [_ring(hole) for hole in holes]
        return edge.FieldCondition(key, geo_polygon=edge.GeoPolygon(_ring(polygon["exterior"]), rings))
    if raw.get("is_empty") is not None:
        return edge.FieldCondition(key, is_empty=raw["is_empty"])
    return edge.FieldCondition(key, is_null=raw["is_null"])


def _match(raw: Mapping[str, Any]) -> edge.MatchType:
    name, value = next(iter(raw.items()))
    if name == "value":
        # qdrant-edge-py 0.9 converts a Python bool to the integer 0 or 1, which does not match a boolean. A numpy bool
        # is not an integer and stays a boolean.
        exact: Any = np.bool_(value) if isinstance(value, bool) else value
        return edge.MatchValue(exact)
    kinds: dict[str, Any] = {
        "any": edge.MatchAny,
        "except": edge.MatchExcept,
        "text": edge.MatchText,
        "text_any": edge.MatchTextAny,
        "phrase": edge.MatchPhrase,
        "prefix": edge.MatchPrefix,
        "substring": edge.MatchSubstring,
    }
    result: edge.MatchType = kinds[name](value)
    return result


def _range(raw: Mapping[str, Any]) -> edge.RangeType:
    if any(isinstance(bound, str) for bound in raw.values()):
        return edge.RangeDateTime(**raw)
    return edge.RangeFloat(**raw)


def _geo_point(raw: Mapping[str, Any]) -> edge.GeoPoint:
    return edge.GeoPoint(raw["lon"], raw["lat"])


def _ring(raw: Mapping[str, Any]) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in raw["points"]]
