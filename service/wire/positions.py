"""Positions in an order of points: their JSON in requests and answers.

A position without an order is the id at which the next page begins. With an order it is an object of a value and, while
points of this value follow, the id of the first of them. Dates are strings.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import PlainValidator, WithJsonSchema

from qdrant_sink import OrderPosition, OrderValue, PointId, is_derived, is_exact, kind_of, parse_date, point_id
from service.validation import shown
from service.wire.fields import without_nulls

_BOUND: Final = {"anyOf": [{"type": "number"}, {"type": "string", "format": "date-time"}]}
_ID: Final = {"anyOf": [{"type": "integer", "minimum": 0}, {"type": "string", "format": "uuid"}]}
_FIELDS: Final = ("value", "id")
_POSITION: Final = {
    "type": "object",
    "properties": {"value": _BOUND, "id": {"anyOf": [*_ID["anyOf"], {"type": "null"}]}},
    "required": ["value"],
    "additionalProperties": False,
}
POSITION_SCHEMA: Final[dict[str, Any]] = {"anyOf": [*_ID["anyOf"], _POSITION]}
"""JSON Schema of a position."""


def _order_value(raw: object) -> OrderValue:
    if isinstance(raw, str):
        return parse_date(raw)
    if isinstance(raw, bool) or not isinstance(raw, int | float):
        raise ValueError(f"must be a number or a date, got {kind_of(raw)}")  # noqa: TRY004 - pydantic collects these
    if isinstance(raw, int) and not -(2**63) <= raw < 2**63:
        raise ValueError(f"must be from -2^63 to 2^63 - 1, got {shown(raw)}")
    if not math.isfinite(raw):
        raise ValueError("must be a finite number")
    return raw


def _order_start(raw: object) -> OrderValue:
    value = _order_value(raw)
    if isinstance(value, int) and not is_exact(value):
        raise ValueError(f"must be an integer that is exact as float64, such as any up to 2^53, got {shown(value)}")
    return value


def _page_position(raw: object) -> PointId | OrderPosition:
    if not isinstance(raw, Mapping):
        return _id("", raw)
    fields: Any = without_nulls(raw)
    unknown = next((name for name in fields if name not in _FIELDS), None)
    if unknown is not None:
        raise ValueError(f"must be a next of an answer: an object of value and id, got a field {shown(unknown)}")
    if "value" not in fields:
        raise ValueError(".value is required")
    try:
        value = _order_value(fields["value"])
    except ValueError as error:
        raise ValueError(f".value {error}") from error
    return OrderPosition(value, None if "id" not in fields else _id(".id ", fields["id"]))


def _id(field: str, raw: object) -> PointId:
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise ValueError(f"{field}must be a next of an answer, got {kind_of(raw)}")  # noqa: TRY004 - as above
    if isinstance(raw, str) and (not raw or is_derived(raw)):
        raise ValueError(f"{field}must be the id of a point, an integer or a UUID, got {shown(raw)}")
    if isinstance(raw, int) and not 0 <= raw < 2**64:
        raise ValueError(f"{field}must be from 0 to 2^64 - 1, got {shown(raw)}")
    return point_id(raw, "")


def position_answer(position: PointId | OrderPosition) -> Any:
    """The JSON of a position."""
    if not isinstance(position, OrderPosition):
        return position if isinstance(position, int) else str(position)
    value = position.value if isinstance(position.value, int | float) else position.value.isoformat()
    return {"value": value, "id": None if position.id is None else position_answer(position.id)}


Bound = Annotated[OrderValue, PlainValidator(_order_start), WithJsonSchema(_BOUND)]
Position = Annotated[PointId | OrderPosition, PlainValidator(_page_position), WithJsonSchema(POSITION_SCHEMA)]
