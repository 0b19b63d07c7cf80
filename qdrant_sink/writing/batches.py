"""Collect points into batches of bounded size. This module does no I/O."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qdrant_sink.points import Point

BATCH_MAX_BYTES: Final = 4_000_000
"""Maximum size of an upsert in bytes. As JSON it is about five times as large, within the 32 MiB that REST accepts."""

BATCH_MAX_POINTS: Final = 1000
"""Maximum number of points or ids in one request."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A valid point and the indices in the job that it stands for: its own first, then those of merged duplicates."""

    point: Point
    indices: tuple[int, ...]


class Batches:
    """Collects points until a batch is full. A point that is larger than a batch is sent in a batch of its own.

    Args:
        max_bytes: maximum size of a batch in bytes.
        max_points: maximum number of points in a batch.
    """

    def __init__(self, *, max_bytes: int = BATCH_MAX_BYTES, max_points: int = BATCH_MAX_POINTS) -> None:
        self._max_bytes = max_bytes
        self._max_points = max_points
        self._claims: list[Claim] = []
        self._nbytes = 0

    def add(self, claim: Claim) -> list[list[Claim]]:
        """Add a point. Returns the batches that became full: none, one or two."""
        full = []
        nbytes = claim.point.nbytes
        if self._claims and self._nbytes + nbytes > self._max_bytes:
            full.append(self.flush())
        self._claims.append(claim)
        self._nbytes += nbytes
        if self._nbytes >= self._max_bytes or len(self._claims) >= self._max_points:
            full.append(self.flush())
        return full

    def flush(self) -> list[Claim]:
        """Remove and return the collected points; the list may be empty."""
        batch, self._claims, self._nbytes = self._claims, [], 0
        return batch
