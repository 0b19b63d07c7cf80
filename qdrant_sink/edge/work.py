"""How long a call holds the interpreter lock: estimates of searches and of filters, made before the call.

The engine holds the lock in every call, so that nothing else of the process runs meanwhile. A call that is estimated to
take long is split (see `edge.searches` and `edge.slices`). Whether a search is split depends on the request and the
number of points alone, so that all pages of it are computed in the same way; how finely it is split depends on the time
that the comparisons of earlier calls took. What a filter selects does not depend on how it is evaluated, and what it
takes depends on the payloads, so that its time is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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

MEASURED_CONDITIONS_MAX: Final = 4
"""Maximum number of conditions of a filter that is compared with a point before its time is known.

A single one that looks for words in a text of 4 MB takes 100 ms and more.
"""

MEASURED_WORDS_MAX_CHARACTERS: Final = 64
"""Maximum length of the words in each of these conditions in characters."""

FILTER_RATES_MAX: Final = 256
"""Maximum number of sets of payload keys of a collection whose filters' times are remembered."""


UNDIVIDED_MAX_S: Final = 2.0
"""Maximum estimated time in seconds of a fusion with a colbert branch, a call that cannot be split."""

POINT_MAX_S: Final = 1.0
"""Maximum estimated time in seconds of the comparison of a filter with one point, a call that cannot be split.

The estimate extrapolates from a few conditions: 50 on words in a text of 3 MB took 1.5 s where it said 1.1.
"""

_CLAUSES: Final = ("must", "should", "must_not")
_WORDS: Final = ("text", "text_any", "phrase")


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
    for name in _CLAUSES:
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
        clauses = [part.get(name, ()) for name in _CLAUSES]
        clauses.append(part.get("min_should", {}).get("conditions", ()))
        return CONDITION_S + sum(_condition_s(condition) for conditions in clauses for condition in conditions)
    words = sum(len(value) for name, value in part.get("match", {}).items() if name in _WORDS)
    polygon = part.get("geo_polygon", {})
    rings = [polygon["exterior"], *polygon.get("interiors", ())] if polygon else []
    points = sum(len(ring["points"]) for ring in rings)
    return CONDITION_S + words * TEXT_CHARACTER_S + points * POLYGON_POINT_S


def beginning(where: ParsedFilter) -> ParsedFilter:
    """Return a filter of the first conditions of this one, with few words; itself if it is as short."""
    first = _Beginning()
    part = first.of(where)
    return ParsedFilter(part) if first.is_shorter else where


class _Beginning:
    """The first conditions of a filter.

    Attributes:
        is_shorter: whether conditions, or words of one, were left out.
    """

    def __init__(self) -> None:
        self.is_shorter = False
        self._left = MEASURED_CONDITIONS_MAX

    def of(self, part: Mapping[str, Any]) -> Mapping[str, Any]:
        if "nested" in part:
            return {"nested": {**part["nested"], "filter": self.of(part["nested"]["filter"])}}
        if part and "min_should" not in part and not any(name in part for name in _CLAUSES):
            self._left -= 1
            return self._with_few_words(part)
        first: dict[str, Any] = {name: self._those(part[name]) for name in _CLAUSES if name in part}
        if "min_should" in part:
            first["min_should"] = {**part["min_should"], "conditions": self._those(part["min_should"]["conditions"])}
        return first

    def _those(self, conditions: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        kept: list[Mapping[str, Any]] = []
        for condition in conditions:
            if not self._left:
                self.is_shorter = True
                break
            kept.append(self.of(condition))
        return kept

    def _with_few_words(self, condition: Mapping[str, Any]) -> Mapping[str, Any]:
        match = condition.get("match", {})
        words = {name: value[:MEASURED_WORDS_MAX_CHARACTERS] for name, value in match.items() if name in _WORDS}
        if all(match[name] == value for name, value in words.items()):
            return condition
        self.is_shorter = True
        return {**condition, "match": {**match, **words}}
