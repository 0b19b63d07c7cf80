"""The lines that a load has stored, on disk: which of them the collection has as they were given.

A row is appended for each line, and all rows are sorted by their points once, at the end: the memory does not grow with
the lines, and nothing is looked up while the load runs.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from threading import Lock
from typing import Final

from service.bulk.line import Origin

CACHE_MAX_KIB: Final = 8192
"""Maximum memory of the pages and of the sorted part of the index in KiB. Beyond it they are in temporary files."""

_ORIGINS_MAX = 1000
"""Maximum origins whose rows are remembered. An origin that comes again later has a second row."""

_Row = tuple[bytes, bytes, int, int, int]  # key, content, points, differs, rowid


class IndexFullError(Exception):
    """The index cannot be written. The message says why, and the way out."""


@dataclass(frozen=True, slots=True)
class IndexedLine:
    """A line in the index.

    Attributes:
        origin: the file, and what is counted in it.
        number: number of the line in the file.
        has_id: whether it has an id of its own; otherwise the id is derived from the text.
    """

    origin: Origin
    number: int
    has_id: bool


@dataclass(frozen=True, slots=True)
class StoredLine:
    """A line whose point, or one of whose chunks at least, is stored or kept.

    Attributes:
        line: where it is.
        key: id of its point or document.
        content: digest of what it stores; see `Line.content`.
        points: number of its points that are stored or kept.
        differs: whether a point with another text or payload was kept in its place.
    """

    line: IndexedLine
    key: bytes
    content: bytes
    points: int
    differs: bool = False


@dataclass(frozen=True, slots=True)
class LostLine:
    """A line that the collection does not have as it was given.

    Attributes:
        line: the line.
        other: the line of this load whose text and payload the point has instead; None if it is of no line.
        key: id of its point or document.
    """

    line: IndexedLine
    other: IndexedLine | None
    key: bytes


@dataclass(slots=True)
class Standing:
    """How the lines of the index stand to the points of the collection.

    Attributes:
        points: number of points that the collection has of them.
        repeated: lines that are the same document as another line, which the collection has.
        lost: lines that the collection does not have as they were given.
    """

    points: int = 0
    repeated: int = 0
    lost: int = 0


class LineIndex:
    """The stored lines of a load, in a temporary file if they are many. Thread-safe.

    Args:
        keeps: whether the first line of a point stands (`--insert-only`), rather than the last.

    The methods raise `IndexFullError` if the disk is full.
    """

    def __init__(self, *, keeps: bool) -> None:
        self._keeps = keeps
        self._lock = Lock()
        # A database without a name is in a file that the system deletes even if the process is killed.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            f"PRAGMA cache_size=-{CACHE_MAX_KIB}",
            "CREATE TABLE origins (origin TEXT)",
            "CREATE TABLE lines (key BLOB, content BLOB, points INT, differs INT, origin INT, number INT, has_id INT)",
            "CREATE TABLE lost (line INTEGER PRIMARY KEY, other INT)",
            "BEGIN",
        ):
            self._database.execute(statement)
        self._origins: dict[Origin, int] = {}

    def add(self, lines: Iterable[StoredLine]) -> None:
        """Add lines, those of one point in the order in which they were stored."""
        with self._lock, _disk_errors():
            rows = [
                (
                    line.key,
                    line.content,
                    line.points,
                    line.differs,
                    self._origin(line.line.origin),
                    line.line.number,
                    line.line.has_id,
                )
                for line in lines
            ]
            self._database.executemany("INSERT INTO lines VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

    def _origin(self, origin: Origin) -> int:
        row = self._origins.get(origin)
        if row is None:
            if len(self._origins) >= _ORIGINS_MAX:
                self._origins.clear()
            name = json.dumps([origin.file, origin.unit])  # as ASCII: the name of a file may not be valid Unicode
            cursor = self._database.execute("INSERT INTO origins VALUES (?)", (name,))
            row = self._origins[origin] = cursor.lastrowid or 0
        return row

    def standing(self) -> Standing:
        """Compare all lines; afterwards `lost` has the lines that do not stand. Takes about 2 s per million lines."""
        standing = Standing()
        statement = "SELECT key, content, points, differs, rowid FROM lines ORDER BY key, rowid"
        statement += "" if self._keeps else " DESC"
        with self._lock, _disk_errors():
            self._database.execute("DELETE FROM lost")
            for _, rows in groupby(self._database.execute(statement), key=itemgetter(0)):
                self._judge(rows, standing)
        return standing

    def _judge(self, rows: Iterator[_Row], standing: Standing) -> None:
        """Judge the lines of one point, of which the one that stands comes first."""
        winner: tuple[bytes, int] | None = None
        points = 0
        for _, content, row_points, differs, row in rows:
            points = max(points, row_points) if self._keeps else points or row_points
            if winner is None and not differs:
                winner = content, row
            elif winner is not None and content == winner[0] and not differs:
                standing.repeated += 1
            else:
                standing.lost += 1
                self._database.execute("INSERT INTO lost VALUES (?, ?)", (row, None if winner is None else winner[1]))
        standing.points += points

    def lost(self) -> Iterator[LostLine]:
        """The lines that do not stand, in the order in which they were stored. `standing` comes before."""
        statement = (
            "SELECT o.origin, l.number, l.has_id, p.origin, k.number, k.has_id, l.key FROM lost"
            " JOIN lines l ON l.rowid = lost.line JOIN origins o ON o.rowid = l.origin"
            " LEFT JOIN lines k ON k.rowid = lost.other LEFT JOIN origins p ON p.rowid = k.origin ORDER BY lost.line"
        )
        with self._lock, _disk_errors():
            for row in self._database.execute(statement):
                yield LostLine(_line(*row[:3]), None if row[3] is None else _line(*row[3:6]), row[6])

    def close(self) -> None:
        """Delete the index. Idempotent."""
        with self._lock:
            self._database.close()


def _line(origin: str, number: int, has_id: int) -> IndexedLine:
    file, unit = json.loads(origin)
    return IndexedLine(Origin(file, unit), number, bool(has_id))


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn an error of the database into one that names the way out."""
    try:
        yield
    except sqlite3.Error as error:
        raise IndexFullError(
            f"the index of the stored lines cannot be written ({error}); free space in the folder of temporary files, "
            "or name another with SQLITE_TMPDIR, and run the same command again"
        ) from None
