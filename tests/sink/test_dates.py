"""Dates of filters are read in every form that Qdrant reads, with the same meaning."""

from __future__ import annotations

import pytest
import qdrant_edge as edge
from hypothesis import example, given
from hypothesis import strategies as st

from qdrant_sink.dates import parse_date


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2024-05-01", "2024-05-01T00:00:00+00:00"),
        ("2024-5-1", "2024-05-01T00:00:00+00:00"),
        ("2024-05-01T12:30", "2024-05-01T12:30:00+00:00"),
        ("2024-05-01T12:30Z", "2024-05-01T12:30:00+00:00"),
        ("2024-05-01 12:30:15", "2024-05-01T12:30:15+00:00"),
        ("2024-05-01t12:30:15z", "2024-05-01T12:30:15+00:00"),
        ("2024-05-01T12:30:15.1234567Z", "2024-05-01T12:30:15.123456+00:00"),
        ("2024-05-01T12:30:15.123456789Z", "2024-05-01T12:30:15.123456+00:00"),
        ("2024-05-01T12:30:15.5+00", "2024-05-01T12:30:15.500000+00:00"),
        ("2024-05-01T12:30:15-0130", "2024-05-01T14:00:15+00:00"),
        ("2024-05-01 12:30:15 UTC", "2024-05-01T12:30:15+00:00"),
        ("2024-05-01T12:30:15\N{MINUS SIGN}01:00", "2024-05-01T13:30:15+00:00"),
        ("2024-12-31T23:59:60Z", "2025-01-01T00:00:00+00:00"),
        ("+2024-05-01", "2024-05-01T00:00:00+00:00"),
    ],
)
def test_a_date_is_read_in_every_form(text: str, expected: str) -> None:
    """Each form means the same time in UTC, to microseconds."""
    assert parse_date(text).isoformat() == expected
    assert parse_date(expected).isoformat() == expected


_blank = st.sampled_from(["", "", "", " ", "  "])
_two = st.integers(0, 61).map(lambda n: f"{n:02}") | st.integers(0, 61).map(str)
_zone = st.sampled_from(["", "Z", "z", "UTC", "utc", "+00", "-0130", "+05:30", "\N{MINUS SIGN}0100", "+24:00", "+1"])
_clock = st.tuples(
    st.sampled_from(["T", "t", " ", ""]),
    _blank,
    _two,
    st.just(":"),
    _two,
    st.sampled_from([":", ""]),
    _two,
    st.sampled_from(["", ".", ".5", ".1234567", ".123456789012"]),
    _blank,
    _zone,
    _blank,
).map("".join)
_day = st.tuples(
    _blank,
    st.sampled_from(["2024", "1", "0999", "+2023", "-1", "0"]),
    _blank,
    st.just("-"),
    _blank,
    _two,
    st.just("-"),
    _two,
).map("".join)


@given(st.tuples(_day, _clock | st.just("")).map("".join) | st.text("0123456789-:.TtZz +U", max_size=30))
@example("2024-01-0112:30")
def test_no_date_of_the_engine_is_refused(text: str) -> None:
    """Every date of the years 1 to 9999 that the engine reads is read here, as the same time."""
    try:
        read = edge.RangeDateTime(gte=text).gte
    except ValueError:
        return
    if str(read).startswith(("+", "-", "0000")):  # years beyond those of Python's and the client's dates
        return
    if ":60" in str(read):  # the engine shows a leap second as such, and compares it as the next second
        parse_date(text)
        return
    assert edge.RangeDateTime(gte=parse_date(text).isoformat()).gte == read
