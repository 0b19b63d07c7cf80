"""Report on the points of a collection that is completed: every point is in exactly one of its numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from threading import Lock

from embedder.errors import WorkerError
from qdrant_sink.copying import NAMED_MAX, UnfinishedPoint


@dataclass(frozen=True, slots=True)
class CompletionReport:
    """What became of the points of a collection. The sum of the first six numbers is `points`.

    Attributes:
        collection: the collection that was completed: the given one, or the new one that it was copied into.
        already: points that had all vectors at the start.
        completed: points that got the vectors that they lacked.
        without_text: points without a text under the text key.
        without_weights: points whose text has no lexical weights, such as an empty one. They have no sparse vector,
            which could never be found, and all others.
        rejected: points whose text cannot be embedded or whose vectors the store refuses.
        vanished: points that were deleted in the meantime.
        truncated: completed points whose text is longer than the model's limit.
        pending: points that were written in the meantime and still lack vectors.
        copied: points that were copied into the new collection; None if the vectors were added in place.
        uncopied: points that the new collection lacks.
        alias: alias that leads to the new collection; None if none was set.
        waits_for: other loads into the new collection because of which the alias has not moved, in words.
        unfinished: the first points without a text, rejected or not copied.
        failure: error that ended the run early; None if it came to its end.
    """

    collection: str
    already: int = 0
    completed: int = 0
    without_text: int = 0
    without_weights: int = 0
    rejected: int = 0
    vanished: int = 0
    truncated: int = 0
    pending: int = 0
    copied: int | None = None
    uncopied: int = 0
    alias: str | None = None
    waits_for: tuple[str, ...] = ()
    unfinished: tuple[UnfinishedPoint, ...] = ()
    failure: WorkerError | None = None

    @property
    def points(self) -> int:
        """Number of points that were met."""
        return self.already + self.completed + self.without_text + self.without_weights + self.rejected + self.vanished

    @property
    def is_complete(self) -> bool:
        """Whether every point has the vectors that its text has, and the run came to its end."""
        left = self.without_text + self.rejected + self.pending + self.uncopied + len(self.waits_for)
        return self.failure is None and not left


class CompletionTally:
    """Counts the points of the passes over a collection. It is thread-safe.

    A pass meets again the points that an earlier one could not complete, so that only the last pass counts them.

    Args:
        already: points that had all vectors at the start.
    """

    def __init__(self, already: int) -> None:
        self._lock = Lock()
        self._already = already
        self._completed = 0
        self._vanished = 0
        self._truncated = 0
        self.begin_pass()

    def begin_pass(self) -> None:
        """Forget the points that the previous pass could not complete."""
        self._without_text = 0
        self._without_weights = 0
        self._rejected = 0
        self._unfinished: list[UnfinishedPoint] = []

    @property
    def left(self) -> int:
        """Number of points of this pass that stay without some of the vectors."""
        with self._lock:
            return self._without_text + self._without_weights + self._rejected

    @property
    def done(self) -> int:
        """Number of points that are complete, or that this pass could not complete."""
        with self._lock:
            return (
                self._already
                + self._completed
                + self._vanished
                + self._without_text
                + self._without_weights
                + (self._rejected)
            )

    def complete(self, points: int, *, truncated: int) -> None:
        """Count points that got their vectors, and those of them whose text was cut."""
        with self._lock:
            self._completed += points
            self._truncated += truncated

    def vanish(self, points: int) -> None:
        """Count points that were deleted."""
        with self._lock:
            self._vanished += points

    def leave_without_weights(self, points: int) -> None:
        """Count points whose text has no lexical weights."""
        with self._lock:
            self._without_weights += points

    def leave_without_text(self, points: Iterable[UnfinishedPoint]) -> None:
        """Count and name points without a text."""
        with self._lock:
            self._without_text += self._name(points)

    def reject(self, points: Iterable[UnfinishedPoint]) -> None:
        """Count and name points that cannot be completed."""
        with self._lock:
            self._rejected += self._name(points)

    def report(self, collection: str, *, pending: int = 0, failure: WorkerError | None = None) -> CompletionReport:
        """Create the report of all points counted so far."""
        with self._lock:
            return CompletionReport(
                collection,
                already=self._already,
                completed=self._completed,
                without_text=self._without_text,
                without_weights=self._without_weights,
                rejected=self._rejected,
                vanished=self._vanished,
                truncated=self._truncated,
                pending=pending,
                unfinished=tuple(self._unfinished),
                failure=failure,
            )

    def _name(self, points: Iterable[UnfinishedPoint]) -> int:
        count = 0
        for point in points:
            count += 1
            if len(self._unfinished) < NAMED_MAX:
                self._unfinished.append(point)
        return count
