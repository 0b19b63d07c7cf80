"""The account of a load: what became of each line, and whether the collection has it as it was given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from threading import Lock
from typing import Final
from uuid import UUID

from embedder import InvalidRequest, WorkerError
from qdrant_sink import PointId
from service.bulk.line import BadLine, Line, named
from service.bulk.line_index import IndexedLine, LineIndex, LostLine, StoredLine
from service.bulk.rejections import Rejections
from service.bulk.report import LoadReport
from service.operations import IngestReport
from service.wire.errors import code_for, code_of

_INTEGER_BYTES: Final = 8

_FIELDS_OF_LINE: Final = {"texts[0]": "text", "texts": "text"}
"""Names of a line's fields in messages, by their paths in the ingest request of that line alone."""


class Account:
    """Counts what became of the lines of a load. Thread-safe, and blocks for the disk.

    Args:
        report: takes the counts.
        rejections: takes the lines that the collection does not have as they were given.
        scope: name from which ids are derived.
        keeps: whether points that exist are kept (`--insert-only`).
    """

    def __init__(self, report: LoadReport, rejections: Rejections, scope: str, *, keeps: bool) -> None:
        self._report = report
        self._rejections = rejections
        self._scope = scope
        self._keeps = keeps
        self._index = LineIndex(keeps=keeps)
        self._lock = Lock()

    def no_document(self, line: BadLine) -> None:
        """Count a line that is not a document."""
        with self._lock:
            self._report.lines += not line.is_part
        self._rejections.add(line, code_for(InvalidRequest), line.message)

    def refused(self, lines: Sequence[Line], failure: WorkerError) -> None:
        """Count lines of which nothing is stored.

        Args:
            lines: the lines of an ingest.
            failure: the error of the ingest, which is that of the line if it is one.
        """
        with self._lock:
            self._report.lines += len(lines)
        for line in lines:
            self._rejections.add(line, code_of(failure), _for_line(failure.message))

    def ingested(self, lines: Sequence[Line], report: IngestReport, tokens: int) -> None:
        """Count the lines of an ingest. Lines of one point must be counted in the order in which they were stored.

        Args:
            lines: the lines of an ingest.
            report: the report of the ingest.
            tokens: its embedded tokens.

        Raises:
            IndexFullError: the disk is full.
        """
        stored = list(stored_lines(lines, report, self._scope))
        with self._lock:
            self._report.lines += len(lines)
            self._report.stored += report.stored
            self._report.skipped += report.skipped
            self._report.tokens += tokens
        for point in report.rejected:
            self._rejections.add(lines[point.text], code_of(point.cause), point.cause.message, chunk=point.chunk)
        self._index.add(stored)

    def finish(self) -> None:
        """Compare all lines, and name those that the collection does not have as they were given.

        Raises:
            IndexFullError: the disk is full.
        """
        standing = self._index.standing()
        self._report.points, self._report.repeated = standing.points, standing.repeated
        if self._keeps:
            self._report.differing = standing.lost
        else:
            self._report.replaced = standing.lost
        if self._report.lost:
            for lost in self._index.lost():
                self._rejections.lost(
                    lost,
                    "differing" if self._keeps else "replaced",
                    why_lost(lost, "" if lost.other is None else named(lost.other), keeps=self._keeps),
                )

    def close(self) -> None:
        """Delete what is on disk. Idempotent."""
        self._index.close()


def stored_lines(lines: Sequence[Line], report: IngestReport, scope: str) -> Iterator[StoredLine]:
    """The lines of an ingest of which a point is stored or kept.

    Args:
        lines: the lines of an ingest.
        report: the report of the ingest.
        scope: name from which ids are derived.
    """
    for number, (line, points) in enumerate(zip(lines, report.stored_of_texts, strict=True)):
        key, content = line.key(scope), line.content()
        if points and content is not None and isinstance(key, int | UUID):
            where = IndexedLine(line.origin, line.number, line.id is not None)
            yield StoredLine(where, _bytes_of(key), content, points, number in report.differing)


def why_lost(lost: LostLine, other: str, *, keeps: bool) -> str:
    """Why the collection does not have a line as it was given.

    Args:
        lost: the line.
        other: the line of its point that the collection has, for a person.
        keeps: whether points that exist are kept.
    """
    if lost.other is None:
        return "its point exists with another text or payload, and is kept"
    what = f"{'its point is kept as given by' if keeps else 'replaced by'} {other}, which has"
    if lost.line.has_id != lost.other.has_id:
        with_id, without = ("it", "the other") if lost.other.has_id else ("this one", "it")
        return f"{what} the same point: {with_id} has the id that is derived from the text of {without}"
    shared = "id, and another text or payload" if lost.line.has_id else "text, no id, and another payload"
    return f"{what} the same {shared}"


def point_of(key: bytes) -> PointId:
    """The id of the point of a key of the index."""
    return int.from_bytes(key) if len(key) == _INTEGER_BYTES else UUID(bytes=key)


def _bytes_of(point: PointId) -> bytes:
    return point.to_bytes(_INTEGER_BYTES) if isinstance(point, int) else point.bytes


def _for_line(message: str) -> str:
    """The message of a request with a single line, in terms of the line."""
    for path, name in _FIELDS_OF_LINE.items():
        if message.startswith(path):
            return name + message.removeprefix(path)
    return message
