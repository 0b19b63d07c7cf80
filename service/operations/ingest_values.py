"""The values of an ingest: request, progress, result, report and failure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from embedder import Kind, Result, WorkerError
from qdrant_sink import PointId, Refusal, Taken
from service.operations.embed import Role, check_numbers


@dataclass(frozen=True, slots=True)
class Chunking:
    """The chunking of texts into points.

    Attributes:
        max_tokens: maximum tokens of a chunk, special tokens included.
        overlap: tokens that a chunk repeats of the previous one, at most half of `max_tokens`.

    Raises:
        ValueError: a number is out of range.
    """

    max_tokens: int
    overlap: int

    def __post_init__(self) -> None:
        """Validate the numbers."""
        if self.max_tokens < 1:
            raise ValueError(f"max_tokens must be at least 1, got {self.max_tokens}")
        if not 0 <= self.overlap <= self.max_tokens // 2:
            raise ValueError(
                f"overlap must be from 0 to half of max_tokens ({self.max_tokens // 2}), got {self.overlap}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class IngestRequest:
    """Texts to embed and store.

    Attributes:
        texts: the documents, at least one.
        vectors: the kinds of vectors to compute and store; empty for all kinds of the collection.
        role: the role of the texts; see `service.operations.embed.Role`.
        max_length: tokens beyond which a text without chunking is truncated; None for the limit of the role.
        batch_size: maximum number of these texts in one batch of the model; 0 for no limit but the token budget.
        return_vectors: whether the result contains the vectors; not with `chunk`.
        collection: name of the collection; None for the default.
        ids: one id per text, as the caller gave it; None derives the id from the text. An invalid id or payload
            rejects the points of its text alone.
        id_scope: name from which ids are derived; None for the name of the collection.
        payloads: one JSON object per text, or None for an empty payload; None for empty payloads.
        text_key: key of the text in a plain payload; None for that of the collection.
        insert_only: keep existing points unchanged, and do not embed them.
        compare_kept: with `insert_only`, read the payloads of the points that are kept and report the texts for which
            another text or payload is stored.
        chunk: chunking of each text into points; None for one point per text.
        pool_colbert: pool ColBERT matrices with more rows than Qdrant accepts; otherwise their points are rejected.
        path: prefix in errors for the fields from `collection` on.

    Raises:
        ValueError: `texts` is empty, `ids` or `payloads` has another length than `texts`, a number is out
            of range, or `return_vectors` is combined with `chunk`.
    """

    texts: Sequence[str]
    vectors: Sequence[Kind] = ()
    role: Role = "passage"
    max_length: int | None = None
    batch_size: int = 0
    return_vectors: bool = False
    collection: str | None = None
    ids: Sequence[object] | None = None
    id_scope: str | None = None
    payloads: Sequence[object] | None = None
    text_key: str | None = None
    insert_only: bool = False
    compare_kept: bool = False
    chunk: Chunking | None = None
    pool_colbert: bool = False
    path: str = ""

    def __post_init__(self) -> None:
        """Validate for callers in Python; requests in JSON are validated before, with better messages."""
        if not self.texts:
            raise ValueError("texts must have at least 1 item, got 0")
        for name, values in (("ids", self.ids), ("payloads", self.payloads)):
            if values is not None and len(values) != len(self.texts):
                raise ValueError(f"{name} must have one item per text ({len(self.texts)}), got {len(values)}")
        check_numbers(self.max_length, batch_size=self.batch_size)
        if self.return_vectors and self.chunk is not None:
            raise ValueError(
                "return_vectors must be False with chunk, got True: a text in chunks has no vectors of its own"
            )


@dataclass(frozen=True, slots=True)
class IngestProgress:
    """The progress of an ingest.

    Attributes:
        done: number of points that are acknowledged or rejected.
        points: number of all points of the job.
    """

    done: int
    points: int


@dataclass(frozen=True, slots=True, eq=False)
class IngestedText:
    """The embedding result of one text.

    Attributes:
        id: id of its point or, with chunking, of the document; None if the caller's id is invalid.
        tokens: number of tokens of all its embedded points.
        truncated: whether the text was truncated.
        chunks: number of its chunks; None without chunking.
        result: the embedding if vectors are returned, the failure if the model failed, otherwise None.
    """

    id: PointId | None
    tokens: int
    truncated: bool
    chunks: int | None = None
    result: Result | None = None


@dataclass(frozen=True, slots=True)
class RejectedPoint:
    """A point that is not stored, and the reason.

    Attributes:
        text: index of its text.
        chunk: index of the chunk in the text; None without chunking.
        cause: the result of validation, or the error of the model or the store.
    """

    text: int
    chunk: int | None
    cause: Refusal | WorkerError


@dataclass(frozen=True, slots=True)
class IngestReport:
    """The report on every point; `stored + len(rejected)` is the number of points.

    Attributes:
        collection: name of the collection in the request.
        stored: number of points that are now in the collection, including `skipped` and merged duplicates.
        skipped: number of points that existed and were kept unchanged.
        rejected: all other points, in the order of the texts.
        taken: what was taken from the collection rather than from the config.
        stored_of_texts: number of the stored points of each text, in the order of the texts.
        differing: indices of the texts for which points with another text or payload are kept; only with
            `compare_kept`.
    """

    collection: str
    stored: int
    skipped: int
    rejected: tuple[RejectedPoint, ...]
    taken: Taken = field(default_factory=Taken)
    stored_of_texts: tuple[int, ...] = ()
    differing: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True, eq=False)
class IngestResult:
    """The results of all texts and the report on all points.

    Attributes:
        texts: the result of each text, in the order of the request.
        tokens: number of embedded tokens.
        report: the report on the points.
    """

    texts: Sequence[IngestedText]
    tokens: int
    report: IngestReport


class IngestFailed(WorkerError):
    """The ingest failed as a whole. It is retryable if its cause is.

    Attributes:
        cause: the error that ended the ingest.
        report: the report on every point.
    """

    def __init__(self, cause: WorkerError, report: IngestReport) -> None:
        super().__init__(cause.message)
        self.retryable = cause.retryable
        self.cause = cause
        self.report = report
