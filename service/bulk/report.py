"""The report of a bulk load."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from qdrant_sink.loading import Shard


@dataclass(slots=True)
class LoadReport:
    """The report of a bulk load up to now.

    Attributes:
        lines: lines whose fate is known, documents and others.
        stored: points that were stored, including `skipped`, and those that later lines of the load have replaced.
        skipped: points that existed before and were kept unchanged.
        rejected: rejected points, and lines that are not documents.
        points: points of the stored lines that are in the collection; known at the end.
        repeated: lines that are the same document as another line, which the collection has; known at the end.
        replaced: lines whose point has the text or the payload of a later line; known at the end.
        differing: lines whose point exists with another text or payload and was kept; known at the end.
        allow_lost: whether the collection may lack the replaced and the differing lines.
        tokens: embedded tokens.
        passed: lines that an earlier run has done, of `lines`.
        failure: the reason why the load was not finished; None if it was finished.
        alias: whether the alias was set; None without an alias, and for a shard.
        shard: the part of the input that is loaded; None for the whole.
        read: lines of the whole input, if only a part is loaded.
        started: start of the load on the monotonic clock, in seconds.
        worked_from: time of its first batch on that clock, before which it may have waited for other loads; None for
            its start.
    """

    lines: int = 0
    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    points: int = 0
    repeated: int = 0
    replaced: int = 0
    differing: int = 0
    allow_lost: bool = False
    tokens: int = 0
    passed: int = 0
    failure: str | None = None
    alias: bool | None = None
    shard: Shard | None = None
    read: int = 0
    started: float = field(default_factory=time.monotonic)
    worked_from: float | None = None

    @property
    def submitted(self) -> int:
        """Number of stored and rejected points and lines."""
        return self.stored + self.rejected

    @property
    def lost(self) -> int:
        """Number of the replaced and the differing lines, if the collection should not lack them."""
        return 0 if self.allow_lost else self.replaced + self.differing

    @property
    def seconds(self) -> float:
        """Seconds since the start of the load."""
        return time.monotonic() - self.started

    @property
    def working_seconds(self) -> float:
        """Seconds since the first batch, for rates."""
        return time.monotonic() - (self.started if self.worked_from is None else self.worked_from)

    @property
    def status(self) -> int:
        """The exit status.

        0 if every line is in the collection as it was given, 1 if not or if the alias is not set, 2 after a failure.
        """
        if self.failure is not None:
            return 2
        return 1 if self.rejected or self.lost or self.alias is False else 0

    def summary(self, collection: str) -> dict[str, Any]:
        """The summary as JSON values."""
        summary: dict[str, Any] = {
            "collection": collection,
            "lines": self.lines,
            "submitted": self.submitted,
            "stored": self.stored,
            "skipped": self.skipped,
            "rejected": self.rejected,
            "repeated": self.repeated,
            "replaced": self.replaced,
            "differing": self.differing,
            "points": self.points,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 1),
        }
        if self.shard is not None:
            summary |= {"shard": str(self.shard), "read": self.read}
        if self.alias is not None:
            summary["alias"] = self.alias
        return summary if self.failure is None else {**summary, "error": self.failure}
