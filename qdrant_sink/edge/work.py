"""How long a call may hold the interpreter lock, and estimates of searches that are made before the call.

The engine holds the lock in every call, so that nothing else of the process runs meanwhile. A call that is estimated to
take long is split (see `edge.searches` and `edge.slices`). Whether a search is split depends on the request and the
number of points alone, so that all pages of it are computed in the same way; how finely it is split depends on the time
that the comparisons of earlier calls took. What a filter selects does not depend on how it is evaluated, and what it
takes depends on the payloads, so that its time is measured (see `edge.filter_measurement`).
"""

from __future__ import annotations

from typing import Final

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

UNDIVIDED_MAX_S: Final = 2.0
"""Maximum estimated time in seconds of a fusion with a colbert branch, a call that cannot be split."""

POINT_MAX_S: Final = 1.0
"""Maximum estimated time in seconds of the comparison of a filter with one point, a call that cannot be split.

The estimate is a sum over measured conditions: 50 on words in a text of 3 MB took 1.5 s where it said 1.1.
"""


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
