"""What became of a job's points, exactly: every point is stored or rejected."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from embedder.errors import Cancelled, NotFound, WorkerError
from qdrant_sink.conformance import Refusal


@dataclass(frozen=True, slots=True)
class Rejection:
    """One point that is not stored.

    Attributes:
        index: position within the job.
        cause: refusal of conformance, or the error of the model, the store or the job.
    """

    index: int
    cause: Refusal | WorkerError

    @property
    def message(self) -> str:
        """What is wrong, for the caller."""
        return self.cause.message


@dataclass(frozen=True, slots=True)
class WriteReport:
    """What became of a job's points.

    Attributes:
        indices: positions of the points that are in the collection now, ascending; merged duplicates have their own.
        rejected: all other points, by ascending index.
        skipped: number of points in `indices` that existed before and were left untouched (insert_only).
        failure: why the store accepts nothing more, or the error that the job was cancelled with; None otherwise.
    """

    indices: tuple[int, ...]
    rejected: tuple[Rejection, ...]
    skipped: int = 0
    failure: WorkerError | None = None

    @property
    def stored(self) -> int:
        """Number of points that are in the collection now."""
        return len(self.indices)

    @property
    def submitted(self) -> int:
        """Number of all points."""
        return len(self.indices) + len(self.rejected)

    def completed(self, submitted: int, *, skipped: Iterable[int] = ()) -> WriteReport:
        """The report of a whole job, of which the writer was handed only some points.

        Points that this report does not name are rejected for the reason that ended the job.

        Args:
            submitted: number of points in the job; their indices count from 0.
            skipped: indices of points that existed before. They are gone if the collection has vanished.
        """
        kept: set[int] = set() if isinstance(self.failure, NotFound) else set(skipped)
        done = {rejection.index for rejection in self.rejected}.union(self.indices, kept)
        cause = self.failure or Cancelled("the job was cancelled before it was sent")
        unsent = [Rejection(index, cause) for index in range(submitted) if index not in done]
        return replace(
            self,
            indices=tuple(sorted(kept.union(self.indices))),
            rejected=_ordered([*self.rejected, *unsent]),
            skipped=len(kept),
        )


class Tally:
    """Counts points as they are acknowledged or rejected."""

    def __init__(self) -> None:
        self._stored: list[int] = []
        self._rejected: list[Rejection] = []

    @property
    def any_stored(self) -> bool:
        """Whether at least one point is stored."""
        return bool(self._stored)

    @property
    def done(self) -> int:
        """Number of points that are acknowledged or rejected."""
        return len(self._stored) + len(self._rejected)

    def store(self, indices: Sequence[int]) -> None:
        """Points were acknowledged."""
        self._stored += indices

    def reject(self, indices: Sequence[int], cause: Refusal | WorkerError) -> None:
        """Points were rejected."""
        self._rejected += [Rejection(index, cause) for index in indices]

    def lose(self, error: NotFound) -> None:
        """The collection vanished, and with it every point that was acknowledged."""
        self.reject(self._stored, error)
        self._stored.clear()

    def report(self, failure: WorkerError | None) -> WriteReport:
        """The report so far."""
        return WriteReport(tuple(sorted(self._stored)), _ordered(self._rejected), failure=failure)


def _ordered(rejections: Iterable[Rejection]) -> tuple[Rejection, ...]:
    return tuple(sorted(rejections, key=lambda rejection: rejection.index))
