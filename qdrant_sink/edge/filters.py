"""Convert filters from Qdrant's JSON format to objects of Qdrant Edge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import qdrant_edge as edge

from embedder.errors import InvalidRequest
from qdrant_sink.filters import Filter, parse_filter


def edge_filter(raw: Filter) -> edge.Filter:
    """Parse and convert a filter. A filter without conditions matches all points.

    Raises:
        InvalidRequest: the filter is invalid (see `parse_filter`), or Qdrant Edge does not support a condition,
            which the error names.
    """
    return parse_filter(raw).converted(_filter)


def _filter(where: Filter) -> edge.Filter:
    def clause(name: str) -> list[edge.ConditionType] | None:
        return [_condition(condition) for condition in where.get(name, [])] or None

    min_should = where.get("min_should")
    return edge.Filter(
        must=clause("must"),
        should=clause("should"),
        must_not=clause("must_not"),
        min_should=min_should
        and edge.MinShould([_condition(one) for one in min_should["conditions"]], min_should["min_count"]),
    )


def _condition(condition: Mapping[str, Any]) -> edge.ConditionType:
    if "key" in condition:
        return _field_condition(condition)
    name = next(iter(condition), "")
    if name not in _CONDITIONS:
        return _filter(condition)
    with _supported(name):
        result: edge.ConditionType = _CONDITIONS[name](condition[name])
        return result


def _field_condition(condition: Mapping[str, Any]) -> edge.FieldCondition:
    name = next(name for name in condition if name != "key")
    value = condition[name]
    with _supported(f"match.{next(iter(value))}" if name == "match" else name):
        fields: dict[str, Any] = {name: _FIELD_CONDITIONS[name](value)}
        return edge.FieldCondition(condition["key"], **fields)


@contextmanager
def _supported(name: str) -> Iterator[None]:
    """Name the condition that the engine refuses or does not have."""
    try:
        yield
    except (AttributeError, ValueError, TypeError, OverflowError) as exc:
        raise InvalidRequest(
            f"filter: the embedded Qdrant Edge does not support this {name} condition; a Qdrant server may"
        ) from exc


def _slice(parts: Mapping[str, int]) -> Any:
    # The type stubs of qdrant-edge-py 0.9 do not list the class.
    return edge.SliceCondition(parts["total"], parts["index"])  # type: ignore[attr-defined]


def _match(match: Mapping[str, Any]) -> edge.MatchType:
    name, value = next(iter(match.items()))
    if name == "value":
        # qdrant-edge-py 0.9 converts a Python bool to the integer 0 or 1, which does not match a boolean. A numpy bool
        # is not an integer and stays a boolean.
        exact: Any = np.bool_(value) if isinstance(value, bool) else value
        return edge.MatchValue(exact)
    result: edge.MatchType = _MATCHES[name](value)
    return result


def _range(bounds: Mapping[str, Any]) -> edge.RangeType:
    if any(isinstance(bound, str) for bound in bounds.values()):
        return edge.RangeDateTime(**bounds)
    return edge.RangeFloat(**bounds)


def _geo_point(point: Mapping[str, float]) -> edge.GeoPoint:
    return edge.GeoPoint(point["lon"], point["lat"])


def _geo_bounding_box(box: Mapping[str, Any]) -> edge.GeoBoundingBox:
    return edge.GeoBoundingBox(_geo_point(box["top_left"]), _geo_point(box["bottom_right"]))


def _geo_radius(circle: Mapping[str, Any]) -> edge.GeoRadius:
    return edge.GeoRadius(_geo_point(circle["center"]), circle["radius"])


def _geo_polygon(polygon: Mapping[str, Any]) -> edge.GeoPolygon:
    holes = polygon.get("interiors")
    rings = None if holes is None else [_ring(hole) for hole in holes]
    return edge.GeoPolygon(_ring(polygon["exterior"]), rings)


def _ring(ring: Mapping[str, Any]) -> list[edge.GeoPoint]:
    return [_geo_point(point) for point in ring["points"]]


_CONDITIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "has_id": lambda ids: edge.HasIdCondition(set(ids)),
    "has_vector": edge.HasVectorCondition,
    "is_empty": lambda field: edge.IsEmptyCondition(field["key"]),
    "is_null": lambda field: edge.IsNullCondition(field["key"]),
    "nested": lambda nested: edge.NestedCondition(nested["key"], _filter(nested["filter"])),
    "slice": _slice,
}
_FIELD_CONDITIONS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": _geo_bounding_box,
    "geo_radius": _geo_radius,
    "geo_polygon": _geo_polygon,
    "values_count": lambda bounds: edge.ValuesCount(**bounds),
    "is_empty": bool,
    "is_null": bool,
}
_MATCHES: Final[Mapping[str, Callable[[Any], Any]]] = {
    "any": edge.MatchAny,
    "except": edge.MatchExcept,
    "text": edge.MatchText,
    "text_any": edge.MatchTextAny,
    "phrase": edge.MatchPhrase,
    "prefix": edge.MatchPrefix,
    "substring": edge.MatchSubstring,
}
