"""What became of rows: counts, and every row that was rejected. Actors and tasks hand it to the driver as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

from embedder import WorkerError
from service.bulk.line import NO_FILE
from service.bulk.line_index import IndexedLine, StoredLine

REJECTS_SCHEMA: Final = pa.schema(
    [
        ("code", pa.string()),
        ("message", pa.string()),
        ("chunk", pa.int64()),
        ("row", pa.string()),
        ("point", pa.string()),
    ]
)
"""Columns of a rejected row: code of the error, message, number of the chunk if only that was rejected, and the row as
JSON with `text`, `id` and `payload`, to correct and to load again. Of a row that another one replaced, the account
keeps no text: it has the id of the `point` in place of the row."""

REJECTS_BLOCK_MAX_ROWS: Final = 1000
"""Maximum rejected rows that are held in memory before they are moved to Ray's object store or to a file."""

_COUNTS: Final = ("rows", "stored", "skipped", "rejected", "tokens")
_STORED_ROWS: Final = pa.list_(
    pa.struct(
        [
            ("key", pa.binary()),
            ("content", pa.binary()),
            ("points", pa.int32()),
            ("differs", pa.bool_()),
            ("has_id", pa.bool_()),
        ]
    )
)
_SCHEMA: Final = pa.schema(
    [
        *((name, pa.int64()) for name in _COUNTS),
        ("failure", pa.string()),
        ("stored_rows", _STORED_ROWS),
        *REJECTS_SCHEMA,
    ]
)


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row, or a chunk of it, that was rejected before it came to the store.

    Attributes:
        row: the row as JSON; None if it cannot be given.
        code: code of the error.
        message: why it is rejected, without quoting it.
        chunk: number of the chunk if only that is rejected.
        is_part: whether it is a chunk of a row that is counted already.
    """

    row: bytes | None
    code: str
    message: str
    chunk: int | None = None
    is_part: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of rows.

    Attributes:
        rows: rows whose fate is known.
        stored: stored points, including `skipped`.
        skipped: points that existed before and were kept unchanged.
        rejected: rejected points, and rows that are not documents.
        tokens: embedded tokens.
        failure: message of the error that ended the load; None for none.
        rejects: the rejected rows, with the fields of `REJECTS_SCHEMA`.
        stored_rows: the stored rows, in the order in which those of one point were stored.
    """

    rows: int = 0
    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    tokens: int = 0
    failure: str | None = None
    rejects: list[Mapping[str, Any]] = field(default_factory=list)
    stored_rows: list[StoredLine] = field(default_factory=list)

    def reject(self, failed: FailedRow) -> None:
        """Add a rejected row, or a rejected chunk of one."""
        self.rejected += 1
        row = None if failed.row is None else failed.row.decode(errors="replace")
        rejected = {"code": failed.code, "message": failed.message, "chunk": failed.chunk, "row": row, "point": None}
        self.rejects.append(rejected)

    @property
    def points(self) -> int:
        """Number of stored and rejected points and rows."""
        return self.stored + self.rejected

    def count(self, other: Outcome) -> None:
        """Add the counts of another outcome, and its failure, without its rows."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failure = self.failure or other.failure

    def table(self) -> pa.Table:
        """The outcome as a table: one row of counts, and one for each rejected row."""
        counts = {
            "failure": self.failure,
            "stored_rows": [
                {
                    "key": row.key,
                    "content": row.content,
                    "points": row.points,
                    "differs": row.differs,
                    "has_id": row.line.has_id,
                }
                for row in self.stored_rows
            ],
            **{name: getattr(self, name) for name in _COUNTS},
        }
        return pa.Table.from_pylist([counts, *self.rejects], schema=_SCHEMA)

    @classmethod
    def of_table(cls, table: pa.Table) -> Outcome:
        """The outcome of one or more tables of `table` below each other."""
        outcome = cls()
        for row in table.to_pylist():
            if row["stored"] is None:
                outcome.rejects.append({name: row[name] for name in REJECTS_SCHEMA.names})
                continue
            for name in _COUNTS:
                setattr(outcome, name, getattr(outcome, name) + row[name])
            outcome.failure = outcome.failure or row["failure"]
            outcome.stored_rows += [
                StoredLine(
                    IndexedLine(NO_FILE, 0, stored["has_id"]),
                    stored["key"],
                    stored["content"],
                    stored["points"],
                    stored["differs"],
                )
                for stored in row["stored_rows"]
            ]
        return outcome


def rejects_table(rejects: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of rejected rows."""
    return pa.Table.from_pylist(list(rejects), schema=REJECTS_SCHEMA)


def failure_of(error: Exception) -> str:
    """The message of an error of Ray. It quotes no row: what is not an error of this project is named by its type."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, WorkerError):
        return cause.message
    return f"Ray could not finish the data set ({type(cause or error).__name__}); its log says more. Run it again"
