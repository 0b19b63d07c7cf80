"""The request, the progress and the report of a re-index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from embedder import Kind, WorkerError
from qdrant_sink.copying import COPY_WORKERS, UnfinishedPoint

ReindexStage = Literal["copy", "index", "check"]

WORKERS_MAX: Final = 64
"""Maximum number of threads that copy points."""


@dataclass(frozen=True, slots=True)
class ReindexRequest:
    """Copy the points of a collection into a new one with another schema.

    Attributes:
        collection: name of the collection, or of an alias, to copy.
        into: name of the new collection. One that exists is taken for an unfinished copy.
        kinds: kinds of vectors of the new collection; empty for those of the config if it names them, or else those
            that the old collection has and those of `embed`.
        embed: kinds that are embedded anew from the stored texts; all others are copied.
        vectors: names of the vectors to copy in the old collection, by kind. Without a name, the vector of a kind is
            the one that has the name of the config, or the only one.
        alias: alias that is moved to the new collection at the end; None for `collection` if that is an alias.
        text_key: payload key of the text in the plain layout; None for that of the old collection.
        pool_colbert: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.
        allow_rejected: whether the alias is moved even if points could not be copied.
        allow_empty: whether the alias is moved even if the new collection has no points and the one to which it leads
            has some.
        prune: whether points are deleted from the new collection that the old one has not, because they were deleted
            there during the copy.
        again: whether points are copied although the alias leads to the new collection already. Points that were
            deleted there since come back.
        workers: number of threads that copy, 1 to `WORKERS_MAX`.

    Raises:
        ValueError: `kinds` or `embed` repeats a kind, or `workers` is out of range.
    """

    collection: str
    into: str
    kinds: Sequence[Kind] = ()
    embed: Sequence[Kind] = ()
    vectors: Mapping[Kind, str] = field(default_factory=dict)
    alias: str | None = None
    text_key: str | None = None
    pool_colbert: bool = False
    allow_rejected: bool = False
    allow_empty: bool = False
    prune: bool = False
    again: bool = False
    workers: int = COPY_WORKERS

    def __post_init__(self) -> None:
        """Validate for callers in Python."""
        for name, kinds in (("kinds", self.kinds), ("embed", self.embed)):
            if len(set(kinds)) < len(kinds):
                raise ValueError(f"{name} must not repeat a kind, got {list(kinds)}")
        if not 1 <= self.workers <= WORKERS_MAX:
            raise ValueError(f"workers must be 1 to {WORKERS_MAX}, got {self.workers}")


@dataclass(frozen=True, slots=True)
class ReindexProgress:
    """The progress of a re-index.

    Attributes:
        stage: `copy`, `index` while the graph is built, or `check` during the passes after that.
        met: number of points of the old collection that the present pass has met.
        points: number of all points of the old collection at the start.
        copied: number of points that were written so far.
    """

    stage: ReindexStage
    met: int
    points: int
    copied: int


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What became of the points of a collection that is copied.

    Attributes:
        source: the collection that was copied.
        collection: the new collection.
        points: number of points of the old collection at the end; None if the run did not come to its end.
        stored: number of points of the new collection at the end; likewise.
        already: points that the new collection had at the start.
        copied: points that were written.
        rejected: points that could not be copied.
        without_text: copied points without a text, which lack the vectors that were to be embedded.
        pruned: points that were deleted from the new collection, because the old one did not have them any more.
        truncated: copied points whose text is longer than the model's limit.
        late: points that were added to the old collection after the last pass, while the alias was moved.
        is_finished: whether the alias led to the new collection at the start, so that nothing was copied.
        alias: alias that leads to the new collection; None if none does.
        previous: collection to which that alias led before; None if it was new or has not been moved by this run.
        alias_kept: whether the alias stays because the new collection has no points and the one to which it leads has
            some.
        waits_for: other loads into the new collection because of which the alias has not moved, in words.
        losses: what the copied vectors are not any more, one sentence for each loss.
        unfinished: the first points that were rejected.
        failure: error that ended the run early; None if it came to its end.
    """

    source: str
    collection: str
    points: int | None = None
    stored: int | None = None
    already: int = 0
    copied: int = 0
    rejected: int = 0
    without_text: int = 0
    pruned: int = 0
    truncated: int = 0
    late: int = 0
    is_finished: bool = False
    alias: str | None = None
    previous: str | None = None
    alias_kept: bool = False
    waits_for: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    unfinished: tuple[UnfinishedPoint, ...] = ()
    failure: WorkerError | None = None

    @property
    def difference(self) -> int:
        """Points of the new collection beyond those that were to be copied; negative if some are missing.

        Points that were deleted from the old collection during the copy are surplus.
        """
        return (self.stored or 0) + self.rejected - (self.points or 0)

    @property
    def is_complete(self) -> bool:
        """Whether the new collection has exactly the points of the old one, with all vectors."""
        if self.is_finished:
            return True
        left = self.rejected + self.without_text + self.late + len(self.waits_for) + self.alias_kept
        return self.failure is None and self.points is not None and not left and not self.difference


@dataclass(frozen=True, slots=True)
class PreviousCollection:
    """The two collections of a finished re-index, with their numbers of points.

    Attributes:
        source: the old collection.
        points: number of its points.
        collection: the new collection.
        stored: number of its points.
    """

    source: str
    points: int
    collection: str
    stored: int
