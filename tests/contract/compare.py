"""The difference between two answers, exact except for numbers within a tolerance and hits of equal score.

Pure: JSON values in, lines of text out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

Json = dict[str, Any]

VALUE_CHARACTERS_MAX: Final = 80
"""Maximum length of a value in a line of the differences, in characters."""

_SCORES: Final = frozenset({"score", "fusion"})
"""Keys whose numbers a store computes."""


@dataclass(frozen=True)
class Tolerance:
    """The maximum difference of two equal numbers.

    Attributes:
        numbers: the tolerance for every number with a fraction.
        scores: the tolerance for scores of hits and their parts.
    """

    numbers: float = 0.0
    scores: float = 0.0


EXACT: Final = Tolerance()

STUB: Final = Tolerance(scores=1e-6)
"""The vectors of the stub are exact, and so are inner products and MaxSim. But a fused score and the score of a query
made of stored points are quotients and roots in float32, which compilers round differently in the last inner."""

MINI: Final = Tolerance(numbers=2e-5, scores=2e-5)
"""The model promises this precision in float32."""


def differences(expected: Any, actual: Any, path: str, tolerance: Tolerance = EXACT) -> list[str]:
    """Return the differences, one line each: `search/plain.results[0].hits[2].score: 0.5 -> 0.25`.

    Args:
        expected: the recorded answer.
        actual: the present answer.
        path: the prefix of each line.
        tolerance: the tolerance for numbers.
    """
    return list(_differences(expected, actual, path, tolerance, tolerance.numbers))


def _differences(expected: Any, actual: Any, path: str, tolerance: Tolerance, allowed: float) -> Iterator[str]:
    if isinstance(expected, dict) and isinstance(actual, dict):
        yield from _of_objects(expected, actual, path, tolerance, allowed)
    elif isinstance(expected, list) and isinstance(actual, list):
        yield from _of_lists(expected, actual, path, tolerance, allowed)
    elif isinstance(expected, float) and isinstance(actual, float):
        if not _near(expected, actual, allowed):
            yield f"{path}: {expected!r} -> {actual!r}"
    elif type(expected) is not type(actual) or expected != actual:
        yield f"{path}: {_shown(expected)} -> {_shown(actual)}"


def _of_objects(expected: Json, actual: Json, path: str, tolerance: Tolerance, allowed: float) -> Iterator[str]:
    for key in sorted(expected.keys() | actual.keys()):
        inner = f"{path}.{key}"
        if key not in actual:
            yield f"{inner}: {_shown(expected[key])} -> missing"
        elif key not in expected:
            yield f"{inner}: missing -> {_shown(actual[key])}"
        else:
            within = tolerance.scores if key in _SCORES else allowed
            yield from _differences(expected[key], actual[key], inner, tolerance, within)


def _of_lists(expected: list[Any], actual: list[Any], path: str, tolerance: Tolerance, allowed: float) -> Iterator[str]:
    if len(expected) != len(actual):
        yield f"{path}: {len(expected)} items -> {len(actual)} items"
        return
    if path.endswith(".hits"):
        actual = _in_order(expected, actual, tolerance.scores)
    for index, (before, after) in enumerate(zip(expected, actual, strict=True)):
        yield from _differences(before, after, f"{path}[{index}]", tolerance, allowed)


def _in_order(expected: Sequence[Json], actual: Sequence[Json], within: float) -> list[Json]:
    """Return the actual hits in the expected order, if only hits of equal expected score have changed places."""
    ordered: list[Json] = []
    start = 0
    for end in range(1, len(expected) + 1):
        if end < len(expected) and _near(expected[end - 1]["score"], expected[end]["score"], within):
            continue
        ranks = {hit["id"]: rank for rank, hit in enumerate(expected[start:end])}
        tied = actual[start:end]
        if all(hit.get("id") in ranks for hit in tied):
            tied = sorted(tied, key=lambda hit: ranks[hit["id"]])
        ordered += tied
        start = end
    return ordered


def _near(expected: float, actual: float, within: float) -> bool:
    return expected == actual or abs(expected - actual) <= within * max(1.0, abs(expected))


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}..."
