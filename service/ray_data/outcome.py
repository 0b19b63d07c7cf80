"""What became of rows: counts, and every row that was rejected. Actors and tasks hand it to the driver as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import pyarrow as pa

REJECTS_SCHEMA: Final = pa.schema(
    [("code", pa.string()), ("message", pa.string()), ("chunk", pa.int64()), ("row", pa.string())]
)
"""Columns of a rejected row: code of the error, message, number of the chunk if only that was rejected, and the row as
JSON with `text`, `id` and `payload`, to correct and to load again."""

_COUNTS: Final = ("stored", "skipped", "rejected", "tokens")
_SCHEMA: Final = pa.schema([*((name, pa.int64()) for name in _COUNTS), ("failure", pa.string()), *REJECTS_SCHEMA])


@dataclass(frozen=True, slots=True)
class FailedRow:
    """A row, or a chunk of it, that was rejected before it came to the store.

    Attributes:
        row: the row as JSON; None if it cannot be given.
        code: code of the error.
        message: why it is rejected, without quoting it.
        chunk: number of the chunk if only that is rejected.
    """

    row: bytes | None
    code: str
    message: str
    chunk: int | None = None


@dataclass(slots=True)
class Outcome:
    """What became of rows.

    Attributes:
        stored: stored points, including `skipped`.
        skipped: points that existed before and were kept unchanged.
        rejected: rejected points, and rows that are not documents.
        tokens: embedded tokens.
        failure: message of the error that ended the load; None for none.
        rejects: the rejected rows, with the fields of `REJECTS_SCHEMA`.
    """

    stored: int = 0
    skipped: int = 0
    rejected: int = 0
    tokens: int = 0
    failure: str | None = None
    rejects: list[Mapping[str, Any]] = field(default_factory=list)

    def reject(self, failed: FailedRow) -> None:
        """Add a rejected row, or a rejected chunk of one."""
        self.rejected += 1
        row = None if failed.row is None else failed.row.decode(errors="replace")
        self.rejects.append({"code": failed.code, "message": failed.message, "chunk": failed.chunk, "row": row})

    @property
    def points(self) -> int:
        """Number of stored and rejected points and rows."""
        return self.stored + self.rejected

    def count(self, other: Outcome) -> None:
        """Add the counts of another outcome, and its failure, without its rejected rows."""
        for name in _COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.failure = self.failure or other.failure

    def table(self) -> pa.Table:
        """The outcome as a table: one row of counts, and one for each rejected row."""
        counts = {"failure": self.failure, **{name: getattr(self, name) for name in _COUNTS}}
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
        return outcome


def rejects_table(rejects: Sequence[Mapping[str, Any]]) -> pa.Table:
    """A table of rejected rows."""
    return pa.Table.from_pylist(list(rejects), schema=REJECTS_SCHEMA)
