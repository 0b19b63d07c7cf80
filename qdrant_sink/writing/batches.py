"""Points gathered into batches of bounded size; pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from qdrant_sink.points import Point

BATCH_MAX_BYTES: Final = 4_000_000
"""Size of one upsert in bytes. Small enough for the 32 MiB that REST accepts after JSON has grown it about fivefold."""

BATCH_MAX_POINTS: Final = 1000
"""Points, or ids, in one request."""


@dataclass(frozen=True, slots=True, eq=False)
class Claim:
    """A proven point and the positions in the job that it stands for: its own first, then those merged into it."""

    point: Point
    indices: tuple[int, ...]


class Batches:
    """Gathers points until a batch is full. A point that is larger than a batch is a batch of its own.

    Args:
        max_bytes: of a batch.
        max_points: in a batch.
    """

    def __init__(self, *, max_bytes: int = BATCH_MAX_BYTES, max_points: int = BATCH_MAX_POINTS) -> None:
        self._max_bytes = max_bytes
        self._max_points = max_points
        self._gathered: list[Claim] = []
        self._nbytes = 0

    def add(self, claim: Claim) -> list[list[Claim]]:
        """Gather a point; returns the batches that are full now: none, one or two."""
        full = []
        nbytes = claim.point.nbytes
        if self._gathered and self._nbytes + nbytes > self._max_bytes:
            full.append(self.flush())
        self._gathered.append(claim)
        self._nbytes += nbytes
        if self._nbytes >= self._max_bytes or len(self._gathered) >= self._max_points:
            full.append(self.flush())
        return full

    def flush(self) -> list[Claim]:
        """The gathered points; may be empty."""
        batch, self._gathered, self._nbytes = self._gathered, [], 0
        return batch
