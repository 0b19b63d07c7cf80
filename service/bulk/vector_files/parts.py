"""The folder that `embed` writes: parts of bounded size, each whole or absent, and where the next run goes on.

A part is written under a temporary name and renamed when it is complete. It ends between two lines of the input, and
its metadata says how many lines precede its end and their digest. So the same command goes on after the last part, and
recognises an input or options that have changed.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from service.bulk.extras import library
from service.bulk.formats import WRITER_KEY
from service.bulk.line import InputError
from service.bulk.vector_files.checksums import column_checksums
from service.bulk.vector_files.description import Description, DescriptionError, Part, Position
from service.bulk.vector_files.points import COMPRESSED, PointRow, schema_of, table_of

PART_MAX_BYTES: Final = 256_000_000
"""Default size of a part in bytes, beyond which the next line begins another one."""

PART_MAX_S: Final = 600.0
"""Time after which the next line begins another part, so that a slow model loses little if it is killed."""

ROW_GROUP_MAX_BYTES: Final = 16_000_000
"""Bytes of rows that are held before they are written as a row group."""

_TEMPORARY: Final = ".tmp"


class PartFolder:
    """Writes rows into the parts of a folder. Its methods block, and one thread calls them.

    Args:
        folder: the folder, which is created.
        description: what the vectors are.
        part_max_bytes: size beyond which the next line begins another part.
        clock: monotonic clock in seconds.

    Attributes:
        start: how far earlier runs have come.
        is_complete: whether an earlier run has come to the end of its input.
        rows_before: rows that earlier runs have written.
        rows: rows of the whole parts.
        parts: number of whole parts.
        end: how far the whole parts reach.

    Raises:
        InputError: the folder cannot be written, another process writes into it, or its parts have other vectors.
    """

    def __init__(
        self,
        folder: Path,
        description: Description,
        *,
        part_max_bytes: int = PART_MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._folder = folder
        self._description = description
        self._part_max_bytes = part_max_bytes
        self._clock = clock
        self._parquet = library("pyarrow.parquet", "embed")
        self._lock = _locked(folder)
        self._writer: Any = None
        self._rows: list[PointRow] = []
        self._checksums: list[dict[str, int]] = []
        self._rows_bytes = self._part_bytes = 0
        self._began_at = 0.0
        self._open_rows = 0
        self._part_rows = 0
        self._is_lost = False  # whether rows of the open part could not be written
        self.rows = self.rows_before = 0
        self.parts = 0
        self.is_complete = False
        self.start = self.end = self._end = Position()
        try:
            self._take_over()
        except BaseException:
            os.close(self._lock)
            raise

    def _take_over(self) -> None:
        """Read the parts of earlier runs, which must follow each other and have these vectors."""
        paths = sorted(self._folder.glob("part-*.parquet"))
        for path in paths:
            part, rows = self._part(path)
            if path.name != _name(self.parts) or part.number != self.parts or self.is_complete:
                raise InputError(f"{self._folder}: {_name(self.parts)} is missing, or {path.name} does not belong here")
            if part.number == 0 and part.is_last and not part.checksums:
                path.unlink()  # it has no rows, so the input and the options may have changed
                continue
            difference = part.description.difference(self._description)
            if difference is not None:
                raise InputError(
                    f"{self._folder}: {path.name} was embedded with other options ({difference}); give the same "
                    "command again, or another --out"
                )
            self.parts += 1
            self.rows += rows
            self.rows_before = self.rows
            self.start = self.end = self._end = part.end
            self.is_complete = part.is_last
        for path in self._folder.glob(f"part-*{_TEMPORARY}"):
            path.unlink()

    def _part(self, path: Path) -> tuple[Part, int]:
        try:
            metadata = self._parquet.read_metadata(path)
            part = Part.read(metadata.metadata)
        except DescriptionError as error:
            raise InputError(f"{path}: {error}") from None
        except Exception as error:  # noqa: BLE001 - pyarrow has errors of its own
            raise InputError(f"{path}: it is damaged ({type(error).__name__}); delete it to embed it again") from None
        if part is None:
            raise InputError(f"{path}: embed has not written this file; give another --out")
        return part, metadata.num_rows

    def add(self, row: PointRow) -> None:
        """Add a row.

        Raises:
            OSError: the part cannot be written.
        """
        if self._is_full:
            self._finish(is_last=False)
        if not self._rows and self._writer is None:
            self._began_at = self._clock()
        self._rows.append(row)
        self._part_rows += 1
        self._rows_bytes += row.nbytes
        self._open_rows += 1
        if self._rows_bytes >= ROW_GROUP_MAX_BYTES:
            self._flush()

    def end_line(self, position: Position) -> None:
        """Note that all rows of the lines up to this position are added."""
        self._end = position
        self._open_rows = 0

    @property
    def _is_full(self) -> bool:
        """Whether the part ends here: between two lines, and large or old enough."""
        if self._open_rows or (self._writer is None and not self._rows):
            return False
        size = self._part_bytes + self._rows_bytes
        return size >= self._part_max_bytes or self._clock() - self._began_at >= PART_MAX_S

    def close(self, end: Position | None = None) -> None:
        """Finish the part that is open, unless the rows of its last line are incomplete or some are lost. Idempotent.

        Args:
            end: the end of the input; None if the run has not come to it.

        Raises:
            OSError: the part cannot be written.
        """
        try:
            is_open = bool(self._rows) or self._writer is not None
            if end is not None:
                self._end = end
                if is_open or not self.is_complete:  # without a row, an empty part tells the end
                    self._finish(is_last=True)
            elif is_open and not self._open_rows and not self._is_lost:
                self._finish(is_last=False)
        finally:
            self._discard()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _opened(self) -> Any:
        if self._writer is None:
            self._writer = self._parquet.ParquetWriter(
                self._temporary,
                schema_of(self._description).with_metadata({WRITER_KEY: "embed"}),
                compression=dict.fromkeys(COMPRESSED, "zstd"),
                use_dictionary=False,
                write_statistics=False,
            )
        return self._writer

    def _flush(self) -> None:
        table = table_of(self._rows, self._description)
        self._is_lost = True
        self._opened().write_table(table, row_group_size=len(self._rows))
        self._is_lost = False
        self._checksums.append(column_checksums(table, table.column_names))
        self._part_bytes += self._rows_bytes
        self._rows, self._rows_bytes = [], 0

    def _finish(self, *, is_last: bool) -> None:
        if self._rows:
            self._flush()
        part = Part(self._description, self.parts, self._end, is_last, tuple(self._checksums))
        writer = self._opened()
        writer.add_key_value_metadata(part.metadata())
        writer.close()
        with self._temporary.open("rb") as file:
            os.fsync(file.fileno())
        self._temporary.rename(self._folder / _name(self.parts))
        os.fsync(self._lock)  # the folder
        self._writer = None
        self._checksums = []
        self.end = self._end
        self.rows += self._part_rows
        self._part_bytes = self._part_rows = 0
        self.parts += 1

    def _discard(self) -> None:
        """Drop the rows of a part that is not finished."""
        writer, self._writer = self._writer, None
        self._rows, self._rows_bytes, self._part_bytes = [], 0, 0
        if writer is not None:
            with suppress(Exception):  # a full disk; the file goes
                writer.close()
            with suppress(OSError):
                self._temporary.unlink()

    @property
    def _temporary(self) -> Path:
        return self._folder / f"{_name(self.parts)}{_TEMPORARY}"


def missing_parts(parts: list[Part]) -> str | None:
    """What is missing of the parts of one folder in words; None if they are whole."""
    numbers = {part.number for part in parts}
    absent = next((number for number in range(max(numbers, default=-1) + 1) if number not in numbers), None)
    if absent is not None:
        return f"{_name(absent)} is missing"
    if not any(part.is_last for part in parts):
        return "embed has not come to the end of its input; give its command again, and then this one"
    return None


def _name(number: int) -> str:
    return f"part-{number:05d}.parquet"


def _locked(folder: Path) -> int:
    """Open the folder and lock it until it is closed, or the process ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--out cannot be written ({error.strerror}): {folder}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise InputError(f"{folder}: another process writes into it") from None
    return descriptor
