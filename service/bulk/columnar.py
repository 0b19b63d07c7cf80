"""Reading of Parquet and Arrow, batch by batch."""

from __future__ import annotations

import datetime as dt
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from decimal import Decimal
from typing import Any, Final

from service.bulk.arrow_errors import as_wrong_file, guarded
from service.bulk.extras import library
from service.bulk.field_mapping import FieldOptions, Layout, Mapper, of_field
from service.bulk.formats import BINARY, VECTORS_KEY, WRITER_KEY
from service.bulk.line import NO_FILE, BadLine, BadLineError, Line, Origin, WrongFileError
from service.bulk.raw_lines import LINE_MAX_BYTES
from service.bulk.stream_head import BUFFER_BYTES

BATCH_MAX_ROWS: Final = 1000
"""Maximum rows that are held as Python values at a time."""

BATCH_MAX_BYTES: Final = 8_000_000
"""Bytes of rows that are held at a time, by what the file says of its sizes; beyond them rows are taken one by one."""

DICTIONARY_MAX_BYTES: Final = 2_000_000
"""Maximum size of a column chunk of Parquet whose dictionary is kept, since one long text for many rows is small.

Of larger ones a dictionary would grow with the rows.
"""


def read_parquet(file: io.BufferedIOBase, origin: Origin, mapper: Mapper) -> Iterator[Line | BadLine]:
    """Read the rows of Parquet.

    Args:
        file: the file, which must be seekable.
        origin: the file.
        mapper: chooses the layout by the columns.

    Raises:
        InputError: the file is not Parquet or damaged, a column is missing, or pyarrow is.
    """
    arrow, parquet = library("pyarrow", "Parquet"), library("pyarrow.parquet", "Parquet")
    name = str(origin.file)
    if not file.seekable():
        raise WrongFileError(name, "Parquet is read from its end: give a file, not a pipe, and not compressed again")
    with as_wrong_file(name, "Parquet"):
        metadata = parquet.read_metadata(file)
    if {VECTORS_KEY.encode(), WRITER_KEY.encode()} & set(metadata.metadata or {}):
        raise WrongFileError(name, "`embed` wrote it, and it has vectors: load it with bulk --vectors-in")
    with as_wrong_file(name, "Parquet"):
        schema = metadata.schema.to_arrow_schema()
        strings = [field.name for field in schema if arrow.types.is_string(field.type)]

        def opened(dictionaries: Sequence[str]) -> Any:
            file.seek(0)
            options = {"pre_buffer": False, "buffer_size": BUFFER_BYTES, "read_dictionary": dictionaries}
            return parquet.ParquetFile(file, metadata=metadata, **options)

        plain = opened(())
    layout = mapper.table(schema.names, origin)
    columns = _needed(layout, schema.names)
    rows = _Rows(replace(origin, unit="row"), layout)
    strings = [column for column in strings if column in columns]
    for group in range(metadata.num_row_groups):
        with as_wrong_file(name, "Parquet"):
            small = _small(plain, group, strings)
            reader = opened(small) if small else plain
            described = metadata.row_group(group)
            fitting = BATCH_MAX_BYTES * described.num_rows // max(described.total_byte_size, 1)
        batches = reader.iter_batches(
            batch_size=max(1, min(BATCH_MAX_ROWS, fitting)), row_groups=[group], columns=columns, use_threads=False
        )
        yield from rows.of_batches(guarded(batches, name, "Parquet"))


def parquet_rows(file: io.BufferedIOBase, origin: Origin) -> int:
    """The number of rows of Parquet; 0 if it cannot be read, which `read_parquet` says."""
    if not file.seekable():
        return 0
    with as_wrong_file(str(origin.file), "Parquet"):
        rows = int(library("pyarrow.parquet", "Parquet").read_metadata(file).num_rows)
        file.seek(0)
    return rows


def _small(opened: Any, group: int, columns: Sequence[str]) -> list[str]:
    """Those columns of a row group of Parquet that are read with their dictionaries, which are not expanded then."""
    if not columns:
        return []
    # What the footer says of a column ends the process if it is damaged, unless a reader has found the damage before.
    next(opened.iter_batches(batch_size=1, row_groups=[group], columns=columns, use_threads=False), None)
    described, schema = opened.metadata.row_group(group), opened.metadata.schema
    paths = {schema.column(index).path: index for index in range(opened.metadata.num_columns)}
    sizes = {column: described.column(paths[column]).total_uncompressed_size for column in columns}
    return [column for column, size in sizes.items() if size <= DICTIONARY_MAX_BYTES]


def read_arrow(file: io.BufferedIOBase, origin: Origin, mapper: Mapper, *, is_file: bool) -> Iterator[Line | BadLine]:
    """Read the rows of Arrow IPC. A record batch of the file is in memory as a whole.

    Args:
        file: the stream; seekable if it is in the file format.
        origin: the file.
        mapper: chooses the layout by the columns.
        is_file: whether it is in the file format (Feather) rather than a stream.

    Raises:
        InputError: the file is not Arrow or damaged, a column is missing, or pyarrow is.
    """
    ipc = library("pyarrow.ipc", "Arrow")
    name = str(origin.file)
    if is_file and not file.seekable():
        raise WrongFileError(name, "this form of Arrow is read from its end: give a file, or write a stream of Arrow")
    with as_wrong_file(name, "Arrow"):
        opened = ipc.open_file(file) if is_file else ipc.open_stream(file)
        available = opened.schema.names
    layout = mapper.table(available, origin)
    rows = _Rows(replace(origin, unit="row"), layout)
    names = _needed(layout, available)
    found = (opened.get_batch(index) for index in range(opened.num_record_batches)) if is_file else iter(opened)
    batches = (
        batch.select(names).slice(first, BATCH_MAX_ROWS)
        for batch in guarded(map(_validated, found), name, "Arrow")
        for first in range(0, batch.num_rows, BATCH_MAX_ROWS)
    )
    yield from rows.of_batches(batches)


def _validated(batch: Any) -> Any:
    """A record batch whose offsets lie in its buffers: pyarrow does not look at them, and would read other memory."""
    batch.validate(full=True)
    return batch


def table_lines(table: Any, fields: FieldOptions) -> Iterator[Line | BadLine]:
    """The documents of a table of Arrow, which comes from no file.

    Args:
        table: the table.
        fields: the columns that the user names.

    Raises:
        InputError: a column is missing, or two have one name.
    """
    origin = Origin("the table", "")
    names = list(table.schema.names)
    layout = Mapper(fields, lambda _origin, _message: None).table(names, origin)
    batches = table.select(_needed(layout, names)).to_batches(max_chunksize=BATCH_MAX_ROWS)
    yield from _Rows(NO_FILE, layout).of_batches(batches)


def is_arrow_file(head: bytes) -> bool:
    """Whether Arrow is in the file format, by its first bytes."""
    return head.startswith(BINARY["arrow"])


def _needed(layout: Layout, names: Sequence[str]) -> list[str]:
    """The columns that are read."""
    if layout.payload is None:
        return [name for name in names if name and name not in layout.dropped]
    return [name for name in names if name in {layout.id, *layout.texts, *layout.payload}]


class _Rows:
    """Makes documents of rows.

    Args:
        origin: the file.
        layout: which columns are what.
    """

    def __init__(self, origin: Origin, layout: Layout) -> None:
        self._origin = origin
        self._layout = layout
        self._number = 0

    def of_batches(self, batches: Iterator[Any]) -> Iterator[Line | BadLine]:
        """The documents of all rows."""
        for batch in batches:
            names = batch.schema.names
            size = _size(batch)
            step = batch.num_rows if size <= BATCH_MAX_BYTES else 1
            for first in range(0, batch.num_rows, max(step, 1)):
                part = batch.slice(first, step)
                columns = [column_values(column) for column in part.columns]
                for index in range(part.num_rows):
                    self._number += 1
                    yield self._row({name: column[index] for name, column in zip(names, columns, strict=True)})

    def _row(self, cells: Mapping[str, Any]) -> Line | BadLine:
        fields: dict[str, Any] = {}
        try:
            for name, value in cells.items():
                check_readable(name, value)
                fields[name] = plain_value(name, value)
            size = _bytes_of(fields)
            if size > LINE_MAX_BYTES:
                fields = {}
                raise BadLineError(f"the row must have at most {LINE_MAX_BYTES} bytes, got {size}")
            return self._layout.line(self._origin, self._number, fields, size)
        except BadLineError as error:
            draft = self._layout.draft(fields) if fields else None
            return BadLine(self._number, str(error), draft, self._origin)


class _Unreadable:
    """Stands for a value that Python has no type for, such as a year above 9999 or a string that is not UTF-8."""


def check_readable(name: str, value: object) -> None:
    """Raise BadLineError for a value of `column_values` that Python has no type for."""
    if isinstance(value, _Unreadable):
        raise BadLineError(f"{of_field(name)} has a value that cannot be read; leave out the column")


def column_values(column: Any) -> list[Any]:
    """The values of an array of Arrow; see `check_readable`."""
    if str(column.type).startswith("timestamp[ns"):  # Python's times have microseconds
        arrow = library("pyarrow", "Parquet")
        column = column.cast(arrow.timestamp("us", column.type.tz), safe=False)
    try:
        return column.to_pylist()  # type: ignore[no-any-return]
    except (ValueError, OverflowError, NotImplementedError):
        values: list[Any] = []
        for scalar in column:
            try:
                values.append(scalar.as_py())
            except (ValueError, OverflowError, NotImplementedError):
                values.append(_Unreadable())
        return values


def _size(batch: Any) -> int:
    """Size of a batch in bytes, with every value of a dictionary as often as it may occur."""
    size = 0
    for column in batch.columns:
        if hasattr(column, "dictionary"):
            size += _longest(column.dictionary) * len(column)
        else:
            size += column.nbytes
    return size


def _longest(values: Any) -> int:
    """Size of the longest value of an array in bytes; the mean size if they are not strings."""
    types, kind = library("pyarrow.types", "Arrow"), values.type
    if not any(is_kind(kind) for is_kind in (types.is_string, types.is_binary, types.is_large_string)):
        return int(values.nbytes) // max(len(values), 1)
    compute = library("pyarrow.compute", "Arrow")
    return compute.max(compute.binary_length(values)).as_py() or 0


def _bytes_of(value: Any) -> int:
    if isinstance(value, str | bytes):
        return len(value)
    if isinstance(value, dict):
        return sum(_bytes_of(item) + len(str(name)) for name, item in value.items())
    if isinstance(value, list):
        return sum(map(_bytes_of, value))
    return 8


def plain_value(name: str, value: Any) -> Any:
    """A value as JSON has it: times as ISO 8601, decimals as numbers, maps as objects.

    Raises:
        BadLineError: JSON has no such value.
    """
    kind = type(value)
    if kind in (str, int, float, bool, type(None)):
        return value
    if isinstance(value, dict):
        return {key: plain_value(name, item) for key, item in value.items()}
    if isinstance(value, list):
        if value and all(isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str) for item in value):
            return {key: plain_value(name, item) for key, item in value}
        return [plain_value(name, item) for item in value]
    for type_, plain in _PLAIN.items():
        if isinstance(value, type_):
            return plain(value)
    raise BadLineError(f"{of_field(name)} has values that JSON has not; leave out the column with --payload-fields")


_PLAIN: Final[Mapping[type, Callable[[Any], Any]]] = {
    dt.date: lambda value: value.isoformat(),
    dt.time: lambda value: value.isoformat(),
    dt.timedelta: lambda value: value.total_seconds(),
    Decimal: lambda value: int(value) if value == value.to_integral_value() else float(value),
}
