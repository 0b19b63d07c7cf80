"""The order of points by a key of the payload, and positions in it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

from embedder.errors import InvalidRequest
from qdrant_sink.payload_path import canonical_path, named
from qdrant_sink.points import PointId

OrderValue = int | float | datetime
"""Value by which a point is ordered. A date is in UTC."""

ORDERED_TYPES: Final = ("integer", "float", "datetime")
"""Types of the payload indexes by which points can be ordered."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class PointOrder:
    """Order of points by the values of a key. Points without a value are not in the order.

    Attributes:
        key: path of the key (see `payload_path`), which has a payload index of one of `ORDERED_TYPES`.
        descending: whether the greatest value comes first.
        start_from: first value of the order; None to begin with the least or the greatest one.

    Raises:
        ValueError: the key is not a path.
    """

    key: str
    descending: bool = False
    start_from: OrderValue | None = None

    def __post_init__(self) -> None:
        with named("key"):
            object.__setattr__(self, "key", canonical_path(self.key))


@dataclass(frozen=True, slots=True)
class OrderPosition:
    """Position at which a page of an order begins.

    Attributes:
        value: value of the last point of the previous page.
        id: id from which the points of this value follow, in the order of their ids; None if all of them were read.
    """

    value: OrderValue
    id: PointId | None


def order_value(number: float, index_type: str, key: str) -> OrderValue:
    """Convert the number by which a store has ordered a point to a value that a range can have as a bound.

    Args:
        number: value of the index; microseconds since 1970 for a date.
        index_type: type of the index.
        key: path of the key, for errors.

    Raises:
        InvalidRequest: no range can tell the value from its neighbours.
    """
    if index_type == "datetime":
        try:
            return _EPOCH + timedelta(microseconds=number)
        except OverflowError:
            limits = "a date of the years 1 to 9999"
    elif index_type == "integer" and not is_exact(number):
        limits = "an integer that is exact as float64, in which Qdrant compares"
    else:
        return number
    raise InvalidRequest(f"orderBy: a page of {key!r} must end at {limits}; change limit, or order by another key")


def is_exact(number: float) -> bool:
    """Whether a number is the same as float64, the type of bounds of ranges. All integers up to 2^53 are."""
    return int(float(number)) == number if isinstance(number, int) else True
