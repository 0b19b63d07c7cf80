"""Parse the values of filter conditions. Errors begin with the path of the value."""

from __future__ import annotations

import math
import uuid
from collections.abc import Collection, Mapping
from datetime import date
from typing import Any, Final

from embedder.errors import InvalidRequest
from qdrant_sink.dates import parse_date
from qdrant_sink.json_types import kind_of
from qdrant_sink.payload_path import canonical_path
from qdrant_sink.points import INTEGER_ID_MAX, UUID_TEXT, shown_integer

COUNT_MAX: Final = 2**64 - 1
"""Largest number of values or conditions that a filter can name."""

ARRAY_LENGTH_MAX: Final = 2**32 - 1
"""Number of values that no array of a payload exceeds, because no request is large enough."""

KEY_CHARACTERS_MAX: Final = 1024
"""Maximum length of a path of payload keys in a filter in characters."""

POLYGON_POINTS_MAX: Final = 4096
"""Maximum number of points of a polygon, those of its holes included. Every stored point is compared with each."""

_COMPARISONS: Final = ("lt", "gt", "lte", "gte")
_RING_POINTS_MIN: Final = 4
_RING_TOLERANCE: Final = 2.0**-52
"""Largest difference between the first and the last point of a ring that Qdrant takes as closed, in degrees."""


def parse_object(raw: Any, path: str, allowed: Collection[str], *, required: Collection[str] = ()) -> dict[str, Any]:
    """Return the fields of an object that are not null. A field with another name must be null."""
    if not isinstance(raw, Mapping):
        raise InvalidRequest(f"{path}: must be an object, got {type_name(raw)}")
    fields: dict[str, Any] = {}
    for key, value in raw.items():
        if value is None:
            continue
        if key not in allowed:
            shown = str(key)[:40].encode("utf-8", "replace").decode()
            raise InvalidRequest(f"{path}: unknown key {shown!r}; allowed keys: {', '.join(allowed)}")
        fields[key] = value
    for key in required:
        if key not in fields:
            raise InvalidRequest(f"{path}: {key} is missing")
    return fields


def parse_list(raw: Any, path: str) -> list[Any]:
    """Return a list."""
    if not isinstance(raw, list):
        raise InvalidRequest(f"{path}: must be a list, got {type_name(raw)}")
    return raw


def parse_text(raw: Any, path: str) -> str:
    """Return a string of valid Unicode."""
    if not isinstance(raw, str):
        raise InvalidRequest(f"{path}: must be a string, got {type_name(raw)}")
    try:
        raw.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{path}: character {exc.start} is a lone surrogate, which is not text") from exc
    return raw


def parse_path(raw: Any, path: str) -> str:
    """Return a path of payload keys in the form in which Qdrant reads it."""
    text = parse_text(raw, path)
    if len(text) > KEY_CHARACTERS_MAX:
        raise InvalidRequest(f"{path}: must have at most {KEY_CHARACTERS_MAX} characters, got {len(text)}")
    try:
        return canonical_path(text)
    except ValueError as exc:
        raise InvalidRequest(f"{path}: {exc}") from exc


def parse_exact(raw: Any, path: str) -> str | int | bool:
    """Return the value of an exact match."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, int):
        return _integer(raw, path)
    if not isinstance(raw, str):
        raise InvalidRequest(f"{path}: must be a string, an integer or a boolean, got {type_name(raw)}")
    return parse_text(raw, path)


def parse_alternatives(raw: Any, path: str) -> list[str] | list[int]:
    """Return the values of a match with several: only strings or only integers."""
    items = parse_list(raw, path)
    if all(isinstance(item, str) for item in items):
        return [parse_text(item, f"{path}[{i}]") for i, item in enumerate(items)]
    if all(isinstance(item, int) and not isinstance(item, bool) for item in items):
        return [_integer(item, f"{path}[{i}]") for i, item in enumerate(items)]
    raise InvalidRequest(f"{path}: must hold only strings or only integers")


def parse_id(raw: Any, path: str) -> int | str:
    """Return the id of a point: an unsigned 64-bit integer, or a UUID in its hyphenated form."""
    if isinstance(raw, uuid.UUID):
        return str(raw)
    if isinstance(raw, int) and not isinstance(raw, bool):
        if not 0 <= raw <= INTEGER_ID_MAX:
            raise InvalidRequest(f"{path}: an integer id must be 0 to {INTEGER_ID_MAX}, got {shown_integer(raw)}")
        return raw
    if not isinstance(raw, str) or not UUID_TEXT.fullmatch(raw):
        raise InvalidRequest(f"{path}: must be an unsigned 64-bit integer or a UUID, got {type_name(raw)}")
    return str(uuid.UUID(raw.lower()))


def parse_boolean(raw: Any, path: str) -> bool:
    """Return a boolean."""
    if not isinstance(raw, bool):
        raise InvalidRequest(f"{path}: must be true or false, got {type_name(raw)}")
    return raw


def parse_count(raw: Any, path: str, *, limit: int = COUNT_MAX) -> int:
    """Return an integer from 0 to `limit`."""
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= limit:
        got = "an integer out of range" if type(raw) is int else type_name(raw)
        raise InvalidRequest(f"{path}: must be an integer from 0 to {limit}, got {got}")
    return raw


def parse_range(raw: Any, path: str) -> dict[str, Any]:
    """Return the bounds of a range: numbers, or dates in UTC."""
    bounds = parse_object(raw, path, _COMPARISONS)
    parse = _date if any(isinstance(bound, str | date) for bound in bounds.values()) else _number
    return {name: parse(bound, f"{path}.{name}") for name, bound in bounds.items()}


def parse_values_count(raw: Any, path: str) -> dict[str, int]:
    """Return the bounds of a number of values."""
    bounds = parse_object(raw, path, _COMPARISONS)
    return {name: parse_count(bound, f"{path}.{name}") for name, bound in bounds.items()}


def parse_geo_bounding_box(raw: Any, path: str) -> dict[str, Any]:
    """Return a box on the globe."""
    names = ("top_left", "bottom_right")
    box = parse_object(raw, path, names, required=names)
    return {name: _geo_point(box[name], f"{path}.{name}") for name in names}


def parse_geo_radius(raw: Any, path: str) -> dict[str, Any]:
    """Return a circle on the globe. Its radius is in metres."""
    circle = parse_object(raw, path, ("center", "radius"), required=("center", "radius"))
    return {
        "center": _geo_point(circle["center"], f"{path}.center"),
        "radius": _number(circle["radius"], f"{path}.radius"),
    }


def parse_geo_polygon(raw: Any, path: str) -> dict[str, Any]:
    """Return a polygon on the globe, which may have holes."""
    fields = parse_object(raw, path, ("exterior", "interiors"), required=("exterior",))
    polygon: dict[str, Any] = {"exterior": _ring(fields["exterior"], f"{path}.exterior")}
    if "interiors" in fields:
        holes = parse_list(fields["interiors"], f"{path}.interiors")
        polygon["interiors"] = [_ring(hole, f"{path}.interiors[{i}]") for i, hole in enumerate(holes)]
    points = sum(len(ring["points"]) for ring in (polygon["exterior"], *polygon.get("interiors", ())))
    if points > POLYGON_POINTS_MAX:
        raise InvalidRequest(
            f"{path}: a polygon must have at most {POLYGON_POINTS_MAX} points, got {points}; simplify its rings"
        )
    return polygon


def type_name(raw: Any) -> str:
    """Describe the JSON type of a value with its article; an empty string is named as such."""
    return "an empty string" if isinstance(raw, str) and not raw else kind_of(raw)


def _ring(raw: Any, path: str) -> dict[str, Any]:
    items = parse_list(parse_object(raw, path, ("points",), required=("points",))["points"], f"{path}.points")
    points = [_geo_point(item, f"{path}.points[{i}]") for i, item in enumerate(items)]
    if len(points) < _RING_POINTS_MIN:
        raise InvalidRequest(f"{path}.points: must have at least {_RING_POINTS_MIN} points, got {len(points)}")
    if any(abs(points[0][name] - points[-1][name]) > _RING_TOLERANCE for name in ("lon", "lat")):
        raise InvalidRequest(f"{path}.points: the last point must equal the first, to close the ring")
    return {"points": points}


def _geo_point(raw: Any, path: str) -> dict[str, float]:
    fields = parse_object(raw, path, ("lon", "lat"), required=("lon", "lat"))
    point = {name: _number(fields[name], f"{path}.{name}") for name in ("lon", "lat")}
    for name, limit in (("lon", 180), ("lat", 90)):
        if not -limit <= point[name] <= limit:
            raise InvalidRequest(f"{path}.{name}: must be {-limit} to {limit}, got {point[name]}")
    return point


def _integer(raw: int, path: str) -> int:
    if not -(2**63) <= raw < 2**63:
        raise InvalidRequest(f"{path}: must be a signed 64-bit integer, got an integer of {raw.bit_length()} bits")
    return raw


def _number(raw: Any, path: str) -> float:
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise InvalidRequest(f"{path}: must be a number, got {type_name(raw)}")
    if (isinstance(raw, int) and raw.bit_length() > 1000) or not math.isfinite(raw):
        raise InvalidRequest(f"{path}: must be a finite number")
    return raw


def _date(raw: Any, path: str) -> str:
    if isinstance(raw, date):
        raw = raw.isoformat()
    if not isinstance(raw, str):
        raise InvalidRequest(f"{path}: must be a date like the other bounds, got {type_name(raw)}")
    try:
        return parse_date(raw).isoformat()
    except ValueError as exc:
        raise InvalidRequest(f"{path}: {exc}") from exc
