"""Counts of the clients that the server refuses, and one log line a minute for each reason."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from service.metrics import Metrics

log = logging.getLogger(__name__)

LOG_INTERVAL_S: Final = 60.0
"""Minimum time between two log lines of one reason."""

Reason = Literal[
    "connections",
    "connections_per_peer",
    "descriptors",
    "invalid_http",
    "head_too_large",
    "head_timeout",
    "body_timeout",
    "answer_timeout",
    "target_too_long",
]
"""Why a client is refused or cut."""

_WORDS: Final[Mapping[Reason, str]] = {
    "connections": "all connections are in use (HTTP_MAX_CONNECTIONS)",
    "connections_per_peer": "all connections of one address are in use (HTTP_MAX_CONNECTIONS_PER_PEER)",
    "descriptors": "the process may open no more descriptors (ulimit -n)",
    "invalid_http": "what they sent is not HTTP",
    "head_too_large": "the head of a request is too large",
    "head_timeout": "the head of a request took too long",
    "body_timeout": "the body of a request came too slowly",
    "answer_timeout": "an answer was read too slowly",
    "target_too_long": "the target of a request is too long",
}


@dataclass(slots=True)
class _Tally:
    """The refusals for one reason that no line has named.

    Attributes:
        count: their number.
        logged_at: the time of the last line.
    """

    count: int
    logged_at: float


class Refusals:
    """Counts refused clients by reason.

    Args:
        metrics: returns the metrics; None while the model loads.
    """

    def __init__(self, metrics: Callable[[], Metrics | None]) -> None:
        self._metrics = metrics
        self._tallies: dict[Reason, _Tally] = {}

    def add(self, reason: Reason, now: float) -> None:
        """Count a refused client. The first one is logged; those of the next minute are one line after it."""
        metrics = self._metrics()
        if metrics is not None:
            metrics.refused(reason)
        tally = self._tallies.setdefault(reason, _Tally(0, -math.inf))
        tally.count += 1
        self._report(reason, tally, now)

    def report(self, now: float) -> None:
        """Log the refusals that no line has named, if the last line of their reason is a minute old."""
        for reason, tally in self._tallies.items():
            self._report(reason, tally, now)

    def _report(self, reason: Reason, tally: _Tally, now: float) -> None:
        if tally.count and now - tally.logged_at >= LOG_INTERVAL_S:
            log.warning("refused clients: %s; %d since the last line", _WORDS[reason], tally.count)
            tally.count, tally.logged_at = 0, now
