"""The report of a bulk load."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class LoadReport:
    """The report of a bulk load up to now, counted in points.

    Attributes:
        stored: stored points, including `skipped`.
        skipped: points that existed before and were kept unchanged.
        rejected: rejected points, and lines that are not documents.
        failure: the reason why the load was not finished; None if it was finished.
        alias: whether the alias was set; None without an alias.
        started: start of the load on the monotonic clock, in seconds.
    """

    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    failure: str | None = None
    alias: bool | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def points(self) -> int:
        """Number of stored and rejected points and lines."""
        return self.stored + self.rejected

    @property
    def seconds(self) -> float:
        """Seconds since the start of the load."""
        return time.monotonic() - self.started

    @property
    def status(self) -> int:
        """The exit status: 0 if all points are stored, 1 if not or if the alias is not set, 2 after a failure."""
        return 2 if self.failure is not None else 1 if self.rejected or self.alias is False else 0

    def summary(self, collection: str) -> dict[str, Any]:
        """The summary as JSON values."""
        summary: dict[str, Any] = {
            "collection": collection,
            "submitted": self.points,
            "stored": self.stored,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "seconds": round(self.seconds, 1),
        }
        if self.alias is not None:
            summary["alias"] = self.alias
        return summary if self.failure is None else {**summary, "error": self.failure}
