"""Reports of a job: every point is either stored or rejected."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from embedder.errors import Cancelled, WorkerError
from qdrant_sink.conformance import Refusal


@dataclass(frozen=True, slots=True)
class Rejection:
    """A point that is not stored.

    Attributes:
        index: index of the point in the job.
        cause: refusal by conformance, or error of the model, the store or the job.
    """

    index: int
    cause: Refusal | WorkerError

    @property
    def message(self) -> str:
        """Error message for the caller."""
        return self.cause.message


@dataclass(frozen=True, slots=True)
class WriteReport:
    """Report on the points of a job.

    Attributes:
        indices: indices of the points that are in the collection, ascending, including those of merged duplicates.
        rejected: all other points, by ascending index.
        skipped: number of points in `indices` that already existed and were left unchanged (insert_only).
        failure: error that ended the job early, from the store or from a cancellation; None otherwise.
    """

    indices: tuple[int, ...]
    rejected: tuple[Rejection, ...]
    skipped: int = 0
    failure: WorkerError | None = None

    @property
    def stored(self) -> int:
        """Number of points that are in the collection."""
        return len(self.indices)

    @property
    def submitted(self) -> int:
        """Number of all points of the report."""
        return len(self.indices) + len(self.rejected)

    def completed(self, submitted: int, *, skipped: Iterable[int] = ()) -> WriteReport:
        """Complete the report of a job if the writer received only some of its points.

        Points that are missing from this report are rejected with the error that ended the job.

        Args:
            submitted: number of points in the job. Indices start at 0.
            skipped: indices of points that already existed.
        """
        existing = set(skipped)
        reported = {rejection.index for rejection in self.rejected}.union(self.indices, existing)
        cause = self.failure or Cancelled("the job was cancelled before the point was sent")
        unsent = [Rejection(index, cause) for index in range(submitted) if index not in reported]
        return replace(
            self,
            indices=tuple(sorted(existing.union(self.indices))),
            rejected=_ordered([*self.rejected, *unsent]),
            skipped=len(existing),
        )

    def revoked(
        self, causes: Mapping[int, WorkerError], failure: WorkerError | None = None, *, skipped: Iterable[int] = ()
    ) -> WriteReport:
        """Reject points that were stored and are not in the collection any more.

        Args:
            causes: reason for each of these points by its index; other indices are ignored.
            skipped: indices of the points that `skipped` counts.
            failure: error that ended the job; None keeps the present one.
        """
        lost = [index for index in self.indices if index in causes]
        return replace(
            self,
            indices=tuple(index for index in self.indices if index not in causes),
            rejected=_ordered([*self.rejected, *(Rejection(index, causes[index]) for index in lost)]),
            skipped=self.skipped - sum(index in causes for index in skipped),
            failure=self.failure if failure is None else failure,
        )


class Tally:
    """Counts the points that are acknowledged or rejected."""

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
        """Record points that were acknowledged."""
        self._stored += indices

    def reject(self, indices: Sequence[int], cause: Refusal | WorkerError) -> None:
        """Record points that were rejected."""
        self._rejected += [Rejection(index, cause) for index in indices]

    def report(self, failure: WorkerError | None) -> WriteReport:
        """Create the report of all points recorded so far."""
        return WriteReport(tuple(sorted(self._stored)), _ordered(self._rejected), failure=failure)


def _ordered(rejections: Iterable[Rejection]) -> tuple[Rejection, ...]:
    return tuple(sorted(rejections, key=lambda rejection: rejection.index))
