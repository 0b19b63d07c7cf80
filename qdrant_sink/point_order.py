"""The order of points by a key of the payload, and positions in it."""

from __future__ import annotations

import math
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

INTEGER_MAX: Final = 2**63 - 1
"""Greatest integer that Qdrant orders by."""

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
    """Convert the number by which a store has ordered a point to a value of a filter.

    Args:
        number: value of the index; microseconds since 1970 for a date.
        index_type: type of the index.
        key: path of the key, for errors.

    Raises:
        InvalidRequest: the date is not of the years 1 to 9999.
    """
    if index_type != "datetime":
        return number
    try:
        return _EPOCH + timedelta(microseconds=number)
    except OverflowError:
        raise InvalidRequest(
            f"orderBy: a page of {key!r} must end at a date of the years 1 to 9999; order by another key"
        ) from None


def is_exact(value: float) -> bool:
    """Whether a number is the same as float64, the type of the bounds of ranges. All integers up to 2^53 are."""
    return int(float(value)) == value if isinstance(value, int) else True


def is_bound(value: int) -> bool:
    """Whether a range of a server ends at exactly this integer, over gRPC and over REST.

    A server's parser of JSON rounds twice where a number has more digits than float64 holds: it converts the digits
    without the point, and then applies the power of ten.
    """
    if not is_exact(value):
        return False
    mantissa, _, exponent = repr(abs(float(value))).partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, power = float(int(whole + fraction)), int(exponent or 0) - len(fraction)
    return (digits * 10.0**power if power >= 0 else digits / 10.0**-power) == abs(value)


def bound_before(value: int, *, descending: bool) -> int:
    """Return the last integer before a value at which a range can end, or the value itself.

    Before the greatest integers in descending order it is 2^63, which Qdrant does not have.
    """
    bound, direction = float(value), math.inf if descending else -math.inf
    if (bound < value) if descending else (bound > value):
        bound = math.nextafter(bound, direction)
    while not is_bound(int(bound)):
        bound = math.nextafter(bound, direction)
    return int(bound)
