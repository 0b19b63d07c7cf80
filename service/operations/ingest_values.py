"""What an ingest is asked for, and what it says: request, progress, result, report and failure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from embedder import Kind, Result, WorkerError
from qdrant_sink import PointId, Refusal
from service.operations.embed import Role, check_numbers


@dataclass(frozen=True, slots=True)
class Chunking:
    """How texts are cut into points.

    Attributes:
        max_tokens: most tokens of a chunk, special tokens included.
        overlap: tokens that a chunk repeats of the one before, at most half of `max_tokens`.

    Raises:
        ValueError: a number is out of these limits.
    """

    max_tokens: int
    overlap: int

    def __post_init__(self) -> None:
        """Check the limits."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.overlap <= self.max_tokens // 2:
            raise ValueError(
                f"overlap must be from 0 to half of max_tokens ({self.max_tokens // 2}), got {self.overlap}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class IngestRequest:
    """Texts to embed and to store.

    Attributes:
        texts: the documents, at least one.
        vectors: the kinds to compute and to store, at least one.
        role: see `service.operations.embed.Role`.
        max_length: tokens after which a text that is not cut into chunks is truncated; None for the limit of the role.
        batch_size: most of these texts in one batch of the model; 0 leaves it to the token budget.
        return_vectors: whether the result carries the vectors; not with `chunk`.
        collection: by name; None for the default.
        ids: one per text, as the caller gave it; None derives them from the texts.
        id_scope: what derived ids belong to; None for the name of the collection.
        payloads: one JSON object per text; None for empty ones.
        text_key: where the plain layout keeps the text.
        insert_only: leave points that exist untouched, and do not embed them.
        chunk: cut each text into chunks, a point each; None makes each text one point.
        pool_colbert: pool ColBERT matrices with more rows than Qdrant takes; otherwise their points are refused.
        path: what errors put in front of the names of the fields from `collection` on.

    Raises:
        ValueError: `texts` or `vectors` is empty, `ids` or `payloads` has another length than `texts`, a number is out
            of its limits, or `return_vectors` comes with `chunk`.
    """

    texts: Sequence[str]
    vectors: Sequence[Kind]
    role: Role = "passage"
    max_length: int | None = None
    batch_size: int = 0
    return_vectors: bool = False
    collection: str | None = None
    ids: Sequence[int | str] | None = None
    id_scope: str | None = None
    payloads: Sequence[Mapping[str, Any]] | None = None
    text_key: str = "text"
    insert_only: bool = False
    chunk: Chunking | None = None
    pool_colbert: bool = False
    path: str = ""

    def __post_init__(self) -> None:
        """Check what a caller in Python could break; the wire has checked it with better words."""
        if not self.texts:
            raise ValueError("texts must have at least one text")
        if not self.vectors:
            raise ValueError("vectors must have at least one kind")
        for name, values in (("ids", self.ids), ("payloads", self.payloads)):
            if values is not None and len(values) != len(self.texts):
                raise ValueError(f"{name} must have one item per text ({len(self.texts)}), got {len(values)}")
        check_numbers(self.max_length, batch_size=self.batch_size)
        if self.return_vectors and self.chunk is not None:
            raise ValueError("return_vectors excludes chunk: a text in chunks has no vectors of its own")


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """How far an ingest has come.

    Attributes:
        done: points that are acknowledged or rejected.
        points: all points of the job.
    """

    done: int
    points: int


@dataclass(frozen=True, slots=True, eq=False)
class IngestedText:
    """What became of one text in the model.

    Attributes:
        id: of its point or, where it was cut into chunks, of the document.
        tokens: of all its points that the model could embed.
        truncated: whether some of it was left out to keep to the limit.
        chunks: number of points that it was cut into; None where it is one point.
        result: its embedding, where vectors are returned; why the model made none, where it failed; None otherwise.
    """

    id: PointId
    tokens: int
    truncated: bool
    chunks: int | None = None
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class RejectedPoint:
    """One point that is not stored, and why.

    Attributes:
        text: index of its text.
        chunk: index of the chunk in the text; None where the text is one point.
        cause: what conformance refused, or the error of the model or the store.
    """

    text: int
    chunk: int | None
    cause: Refusal | WorkerError


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of every point; `stored + len(rejected)` is the number of points.

    Attributes:
        collection: by the name that the request has.
        stored: points that are in the collection now; includes `skipped` and merged duplicates.
        skipped: of these, points that were there already and were left untouched.
        rejected: all others, in the order of the texts.
    """

    collection: str
    stored: int
    skipped: int
    rejected: tuple[RejectedPoint, ...]


@dataclass(frozen=True, slots=True, eq=False)
class IngestResult:
    """What became of each text and of each point.

    Attributes:
        texts: in the order of the request.
        tokens: tokens that were embedded.
        report: of the points.
    """

    texts: Sequence[IngestedText]
    tokens: int
    report: IngestReport


class IngestFailed(WorkerError):
    """The ingest as a whole failed; it is retryable if its cause is.

    Attributes:
        cause: why.
        report: what became of every point nevertheless.
    """

    def __init__(self, cause: WorkerError, report: IngestReport) -> None:
        super().__init__(cause.message)
        self.retryable = cause.retryable
        self.cause = cause
        self.report = report
