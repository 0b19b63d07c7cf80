"""Reading of vector files: their rows become lines that have their vectors, without a model."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from embedder import Kind
from qdrant_sink import ModelIdentity, kind_of
from service.bulk.arrow_errors import as_wrong_file, guarded
from service.bulk.columnar import check_readable, column_values, plain_value
from service.bulk.field_mapping import FieldOptions, required_text
from service.bulk.line import NO_FILE, BadLine, BadLineError, Line, Origin, WrongFileError
from service.bulk.reading import ReadProgress
from service.bulk.sources import Source
from service.bulk.vector_files.checksums import wrong_column
from service.bulk.vector_files.columns import COLUMNS, BatchVectors
from service.bulk.vector_files.description import Part
from service.bulk.vector_files.file_layout import CHANGED, FileLayout, layout_of, opened
from service.bulk.vector_files.parts import missing_parts
from service.bulk.vector_line import LineVectors, VectorLine
from service.operations import VectorSource

BATCH_MAX_ROWS: Final = 500
"""Maximum rows that are decoded at a time."""

BATCH_MAX_BYTES: Final = 8_000_000
"""Bytes of rows that are decoded at a time, by what the file says of its sizes; one row may have more."""

DOCUMENT_MAX_BYTES: Final = 512_000_000
"""Maximum size of the vectors of one document in bytes, since its chunks are stored together."""


class VectorReader:
    """Reads vector files.

    Args:
        fields: the columns that the user names.
        kinds: kinds of vectors to load; empty for all that the files have.
        model: model of vectors of which the files name none.
        say: prints a message.

    Attributes:
        progress: how far `lines` has come.
    """

    def __init__(
        self,
        fields: FieldOptions,
        kinds: Sequence[Kind],
        model: ModelIdentity | None,
        say: Callable[[str], None],
    ) -> None:
        self._fields = fields
        self._kinds = kinds
        self._model = model
        self._say = say
        self._first: tuple[str, FileLayout] | None = None
        self._incomplete: list[BadLine] = []
        self.progress = ReadProgress()

    def check(self, sources: Iterable[Source]) -> VectorSource:
        """Read what all files have, so that a wrong one ends the load before it begins.

        Returns:
            What the vectors are.

        Raises:
            InputError: a file is wrong, or has other vectors than the first.
        """
        folders: dict[str, list[Part]] = {}
        for source in sources:
            with source.open() as raw:
                _, layout = self._opened(raw, source.name)
            if layout.part is not None:
                folder = str(source.path.parent) if isinstance(source.path, Path) else source.name.rpartition("/")[0]
                folders.setdefault(folder, []).append(layout.part)
        for folder, parts in folders.items():
            if not any(part.checksums for part in parts):
                self._say(f"{folder}: no rows; embed has found no valid document in its input")
            missing = missing_parts(parts)
            if missing is not None:
                self._incomplete.append(BadLine(1, f"{missing}; what is there is loaded", origin=Origin(folder, "")))
        if self._first is None:
            raise WrongFileError("--vectors-in", "give at least one file")
        name, layout = self._first
        if layout.part is None and self._model is None:
            self._say(f"{name}: the model of its vectors is not in its metadata; --vectors-model names it")
        return layout.source(self._model)

    def lines(self, sources: Sequence[Source]) -> Iterator[Line | BadLine]:
        """The documents of all files, with their vectors, and a rejection for each folder that lacks a part or its end.

        Raises:
            InputError: a file is wrong as a whole.
        """
        yield from self._incomplete
        yield from self.progress.observed(sources, self._lines)

    def _opened(self, raw: BinaryIO, name: str) -> tuple[Any, FileLayout]:
        """The open Parquet file, and what it has."""
        with as_wrong_file(name, "Parquet"):
            file = opened(cast("io.BufferedIOBase", raw), name)
            layout = layout_of(file, name, self._fields, self._kinds)
        if self._first is None:
            self._first = name, layout
        first, expected = self._first
        difference = expected.difference(layout)
        if difference is not None:
            raise WrongFileError(name, f"its vectors differ from those of {first} ({difference}); load them by itself")
        return file, layout

    def _lines(self, source: Source) -> Iterator[Line | BadLine]:
        name = source.name
        with source.open() as raw:
            file, layout = self._opened(raw, name)
            rows = _Rows(Origin(name, "row"), layout)
            total = max(file.metadata.num_rows, 1)
            self.progress.of_file(lambda: rows.number / total)
            for batch in guarded(_batches(file, layout, name), name, "Parquet"):
                yield from rows.of_batch(batch)
            yield from rows.rest()


def _batches(file: Any, layout: FileLayout, name: str) -> Iterator[Any]:
    """The rows of a file, as record batches of bounded size. Other errors are those of pyarrow.

    Raises:
        WrongFileError: its rows are not those that `embed` has written.
    """
    columns = [*layout.columns, *(column for kind in layout.kinds for column in COLUMNS[kind])]
    if layout.part is not None:
        checksums = layout.part.checksums
        if len(checksums) != file.num_row_groups:
            raise WrongFileError(name, CHANGED)
        for group, expected in enumerate(checksums):
            table = file.read_row_group(group, columns=columns, use_threads=False)
            if wrong_column(table, expected) is not None:
                raise WrongFileError(name, CHANGED)
            yield from table.to_batches(max_chunksize=BATCH_MAX_ROWS)
        return
    for group in range(file.num_row_groups):
        described = file.metadata.row_group(group)
        fitting = BATCH_MAX_BYTES * described.num_rows // max(described.total_byte_size, 1)
        yield from file.iter_batches(
            batch_size=max(1, min(BATCH_MAX_ROWS, fitting)), row_groups=[group], columns=columns, use_threads=False
        )


def batch_lines(batch: Any, layout: FileLayout) -> Iterator[Line | BadLine]:
    """The documents of one record batch, which comes from no file.

    Args:
        batch: the record batch, with all chunks of its documents.
        layout: what it has.
    """
    rows = _Rows(NO_FILE, layout)
    yield from rows.of_batch(batch)
    yield from rows.rest()


@dataclass(slots=True)
class _Document:
    """A document whose chunks are being read.

    Attributes:
        row: number of its first row.
        text: its whole text; None if it is invalid, and its chunks with it.
        id: its id.
        payload: its payload.
        points: its valid chunks.
        nbytes: size of its vectors and texts in bytes.
        chunk: number of the last chunk, -1 before the first.
        is_counted: whether a chunk or a rejection stands for it, so that a further rejection is a part of it.
        rejection: the first rejection of a document that has no valid chunk yet; None without one.
    """

    row: int
    text: str | None
    id: object
    payload: object
    points: list[LineVectors] = field(default_factory=list)
    nbytes: int = 0
    chunk: int = -1
    is_counted: bool = False
    rejection: BadLine | None = None


class _Rows:
    """Makes lines of the rows of one file.

    Args:
        origin: the file.
        layout: what it has.

    Attributes:
        number: number of the last row, from 1.
    """

    def __init__(self, origin: Origin, layout: FileLayout) -> None:
        self._origin = origin
        self._layout = layout
        self.number = 0
        self._document: _Document | None = None

    def of_batch(self, batch: Any) -> Iterator[Line | BadLine]:
        """The lines that are complete with the rows of this batch."""
        columns = {name: column_values(batch.column(name)) for name in self._layout.columns}
        vectors = BatchVectors(batch, self._layout.kinds, self._layout.sizes)
        for index in range(batch.num_rows):
            self.number += 1
            cells = {name: values[index] for name, values in columns.items()}
            row = self._chunk if self._layout.is_chunked else self._point
            yield from row(cells, vectors, index)

    def rest(self) -> Iterator[Line | BadLine]:
        """The document whose chunks end with the file."""
        document, self._document = self._document, None
        if document is None:
            return
        if document.rejection is not None:
            yield document.rejection
        if document.text is not None and document.points:
            yield VectorLine(
                number=document.row,
                text=document.text,
                id=document.id,
                payload=document.payload,
                size=document.nbytes,
                origin=self._origin,
                points=tuple(document.points),
            )

    def _point(self, cells: Mapping[str, Any], vectors: BatchVectors, index: int) -> Iterator[Line | BadLine]:
        try:
            _check_readable(cells)
            text = required_text(self._layout.text, cells[self._layout.text])
            payload = self._payload(cells)
            point = LineVectors(self.number, None, 0, len(text), vectors.row(index))
        except BadLineError as error:
            yield BadLine(self.number, str(error), None, self._origin)
            return
        yield VectorLine(
            number=self.number,
            text=text,
            id=self._id(cells),
            payload=payload,
            size=len(text) + vectors.nbytes(index),
            origin=self._origin,
            points=(point,),
        )

    def _chunk(self, cells: Mapping[str, Any], vectors: BatchVectors, index: int) -> Iterator[Line | BadLine]:
        try:
            _check_readable(cells)
            if cells["document"] is not None or cells["chunk"] is None:
                yield from self.rest()
                self._begin(cells)
            document = self._document
            if document is None:
                raise BadLineError("document is required: the first chunk of a document has its whole text")
            if document.text is None:
                raise BadLineError(f"its document is rejected (row {document.row})")
            chunk, start, end = self._checked_chunk(cells, document)
            size = vectors.nbytes(index)
            if document.nbytes + size > DOCUMENT_MAX_BYTES:
                yield from self._too_large(document)
                raise BadLineError(f"the vectors of a document must have at most {DOCUMENT_MAX_BYTES} bytes, got more")
            point = LineVectors(self.number, chunk, start, end, vectors.row(index))
        except BadLineError as error:
            yield from self._rejected(str(error))
            return
        rejection, document.rejection = document.rejection, None
        if rejection is not None:
            yield replace(rejection, is_part=True)
        document.points.append(point)
        document.nbytes += size
        document.is_counted = True

    def _rejected(self, message: str) -> Iterator[BadLine]:
        """Reject the row. The first rejection of a document waits, as it stands for it if no chunk is valid."""
        document = self._document
        rejection = BadLine(self.number, message, None, self._origin)
        if document is None:
            yield rejection
            return
        is_counted, document.is_counted = document.is_counted, True
        if is_counted or document.text is None:
            yield replace(rejection, is_part=is_counted)
        else:
            document.rejection = rejection

    def _begin(self, cells: Mapping[str, Any]) -> None:
        """Begin a document with the row of its first chunk."""
        self._document = document = _Document(self.number, None, self._id(cells), None)
        if cells["chunk"] is None:
            raise BadLineError("chunk is required in a file of chunks")
        text = required_text("document", cells["document"])
        document.payload = self._payload(cells)
        document.text = text
        document.nbytes = len(text)

    def _checked_chunk(self, cells: Mapping[str, Any], document: _Document) -> tuple[int, int, int]:
        """Number, start and end of a chunk."""
        chunk, start, end = (cells[name] for name in ("chunk", "start", "end"))
        text, whole = cells[self._layout.text], document.text or ""
        if not all(type(number) is int for number in (chunk, start, end)):
            raise BadLineError("chunk, start and end must be integers")
        if chunk <= document.chunk:
            raise BadLineError(f"chunk must be greater than that of the row before ({document.chunk}), got {chunk}")
        if not 0 <= start <= end <= len(whole):
            raise BadLineError(
                f"start and end must be a span of the document (0 to {len(whole)}), got {start} to {end}"
            )
        if text != whole[start:end]:
            raise BadLineError(f"{self._layout.text} must be characters {start} to {end} of the document")
        document.chunk = chunk
        return chunk, start, end

    def _too_large(self, document: _Document) -> Iterator[BadLine]:
        """Reject the chunks of a document that were read."""
        message = f"the vectors of a document must have at most {DOCUMENT_MAX_BYTES} bytes, got more"
        points, document.points, document.text = document.points, [], None
        for number, point in enumerate(points):
            yield BadLine(point.row, message, None, self._origin, is_part=number > 0)

    def _id(self, cells: Mapping[str, Any]) -> object:
        integer = cells.get("id_integer")
        return integer if integer is not None else cells.get(self._layout.id or "")

    def _payload(self, cells: Mapping[str, Any]) -> dict[str, Any]:
        payload = {name: plain_value(name, cells[name]) for name in self._layout.payload if cells[name] is not None}
        own = None if "payload" in self._layout.payload else cells.get("payload")
        if own is None:
            return payload
        if isinstance(own, str):
            try:
                own = json.loads(own)
            except (ValueError, RecursionError):
                raise BadLineError("payload is not valid JSON") from None
        if not isinstance(own, dict):
            raise BadLineError(f"payload must be an object, got {kind_of(own)}")
        return {**payload, **{name: plain_value(name, value) for name, value in own.items()}}


def _check_readable(cells: Mapping[str, Any]) -> None:
    for name, value in cells.items():
        check_readable(name, value)
