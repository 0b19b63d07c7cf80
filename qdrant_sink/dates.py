"""Dates of filters, in every form that Qdrant reads."""

from __future__ import annotations

import re
from datetime import MAXYEAR, UTC, datetime, timedelta
from typing import Final

_DATE: Final = re.compile(
    r"""
    \s*(?P<year>[+-][0-9]{1,12}|[0-9]{1,4})\s*-\s*(?P<month>[0-9]{1,2})\s*-\s*(?P<day>[0-9]{1,2})
    (?:
        (?:[Tt]|\s*)\s*(?P<hour>[0-9]{1,2})\s*:\s*(?P<minute>[0-9]{1,2})
        (?:\s*:\s*(?P<second>[0-9]{1,2})(?:\.(?P<fraction>[0-9]+))?)?
        (?:\s*(?:[Zz]|[Uu][Tt][Cc]|(?P<sign>[+\-−])(?P<offset_hours>[0-9]{2})[\s:]*(?P<offset_minutes>[0-9]{2})?))?
    )?
    \s*
    """,  # noqa: RUF001 - the minus sign of ISO 8601 beside the hyphen
    re.VERBOSE,
)
_LEAP_SECOND: Final = 60


def parse_date(text: str) -> datetime:
    """Parse a date of a filter to microseconds in UTC. Further digits are cut, as Qdrant does.

    An RFC 3339 date, in which T and Z may be lower case, T may be a blank and the colon and the minutes of the offset
    may be missing. Without an offset the date is in UTC; the seconds and the whole time may be missing; numbers need no
    leading zeros; and a leap second is the first second of the next minute.

    Raises:
        ValueError: the text is not a date, or the date does not exist or is outside of the years 1 to 9999. The message
            begins with "must".
    """
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("must be a number or an RFC 3339 date such as 2024-05-01T12:00:00Z")
    if not 1 <= int(match["year"]) <= MAXYEAR:
        raise ValueError(f"must be a date of the years 1 to {MAXYEAR}")
    second, sign = int(match["second"] or 0), -1 if match["sign"] in ("-", "−") else 1  # noqa: RUF001
    offset = timedelta(hours=int(match["offset_hours"] or 0), minutes=int(match["offset_minutes"] or 0))
    try:
        if offset >= timedelta(days=1) or int(match["offset_minutes"] or 0) >= 60:
            raise ValueError("offset out of range")
        date = datetime(
            int(match["year"]),
            int(match["month"]),
            int(match["day"]),
            int(match["hour"] or 0),
            int(match["minute"] or 0),
            second - (second == _LEAP_SECOND),
            int((match["fraction"] or "")[:6].ljust(6, "0")),
            tzinfo=UTC,
        )
        return date + timedelta(seconds=second == _LEAP_SECOND) - sign * offset
    except ValueError as exc:
        raise ValueError("must be a date that exists in the calendar") from exc
    except OverflowError as exc:
        raise ValueError(f"must be a date of the years 1 to {MAXYEAR} in UTC") from exc
