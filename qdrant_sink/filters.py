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
from qdrant_sink.points import INTEGER_ID_MAX, UUID_TEXT

Filter = Mapping[str, Any]
"""A filter in Qdrant's JSON format: {"must": [...], "should": [...], "must_not": [...]}."""

FILTER_DEPTH: Final = 16
"""Maximum nesting depth of filters."""

_CLAUSES: Final = ("must", "should", "must_not")
_COMPARISONS: Final = ("lt", "gt", "lte", "gte")
_MATCHES: Final = ("value", "any", "except", "text", "text_any", "phrase", "prefix", "substring")
_KEYED: Final = (
    "match",
    "range",
    "geo_bounding_box",
    "geo_radius",
    "geo_polygon",
    "values_count",
    "is_empty",
    "is_null",
)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d{1,6})?(?:Z|[+-]\d\d:?\d\d)?)?)?", re.ASCII)
_STEP: Final = r"(?:[\w-]+|\"[^\"]+\")(?:\[\d*\])*"
_PATH: Final = re.compile(rf"{_STEP}(?:\.{_STEP})*")


def check_filter(raw: Any, field: str = "filter") -> None:
    """Raise `InvalidRequest` if `raw` is not a valid filter. The error has a path such as `filter.must[0].match`."""
    _filter(raw, field, 1)


def matches_all(raw: Filter) -> bool:
    """Whether a valid filter has no effective condition at any depth, so that it matches every point."""
    should, least = as_list(raw.get("should")), raw.get("min_should")
    return (
        all(_always(condition) for condition in as_list(raw.get("must")))
        and (not should or any(_always(condition) for condition in should))
        and all(_always(condition) or _never(condition) for condition in as_list(raw.get("must_not")))
        and (least is None or sum(_always(condition) for condition in least["conditions"]) >= least["min_count"])
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


def _filter(raw: Any, at: str, depth: int) -> None:
    fields = _object(raw, at, (*_CLAUSES, "min_should"))
    if depth > FILTER_DEPTH:
        raise InvalidRequest(f"{at}: nested deeper than {FILTER_DEPTH} filters")
    for clause in _CLAUSES:
        value = fields.get(clause)
        if isinstance(value, list):
            for i, condition in enumerate(value):
                _condition(condition, f"{at}.{clause}[{i}]", depth)
        elif value is not None:
            _condition(value, f"{at}.{clause}", depth)
    if fields.get("min_should") is not None:
        at = f"{at}.min_should"
        least = _object(fields["min_should"], at, ("conditions", "min_count"), required=True)
        for i, condition in enumerate(_list(least["conditions"], f"{at}.conditions")):
            _condition(condition, f"{at}.conditions[{i}]", depth)
        _count(least["min_count"], f"{at}.min_count")
        if not least["conditions"] or not least["min_count"]:
            raise InvalidRequest(f"{at}: must have at least 1 condition and a min_count of at least 1")


def _condition(raw: Any, at: str, depth: int) -> None:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{at}: must be an object, got {_kind(raw)}")
    if "key" in raw:
        _field_condition(raw, at)
    elif "has_id" in raw:
        _object(raw, at, ("has_id",))
        for i, value in enumerate(_list(raw["has_id"], f"{at}.has_id")):
            _id(value, f"{at}.has_id[{i}]")
    elif "has_vector" in raw:
        _object(raw, at, ("has_vector",))
        _text(raw["has_vector"], f"{at}.has_vector")
    elif "is_empty" in raw or "is_null" in raw:
        name = "is_empty" if "is_empty" in raw else "is_null"
        _object(raw, at, (name,))
        _path(_object(raw[name], f"{at}.{name}", ("key",), required=True)["key"], f"{at}.{name}.key")
    elif "nested" in raw:
        _object(raw, at, ("nested",))
        nested = _object(raw["nested"], f"{at}.nested", ("key", "filter"), required=True)
        _path(nested["key"], f"{at}.nested.key")
        _filter(nested["filter"], f"{at}.nested.filter", depth + 1)
    else:
        _filter(raw, at, depth + 1)


def _field_condition(raw: Mapping[str, Any], at: str) -> None:
    _object(raw, at, ("key", *_KEYED))
    _path(raw["key"], f"{at}.key")
    tests = [name for name in _KEYED if raw.get(name) is not None]
    if len(tests) != 1:
        got = ", ".join(tests) or "none"
        raise InvalidRequest(f"{at}: exactly one of {', '.join(_KEYED)} beside key, got {got}")
    name = tests[0]
    _TESTS[name](raw[name], f"{at}.{name}")


def _match(raw: Any, at: str) -> None:
    fields = _object(raw, at, _MATCHES)
    if len(fields) != 1:
        raise InvalidRequest(f"{at}: exactly one of {', '.join(_MATCHES)}, got {len(fields)}")
    name, value = next(iter(fields.items()))
    at = f"{at}.{name}"
    if name == "value":
        if isinstance(value, int):
            _integer(value, at)
        elif not isinstance(value, str):
            raise InvalidRequest(f"{at}: must be a string, an integer or a boolean, got {_kind(value)}")
        else:
            _unicode(value, at)
    elif name in ("any", "except"):
        values = _list(value, at)
        if all(isinstance(item, str) for item in values):
            for i, item in enumerate(values):
                _unicode(item, f"{at}[{i}]")
        elif all(isinstance(item, int) and not isinstance(item, bool) for item in values):
            for i, item in enumerate(values):
                _integer(item, f"{at}[{i}]")
        else:
            raise InvalidRequest(f"{at}: must hold strings only or integers only")
    else:
        _text(value, at)


def _range(raw: Any, at: str) -> None:
    fields = _object(raw, at, _COMPARISONS)
    bounds = {name: value for name, value in fields.items() if value is not None}
    if any(isinstance(value, str) for value in bounds.values()):
        for name, value in bounds.items():
            _date(value, f"{at}.{name}")
    else:
        for name, value in bounds.items():
            _number(value, f"{at}.{name}")


def _values_count(raw: Any, at: str) -> None:
    for name, value in _object(raw, at, _COMPARISONS).items():
        if value is not None:
            _count(value, f"{at}.{name}")


def _boolean(raw: Any, at: str) -> None:
    if not isinstance(raw, bool):
        raise InvalidRequest(f"{at}: must be true or false, got {_kind(raw)}")


def _geo_bounding_box(raw: Any, at: str) -> None:
    box = _object(raw, at, ("top_left", "bottom_right"), required=True)
    _geo_point(box["top_left"], f"{at}.top_left")
    _geo_point(box["bottom_right"], f"{at}.bottom_right")


def _geo_radius(raw: Any, at: str) -> None:
    circle = _object(raw, at, ("center", "radius"), required=True)
    _geo_point(circle["center"], f"{at}.center")
    _number(circle["radius"], f"{at}.radius")


def _geo_polygon(raw: Any, at: str) -> None:
    polygon = _object(raw, at, ("exterior", "interiors"))
    if "exterior" not in polygon:
        raise InvalidRequest(f"{at}: exterior is missing")
    _ring(polygon["exterior"], f"{at}.exterior")
    if polygon.get("interiors") is not None:
        for i, ring in enumerate(_list(polygon["interiors"], f"{at}.interiors")):
            _ring(ring, f"{at}.interiors[{i}]")


def _ring(raw: Any, at: str) -> None:
    points = _list(_object(raw, at, ("points",), required=True)["points"], f"{at}.points")
    for i, point in enumerate(points):
        _geo_point(point, f"{at}.points[{i}]")
    if len(points) < 4 or points[0] != points[-1]:
        raise InvalidRequest(f"{at}.points: at least 4, the last equal to the first, got {len(points)}")


def _geo_point(raw: Any, at: str) -> None:
    point = _object(raw, at, ("lon", "lat"), required=True)
    for name, limit in (("lon", 180), ("lat", 90)):
        _number(point[name], f"{at}.{name}")
        if not -limit <= point[name] <= limit:
            raise InvalidRequest(f"{at}.{name}: must be {-limit} to {limit}, got {point[name]}")


_TESTS: Final[Mapping[str, Callable[[Any, str], None]]] = {
    "match": _match,
    "range": _range,
    "geo_bounding_box": _geo_bounding_box,
    "geo_radius": _geo_radius,
    "geo_polygon": _geo_polygon,
    "values_count": _values_count,
    "is_empty": _boolean,
    "is_null": _boolean,
}


def _object(raw: Any, at: str, known: tuple[str, ...], *, required: bool = False) -> Mapping[str, Any]:
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{at}: must be an object, got {_kind(raw)}")
    for key in raw:
        if key not in known:
            raise InvalidRequest(f"{at}: {str(key)[:40]!r} is not known here, known: {', '.join(known)}")
    if required:
        for key in known:
            if key not in raw:
                raise InvalidRequest(f"{at}: {key} is missing")
    return raw


def _list(raw: Any, at: str) -> list[Any]:
    if not isinstance(raw, list):
        raise InvalidRequest(f"{at}: must be a list, got {_kind(raw)}")
    return raw


def _text(raw: Any, at: str) -> None:
    if not isinstance(raw, str) or not raw:
        raise InvalidRequest(f"{at}: must be a string of at least 1 character, got {_kind(raw)}")
    _unicode(raw, at)


def _path(raw: Any, at: str) -> None:
    _text(raw, at)
    if not _PATH.fullmatch(raw):
        raise InvalidRequest(f'{at}: must be a path such as a.b, a[].b or "any key".b')


def _unicode(raw: str, at: str) -> None:
    try:
        raw.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{at}: character {exc.start} is a lone surrogate, which is not text") from exc


def _integer(raw: int, at: str) -> None:
    if not -(2**63) <= raw < 2**63:
        raise InvalidRequest(f"{at}: integers are 64-bit signed, got one of {raw.bit_length()} bits")


def _count(raw: Any, at: str) -> None:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw < 2**32:
        raise InvalidRequest(f"{at}: must be an integer, 0 to {2**32 - 1}, got {_kind(raw)}")


def _number(raw: Any, at: str) -> None:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise InvalidRequest(f"{at}: must be a number, got {_kind(raw)}")
    if (isinstance(raw, int) and raw.bit_length() > 1000) or not math.isfinite(raw):
        raise InvalidRequest(f"{at}: must be a finite number")


def _date(raw: Any, at: str) -> None:
    if not isinstance(raw, str):
        raise InvalidRequest(f"{at}: must be a date like the other bounds, got {_kind(raw)}")
    if not _DATE.fullmatch(raw):
        raise InvalidRequest(f"{at}: must be a number or an RFC 3339 date such as 2024-05-01T12:00:00Z")
    try:
        datetime.fromisoformat(raw)
    except ValueError as exc:
        raise InvalidRequest(f"{at}: is not a date of the calendar") from exc


def _id(raw: Any, at: str) -> None:
    if isinstance(raw, int) and not isinstance(raw, bool):
        if not 0 <= raw <= INTEGER_ID_MAX:
            raise InvalidRequest(f"{at}: an integer id is 0 to {INTEGER_ID_MAX}")
    elif not isinstance(raw, str) or not UUID_TEXT.fullmatch(raw):
        raise InvalidRequest(f"{at}: must be an unsigned 64-bit integer or a UUID, got {_kind(raw)}")


def _kind(raw: Any) -> str:
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
