"""Validate filters in Qdrant's JSON format before they reach a store. Errors contain the path of the mistake.

A filter that passes `check_filter` is understood by a server and by Qdrant Edge. Conditions that only one of them
supports are refused. This module does not import a client.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from embedder.errors import InvalidRequest
from qdrant_sink.points import INTEGER_ID_MAX, UUID_TEXT, shown_integer

Filter = Mapping[str, Any]
"""A filter in Qdrant's JSON format: {"must": [...], "should": [...], "must_not": [...]}."""

FILTER_DEPTH_MAX: Final = 16
"""Maximum nesting depth of filters."""

_CLAUSES: Final = ("must", "should", "must_not")
_COMPARISONS: Final = ("lt", "gt", "lte", "gte")
_MATCH_KEYS: Final = ("value", "any", "except", "text", "text_any", "phrase", "prefix", "substring")
_FIELD_CONDITIONS: Final = (
    "match",
    "range",
    "geo_bounding_box",
    "geo_radius",
    "geo_polygon",
    "values_count",
    "is_empty",
    "is_null",
)
_DATE_PATTERN: Final = re.compile(
    r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?)?)?", re.ASCII
)
_PATH_SEGMENT: Final = r"(?:[\w-]+|\"[^\"]+\")(?:\[\d*\])*"
_PATH_PATTERN: Final = re.compile(rf"{_PATH_SEGMENT}(?:\.{_PATH_SEGMENT})*")


def check_filter(raw: Any, field: str = "filter") -> None:
    """Raise `InvalidRequest` if `raw` is not a valid filter. The error has a path such as `filter.must[0].match`."""
    _filter(raw, field, 1)


def matches_all(raw: Filter) -> bool:
    """Whether a valid filter has no effective condition at any depth, so that it matches every point."""
    should, min_should = as_list(raw.get("should")), raw.get("min_should")
    return (
        all(_always(condition) for condition in as_list(raw.get("must")))
        and (not should or any(_always(condition) for condition in should))
        and all(_always(condition) or _never(condition) for condition in as_list(raw.get("must_not")))
        and (
            min_should is None
            or sum(_always(condition) for condition in min_should["conditions"]) >= min_should["min_count"]
        )
    )


def _always(condition: Mapping[str, Any]) -> bool:
    is_filter = not condition or any(key in condition for key in (*_CLAUSES, "min_should"))
    return is_filter and matches_all(condition)


def _never(condition: Mapping[str, Any]) -> bool:
    return condition.get("has_id") == [] or (condition.get("match") or {}).get("any") == []


def as_list(clause: Any) -> list[Any]:
    """Return the conditions of a clause as a list. The clause may be absent, a single condition or a list."""
    if clause is None:
        return []
    return clause if isinstance(clause, list) else [clause]


def _filter(raw: Any, path: str, depth: int) -> None:
    fields = _object(raw, path, (*_CLAUSES, "min_should"))
    if depth > FILTER_DEPTH_MAX:
        raise InvalidRequest(f"{path}: filters must be nested at most {FILTER_DEPTH_MAX} levels deep")
    for clause in _CLAUSES:
        value = fields.get(clause)
        if isinstance(value, list):
            for i, condition in enumerate(value):
                _condition(condition, f"{path}.{clause}[{i}]", depth)
        elif value is not None:
            _condition(value, f"{path}.{clause}", depth)
    if fields.get("min_should") is not None:
        path = f"{path}.min_should"
        min_should = _object(fields["min_should"], path, ("conditions", "min_count"), required=True)
        for i, condition in enumerate(_list(min_should["conditions"], f"{path}.conditions")):
            _condition(condition, f"{path}.conditions[{i}]", depth)
        _count(min_should["min_count"], f"{path}.min_count")
        if not min_should["conditions"] or not min_should["min_count"]:
            raise InvalidRequest(
                f"{path}: must have at least 1 condition and a min_count of at least 1, got "
                f"{len(min_should['conditions'])} and {min_should['min_count']}"
            )


def _condition(raw: Any, path: str, depth: int) -> None:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{path}: must be an object, got {_type_name(raw)}")
    if "key" in raw:
        _field_condition(raw, path)
    elif "has_id" in raw:
        _object(raw, path, ("has_id",))
        for i, value in enumerate(_list(raw["has_id"], f"{path}.has_id")):
            _id(value, f"{path}.has_id[{i}]")
    elif "has_vector" in raw:
        _object(raw, path, ("has_vector",))
        _text(raw["has_vector"], f"{path}.has_vector")
    elif "is_empty" in raw or "is_null" in raw:
        name = "is_empty" if "is_empty" in raw else "is_null"
        _object(raw, path, (name,))
        _path(_object(raw[name], f"{path}.{name}", ("key",), required=True)["key"], f"{path}.{name}.key")
    elif "nested" in raw:
        _object(raw, path, ("nested",))
        nested = _object(raw["nested"], f"{path}.nested", ("key", "filter"), required=True)
        _path(nested["key"], f"{path}.nested.key")
        _filter(nested["filter"], f"{path}.nested.filter", depth + 1)
    else:
        _filter(raw, path, depth + 1)


def _field_condition(raw: Mapping[str, Any], path: str) -> None:
    _object(raw, path, ("key", *_FIELD_CONDITIONS))
    _path(raw["key"], f"{path}.key")
    conditions = [name for name in _FIELD_CONDITIONS if raw.get(name) is not None]
    if len(conditions) != 1:
        got = ", ".join(conditions) or "none"
        raise InvalidRequest(f"{path}: must have key and exactly one of {', '.join(_FIELD_CONDITIONS)}, got {got}")
    name = conditions[0]
    _CHECKS[name](raw[name], f"{path}.{name}")


def _match(raw: Any, path: str) -> None:
    fields = _object(raw, path, _MATCH_KEYS)
    if len(fields) != 1:
        raise InvalidRequest(f"{path}: must have exactly one of {', '.join(_MATCH_KEYS)}, got {len(fields)}")
    name, value = next(iter(fields.items()))
    path = f"{path}.{name}"
    if name == "value":
        if isinstance(value, int):
            _integer(value, path)
        elif not isinstance(value, str):
            raise InvalidRequest(f"{path}: must be a string, an integer or a boolean, got {_type_name(value)}")
        else:
            _unicode(value, path)
    elif name in ("any", "except"):
        values = _list(value, path)
        if all(isinstance(value, str) for value in values):
            for i, value in enumerate(values):
                _unicode(value, f"{path}[{i}]")
        elif all(isinstance(value, int) and not isinstance(value, bool) for value in values):
            for i, value in enumerate(values):
                _integer(value, f"{path}[{i}]")
        else:
            raise InvalidRequest(f"{path}: must hold only strings or only integers")
    else:
        _text(value, path)


def _range(raw: Any, path: str) -> None:
    fields = _object(raw, path, _COMPARISONS)
    bounds = {name: value for name, value in fields.items() if value is not None}
    if any(isinstance(value, str) for value in bounds.values()):
        for name, value in bounds.items():
            _date(value, f"{path}.{name}")
    else:
        for name, value in bounds.items():
            _number(value, f"{path}.{name}")


def _values_count(raw: Any, path: str) -> None:
    for name, value in _object(raw, path, _COMPARISONS).items():
        if value is not None:
            _count(value, f"{path}.{name}")


def _boolean(raw: Any, path: str) -> None:
    if not isinstance(raw, bool):
        raise InvalidRequest(f"{path}: must be true or false, got {_type_name(raw)}")


def _geo_bounding_box(raw: Any, path: str) -> None:
    box = _object(raw, path, ("top_left", "bottom_right"), required=True)
    _geo_point(box["top_left"], f"{path}.top_left")
    _geo_point(box["bottom_right"], f"{path}.bottom_right")


def _geo_radius(raw: Any, path: str) -> None:
    circle = _object(raw, path, ("center", "radius"), required=True)
    _geo_point(circle["center"], f"{path}.center")
    _number(circle["radius"], f"{path}.radius")


def _geo_polygon(raw: Any, path: str) -> None:
    polygon = _object(raw, path, ("exterior", "interiors"))
    if "exterior" not in polygon:
        raise InvalidRequest(f"{path}: exterior is missing")
    _ring(polygon["exterior"], f"{path}.exterior")
    if polygon.get("interiors") is not None:
        for i, ring in enumerate(_list(polygon["interiors"], f"{path}.interiors")):
            _ring(ring, f"{path}.interiors[{i}]")


def _ring(raw: Any, path: str) -> None:
    points = _list(_object(raw, path, ("points",), required=True)["points"], f"{path}.points")
    for i, point in enumerate(points):
        _geo_point(point, f"{path}.points[{i}]")
    if len(points) < 4:
        raise InvalidRequest(f"{path}.points: must have at least 4 points, got {len(points)}")
    if points[0] != points[-1]:
        raise InvalidRequest(f"{path}.points: the last point must equal the first, to close the ring")


def _geo_point(raw: Any, path: str) -> None:
    point = _object(raw, path, ("lon", "lat"), required=True)
    for name, limit in (("lon", 180), ("lat", 90)):
        _number(point[name], f"{path}.{name}")
        if not -limit <= point[name] <= limit:
            raise InvalidRequest(f"{path}.{name}: must be {-limit} to {limit}, got {point[name]}")


_CHECKS: Final[Mapping[str, Callable[[Any, str], None]]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": _geo_bounding_box,
    "geo_radius": _geo_radius,
    "geo_polygon": _geo_polygon,
    "values_count": _values_count,
    "is_empty": _boolean,
    "is_null": _boolean,
}


def _object(raw: Any, path: str, allowed: tuple[str, ...], *, required: bool = False) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{path}: must be an object, got {_type_name(raw)}")
    for key in raw:
        if key not in allowed:
            raise InvalidRequest(f"{path}: unknown key {str(key)[:40]!r}; allowed keys: {', '.join(allowed)}")
    if required:
        for key in allowed:
            if key not in raw:
                raise InvalidRequest(f"{path}: {key} is missing")
    return raw


def _list(raw: Any, path: str) -> list[Any]:
    if not isinstance(raw, list):
        raise InvalidRequest(f"{path}: must be a list, got {_type_name(raw)}")
    return raw


def _text(raw: Any, path: str) -> None:
    if not isinstance(raw, str) or not raw:
        raise InvalidRequest(f"{path}: must be a string of at least 1 character, got {_type_name(raw)}")
    _unicode(raw, path)


def _path(raw: Any, path: str) -> None:
    _text(raw, path)
    if not _PATH_PATTERN.fullmatch(raw):
        raise InvalidRequest(f'{path}: must be a path such as a.b, a[].b or "any key".b')


def _unicode(raw: str, path: str) -> None:
    try:
        raw.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{path}: character {exc.start} is a lone surrogate, which is not text") from exc


def _integer(raw: int, path: str) -> None:
    if not -(2**63) <= raw < 2**63:
        raise InvalidRequest(f"{path}: must be a signed 64-bit integer, got an integer of {raw.bit_length()} bits")


def _count(raw: Any, path: str) -> None:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 2**32:
        got = "an integer out of range" if type(raw) is int else _type_name(raw)
        raise InvalidRequest(f"{path}: must be an integer from 0 to {2**32 - 1}, got {got}")


def _number(raw: Any, path: str) -> None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise InvalidRequest(f"{path}: must be a number, got {_type_name(raw)}")
    if (isinstance(raw, int) and raw.bit_length() > 1000) or not math.isfinite(raw):
        raise InvalidRequest(f"{path}: must be a finite number")


def _date(raw: Any, path: str) -> None:
    if not isinstance(raw, str):
        raise InvalidRequest(f"{path}: must be a date like the other bounds, got {_type_name(raw)}")
    if not _DATE_PATTERN.fullmatch(raw):
        raise InvalidRequest(f"{path}: must be a number or an RFC 3339 date such as 2024-05-01T12:00:00Z")
    try:
        datetime.fromisoformat(raw)
    except ValueError as exc:
        raise InvalidRequest(f"{path}: must be a date that exists in the calendar") from exc


def _id(raw: Any, path: str) -> None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if not 0 <= raw <= INTEGER_ID_MAX:
            raise InvalidRequest(f"{path}: an integer id must be 0 to {INTEGER_ID_MAX}, got {shown_integer(raw)}")
    elif not isinstance(raw, str) or not UUID_TEXT.fullmatch(raw):
        raise InvalidRequest(f"{path}: must be an unsigned 64-bit integer or a UUID, got {_type_name(raw)}")


def _type_name(raw: Any) -> str:
    if raw is None:
        return "null"
    names = {
        bool: "a boolean",
        int: "an integer",
        float: "a number",
        str: "a string",
        list: "a list",
        dict: "an object",
    }
    kind = names.get(type(raw), type(raw).__name__)
    return "an empty string" if raw == "" and isinstance(raw, str) else kind
