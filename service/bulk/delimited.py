"""Parsing of CSV and TSV, whose first line names the columns."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Final

from service.bulk.field_mapping import Layout, Mapper
from service.bulk.line import BadLine, BadLineError, Line, Origin, WrongFileError
from service.bulk.raw_lines import LINE_MAX_BYTES, LongLine
from service.validation import counted

_DELIMITERS: Final = (",", ";", "\t")
"""Delimiters of CSV, the first of which that the header has is taken."""

_ID_MAX_DIGITS = 20


class _Text:
    """The lines of a file as text, for `csv`, which asks for more of them inside quotes.

    Args:
        lines: the lines with their line breaks.
        origin: the file.

    Attributes:
        number: number of the line that was read last.
        first: number of the first line of the row.
        size: size of the row in bytes.
        fault: why a line of the row is not text; None if all are.
    """

    def __init__(self, lines: Iterable[bytes | LongLine], origin: Origin) -> None:
        self._lines = iter(lines)
        self._file = str(origin.file)
        self._header: str | None = None
        self.number = 0
        self.begin()

    def begin(self) -> None:
        """Begin a row."""
        self.first = self.number + 1
        self.size = 0
        self.fault: str | None = None

    def header(self) -> str | None:
        """The first line that is not blank, which is read again after this; None if there is none.

        Raises:
            WrongFileError: the line is not text.
        """
        for line in self:
            if self.fault is not None:
                raise WrongFileError(self._file, f"line {self.number}: {self.fault}")
            if line.strip():
                self._header = line
                self.number -= 1
                return line
        return None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        if self._header is not None:
            header, self._header = self._header, None
            self.number += 1
            return header
        raw = next(self._lines)
        self.number += 1
        if isinstance(raw, LongLine):
            self.fault = f"the line must have at most {LINE_MAX_BYTES} bytes, got {raw.size}"
            return "\n"
        self.size += len(raw)
        if self.size > LINE_MAX_BYTES:
            reason = f"the row of line {self.first} must have at most {LINE_MAX_BYTES} bytes; is a quote not closed?"
            raise WrongFileError(self._file, reason)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            self.fault = f"the line is not valid UTF-8 (byte {error.start}); name the file's encoding with --encoding"
            return raw.decode(errors="replace")


class _Rows:
    """The rows of a file. Blank lines are none.

    Args:
        text: the lines of the file.
        delimiter: what stands between the fields.
    """

    def __init__(self, text: _Text, delimiter: str) -> None:
        self._text = text
        # A field is as long as its row at most, which `_Text` bounds; the default limit is 131 072 characters.
        csv.field_size_limit(LINE_MAX_BYTES)
        self._reader = csv.reader(text, delimiter=delimiter, strict=True)

    def __iter__(self) -> Iterator[tuple[list[str], str | None]]:
        """Each row, and why it is wrong; None if it is not."""
        while True:
            self._text.begin()
            try:
                row = next(self._reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield [], self._text.fault or self._described(str(error))
                continue
            if row or self._text.fault is not None:
                yield row, self._text.fault

    def _described(self, error: str) -> str:
        if "unexpected end" in error:
            return f"a quote is not closed, so the lines up to {self._text.number} belong to the row; close it"
        if "expected after" in error:
            return "after a closing quote, a delimiter was expected; double the quotes inside a quoted field"
        if "new-line" in error:
            return "a carriage return stands in a field without quotes"
        return "it is not a row of CSV"


def read_delimited(
    lines: Iterable[bytes | LongLine],
    origin: Origin,
    mapper: Mapper,
    *,
    delimiter: str | None,
    columns: Sequence[str],
    say: Callable[[Origin, str], None],
) -> Iterator[Line | BadLine]:
    """Parse the rows of a table.

    An empty field is absent. An id of digits alone is an integer, since such a table has no types.

    Args:
        lines: the lines of the file in UTF-8.
        origin: the file.
        mapper: chooses the layout by the columns.
        delimiter: what stands between the fields; None for a comma, or what the header has in place of it.
        columns: names of the columns if the first line is a row; empty if it names them.
        say: prints a message about a file, unless it was printed of another.

    Raises:
        WrongFileError: the columns are not those that are needed, or a row is too large.
    """
    text = _Text(lines, origin)
    header = text.header()
    if header is None:
        return
    if delimiter is None:
        delimiter = next((one for one in _DELIMITERS if one in header), ",")
        if delimiter != ",":
            say(origin, f"the fields are separated by {'tabs' if delimiter == chr(9) else 'semicolons'}")
    rows = iter(_Rows(text, delimiter))
    if columns:
        names = list(columns)
    else:
        names, fault = next(rows, ([], None))
        if fault is not None:
            raise WrongFileError(str(origin.file), f"the header (line {text.first}): {fault}")
        names = [name.strip() for name in names]
    layout = mapper.table([name for name in names if name], origin)
    if not all(names):
        say(origin, "a column without a name is left out")
    for row, fault in rows:
        number = text.first
        try:
            if fault is not None:
                raise BadLineError(fault)
            if len(row) != len(names):
                has = "--columns names" if columns else "the header has"
                raise BadLineError(f"the row must have {counted(len(names), 'field')}, as {has}, got {len(row)}")
            yield layout.line(origin, number, _fields(names, row, layout), text.size)
        except BadLineError as error:
            yield BadLine(number, str(error), layout.draft(_fields(names, row, layout)) if row else None, origin)


def _fields(names: Sequence[str], row: Sequence[str], layout: Layout) -> dict[str, Any]:
    fields: dict[str, Any] = {name: value for name, value in zip(names, row, strict=False) if name and value}
    identity = fields.get(layout.id)
    if isinstance(identity, str) and _is_integer(identity):
        fields[layout.id] = int(identity)
    return fields


def _is_integer(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= _ID_MAX_DIGITS and (text == "0" or text[0] != "0")
