"""What became of a bulk load."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any


@dataclass(slots=True)
class LoadReport:
    """What became of everything so far, counted in points.

    Attributes:
        stored: points that are there; includes `skipped`.
        skipped: points that were there before and were left untouched.
        rejected: points and lines.
        failure: why the load could not be finished; None if it could.
        alias: whether it moved; None where there is none to move.
        started: by the monotonic clock, in seconds.
    """

    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    failure: str | None = None
    alias: bool | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def points(self) -> int:
        """Points and lines that are done."""
        return self.stored + self.rejected

    @property
    def seconds(self) -> float:
        """Since the load was started."""
        return time.monotonic() - self.started

    @property
    def status(self) -> int:
        """The exit status: 0 if every point is stored, 1 if some are not or the alias did not move, 2 on failure."""
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
