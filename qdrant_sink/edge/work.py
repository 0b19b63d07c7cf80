"""How long a call holds the interpreter lock: estimates of searches and of filters, made before the call.

The engine holds the lock in every call, so that nothing else of the process runs meanwhile. A call that is estimated to
take long is split (see `edge.searches` and `edge.slices`). Whether a search is split depends on the request and the
number of points alone, so that all pages of it are computed in the same way; how finely it is split depends on the time
that the comparisons of earlier calls took. What a filter selects does not depend on how it is evaluated, and what it
takes depends on the payloads, so that its time is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from qdrant_sink.filters import ParsedFilter
from qdrant_sink.searching.plan import Nearest

CALL_S: Final = 0.1
"""Time in seconds that a call should take at most."""

SPLIT_S: Final = 0.25
"""Estimated time in seconds beyond which a call is split. Usual searches are below it."""

PAIR_NUMBER_S: Final = 1e-8
"""Estimated seconds per number of a row to compare a query row with a passage of 100 rows.

An AMD EPYC of 2024 multiplies 10^10 numbers per second: 10 us for a row of 1024 numbers.
"""

FIRST_PLANS: Final = 4
"""Number of searches in the first call of a batch, after which the time of one is known."""

CONDITION_S: Final = 1e-6
"""Estimated seconds to compare a point with a condition, without a payload index."""

TEXT_CHARACTER_S: Final = 2.5e-8
"""Estimated seconds per point and character of a condition on words, without a text index."""

POLYGON_POINT_S: Final = 3e-9
"""Estimated seconds per point and vertex of a polygon."""

FILTER_RATES_MAX: Final = 256
"""Maximum number of sets of payload keys of a collection whose filters' times are remembered."""


class PairRate:
    """The time of comparing a query row with the ColBERT rows of a passage in one collection."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def seconds(self, row_numbers: int) -> float:
        """Return the time per pair of a query row and a passage in seconds, estimated until it was measured."""
        return row_numbers * PAIR_NUMBER_S if self._seconds is None else self._seconds

    def observe(self, pairs: int, seconds: float) -> None:
        """Record the time of a call that did little else than such comparisons."""
        if pairs:
            measured = seconds / pairs
            self._seconds = measured if self._seconds is None else (self._seconds + measured) / 2


def pair_s(query: Nearest) -> float:
    """Return the estimated seconds to compare a row of a ColBERT query with a passage."""
    return row_numbers(query) * PAIR_NUMBER_S


def row_numbers(query: Nearest) -> int:
    """Return the number of components of a row of a ColBERT query."""
    return query.numbers // query.rows


class FilterRates:
    """The time of comparing a point of one collection with filters, by the keys that they look at."""

    def __init__(self) -> None:
        self._factors: dict[frozenset[str], float] = {}  # measured by estimated time; most recent last

    def knows(self, where: ParsedFilter) -> bool:
        """Whether a filter on the same keys was measured, or it looks at no payload."""
        keys = where.converted(filter_keys)
        return not keys or keys in self._factors

    def seconds(self, where: ParsedFilter) -> float:
        """Return the seconds per point, estimated until a filter on the same keys was measured."""
        return where.converted(filter_point_s) * self._factors.get(where.converted(filter_keys), 1.0)

    def observe(self, where: ParsedFilter, points: float, seconds: float) -> None:
        """Record the time of a call that compared so many points."""
        key = where.converted(filter_keys)
        if not points or not key:
            return
        measured = seconds / (points * where.converted(filter_point_s))
        previous = self._factors.pop(key, measured)
        self._factors[key] = measured if measured > previous else (previous + measured) / 2
        if len(self._factors) > FILTER_RATES_MAX:
            del self._factors[next(iter(self._factors))]


def filter_keys(where: ParsedFilter) -> frozenset[str]:
    """Return the payload keys of a filter, each with the kinds of its conditions."""
    return frozenset(_keys(where, ""))


def _keys(part: Mapping[str, Any], path: str) -> Iterator[str]:
    if "key" in part:
        kinds = (f"{name}.{','.join(part[name])}" if name == "match" else name for name in part if name != "key")
        yield f"{path}{part['key']} {' '.join(kinds)}"
        return
    yield from (f"{path}{part[name]['key']} {name}" for name in ("is_empty", "is_null") if name in part)
    nested = part.get("nested")
    if nested is not None:
        yield from _keys(nested["filter"], f"{path}{nested['key']} ")
    for name in ("must", "should", "must_not"):
        for condition in part.get(name, ()):
            yield from _keys(condition, path)
    for condition in part.get("min_should", {}).get("conditions", ()):
        yield from _keys(condition, path)


def filter_point_s(where: ParsedFilter) -> float:
    """Return the estimated seconds to compare a point with a filter, whose payload is small."""
    return _condition_s(where)


def _condition_s(part: Mapping[str, Any]) -> float:
    if "key" not in part:
        nested = part.get("nested")
        if nested is not None:
            return _condition_s(nested["filter"])
        clauses = [part.get(name, ()) for name in ("must", "should", "must_not")]
        clauses.append(part.get("min_should", {}).get("conditions", ()))
        return CONDITION_S + sum(_condition_s(condition) for conditions in clauses for condition in conditions)
    words = sum(len(value) for name, value in part.get("match", {}).items() if name in ("text", "text_any", "phrase"))
    polygon = part.get("geo_polygon", {})
    rings = [polygon["exterior"], *polygon.get("interiors", ())] if polygon else []
    points = sum(len(ring["points"]) for ring in rings)
    return CONDITION_S + words * TEXT_CHARACTER_S + points * POLYGON_POINT_S
