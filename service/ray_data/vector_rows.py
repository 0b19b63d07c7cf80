"""The rows with vectors of a data set: tables of them, and the documents in such tables.

| column | type | value |
|---|---|---|
| `id`, `id_integer` | string, uint64 | the id as it was given, one of the two; null if it derives from the text |
| `text` | string | text of the point, or of the document if it is in chunks |
| `payload` | string | payload as JSON |
| `dense` | fixed-size list | dense vector |
| `sparse_indices`, `sparse_values` | lists of uint32, float32 | lexical weights by ascending token ids |
| `colbert` | list of fixed-size lists | ColBERT rows |
| `chunk`, `start`, `end` | lists of int32 | numbers of the chunks, and their spans in the text in characters |
| `error_code`, `error_message` | strings | why a row, or a chunk of it, has no vectors |
| `error_chunk`, `error_row` | int32, string | number of that chunk, and the row as JSON |
| `error_part` | bool | whether the document of that chunk is counted with another row |

A document in chunks is one row, so that its chunks are stored together: its vectors are lists of those above.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from embedder import KINDS, Embedding
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import BadLine, Line, WrongFileError
from service.bulk.vector_files.columns import COLUMNS
from service.bulk.vector_files.description import Description
from service.bulk.vector_files.file_layout import FileLayout
from service.bulk.vector_files.points import SPANS, PointRow, payload_json, schema_of, table_of
from service.bulk.vector_files.vector_reading import batch_lines
from service.operations import Piece, VectorSource
from service.ray_data.list_columns import DATA_SET, with_lists
from service.ray_data.outcome import FailedRow

BATCH_MAX_ROWS: Final = 500
"""Maximum rows that are decoded at a time."""

_ERRORS: Final = pa.schema(
    [
        ("error_code", pa.string()),
        ("error_message", pa.string()),
        ("error_chunk", pa.int32()),
        ("error_row", pa.string()),
        ("error_part", pa.bool_()),
    ]
)


@dataclass(slots=True)
class EmbeddedDocument:
    """A document and its vectors.

    Attributes:
        line: the document.
        pieces: the spans of its points.
        vectors: the vectors of each.
    """

    line: Line
    pieces: list[Piece] = field(default_factory=list)
    vectors: list[Embedding] = field(default_factory=list)


def vector_table(
    documents: Sequence[EmbeddedDocument], failed: Sequence[FailedRow], description: Description
) -> pa.Table:
    """A table of documents with vectors, and of the rows that have none.

    Args:
        documents: documents with at least one piece each.
        failed: the other rows.
        description: what the vectors are.
    """
    flat = replace(description, chunk_tokens=0)
    is_chunked = bool(description.chunk_tokens)
    points = [
        PointRow(_id(document.line), document.line.text, _payload(document.line), None, piece, vectors)
        for document in documents
        for piece, vectors in zip(document.pieces, document.vectors, strict=True)
    ]
    table = table_of(points, flat) if points else schema_of(flat).empty_table()
    if is_chunked:
        table = _nested(table, documents)
    for column in _ERRORS:
        table = table.append_column(column, pa.nulls(len(table), column.type))
    if not failed:
        return table
    errors = {
        "error_code": [row.code for row in failed],
        "error_message": [row.message for row in failed],
        "error_chunk": [row.chunk for row in failed],
        "error_row": [None if row.row is None else row.row.decode(errors="replace") for row in failed],
        "error_part": [row.is_part for row in failed],
    }
    columns = [
        pa.array(errors[column.name], column.type) if column.name in errors else pa.nulls(len(failed), column.type)
        for column in table.schema
    ]
    return pa.concat_tables([table, pa.Table.from_arrays(columns, schema=table.schema)])


def _nested(points: pa.Table, documents: Sequence[EmbeddedDocument]) -> pa.Table:
    """A table of documents, of the table of their chunks."""
    ends = np.cumsum([len(document.pieces) for document in documents], dtype=np.int32)
    offsets = pa.array(np.concatenate([np.zeros(1, np.int32), ends]))
    first = points.take(offsets[:-1])
    pieces = [piece for document in documents for piece in document.pieces]
    spans = {name: pa.array([getattr(piece, name) for piece in pieces], pa.int32()) for name in SPANS}
    columns: dict[str, Any] = {}
    for name in points.schema.names:
        is_vector = any(name in names for names in COLUMNS.values())
        values = points.column(name).combine_chunks()
        columns[name] = pa.ListArray.from_arrays(offsets, values) if is_vector else first.column(name)
    columns |= {name: pa.ListArray.from_arrays(offsets, values) for name, values in spans.items()}
    return pa.table(columns)


def _id(line: Line) -> int | str | None:
    return line.id if isinstance(line.id, int | str) else None


def _payload(line: Line) -> str | None:
    return payload_json(line.payload) if isinstance(line.payload, Mapping) else None


class VectorRows:
    """Reads the documents of tables of rows with vectors.

    Args:
        source: what the vectors are.
        fields: the columns that the user names.
    """

    def __init__(self, source: VectorSource, fields: FieldOptions) -> None:
        self._source = source
        self._fields = fields

    def documents(self, table: pa.Table) -> Iterator[Line | BadLine | FailedRow]:
        """The documents of a table, and the rows that have no vectors.

        Raises:
            InputError: a column is missing, or has values of another type.
        """
        layout = self._layout(list(table.schema.names))
        table = with_lists(table, layout.kinds, is_chunked=layout.is_chunked)
        for batch in table.to_batches(max_chunksize=BATCH_MAX_ROWS):
            valid = batch
            if "error_code" in batch.schema.names:
                is_valid = pc.is_null(batch.column("error_code"))
                yield from map(_failed, batch.filter(pc.invert(is_valid)).select(_ERRORS.names).to_pylist())
                valid = batch.filter(is_valid)
            if layout.is_chunked:
                is_whole, rejections = _checked(valid, layout)
                yield from rejections
                valid = _exploded(valid.filter(is_whole), layout)
            if valid.num_rows:
                yield from batch_lines(valid, layout)

    def _layout(self, names: Sequence[str]) -> FileLayout:
        kinds = tuple(kind for kind in KINDS if kind in self._source.kinds)
        text, identity = (self._fields.texts or ("text",))[0], self._fields.id or "id"
        needed = [text, *(name for kind in kinds for name in COLUMNS[kind]), *self._fields.payload]
        missing = next((name for name in needed if name not in names), None)
        errors = _ERRORS.names if "error_code" in names else ()
        missing = missing or next((name for name in errors if name not in names), None)
        if missing is not None:
            raise WrongFileError(DATA_SET, f"there is no column {missing!r}; its columns are {', '.join(names)}")
        sizes = {"dense": self._source.dense_size, "colbert": self._source.colbert_size}
        known: dict[Any, int] = {kind: size for kind, size in sizes.items() if size is not None}
        used = {text, identity, "id_integer", "payload", *SPANS, *_ERRORS.names}
        used |= {name for columns in COLUMNS.values() for name in columns}
        payload = tuple(self._fields.payload) or tuple(name for name in names if name not in used)
        is_chunked = set(SPANS) <= set(names)
        read = {text, identity, "id_integer", "payload", *payload}
        columns = [name for name in names if name in read] + (["document", *SPANS] if is_chunked else [])
        return FileLayout(
            None, kinds, known, identity if identity in names else None, text, payload, is_chunked, tuple(columns)
        )


def _failed(row: Mapping[str, Any]) -> FailedRow:
    raw = None if row["error_row"] is None else row["error_row"].encode(errors="replace")
    return FailedRow(raw, row["error_code"], row["error_message"], row["error_chunk"], row["error_part"])


def _checked(batch: pa.RecordBatch, layout: FileLayout) -> tuple[pa.Array, list[BadLine]]:
    """Which rows of a batch are documents with the vectors of each of their chunks, and why the others are not."""
    names = [*SPANS, *(name for kind in layout.kinds for name in COLUMNS[kind])]
    counts = {name: pc.fill_null(pc.list_value_length(batch.column(name)), 0).to_pylist() for name in names}
    rejections: list[BadLine] = []
    are_whole = []
    for index, text in enumerate(batch.column(layout.text).to_pylist()):
        chunks = counts["chunk"][index]
        other = next((name for name in names if counts[name][index] != chunks), None)
        reason = None
        if not chunks:
            reason = "chunk must have the number of a chunk at least, got none"
        elif other is not None:
            reason = f"{other} must have a value for each of the {chunks} chunks, got {counts[other][index]}"
        elif not isinstance(text, str):
            reason = f"{layout.text} is required" if text is None else f"{layout.text} must be a string"
        if reason is not None:
            rejections.append(BadLine(index + 1, reason))
        are_whole.append(reason is None)
    return pa.array(are_whole, pa.bool_()), rejections


def _exploded(batch: pa.RecordBatch, layout: FileLayout) -> pa.RecordBatch:
    """A batch with one row for each chunk, of one with a row for each document; the first has the whole text."""
    counts = np.asarray(pc.fill_null(pc.list_value_length(batch.column("chunk")), 0))
    parents = np.repeat(np.arange(batch.num_rows), counts)
    is_first = np.diff(parents, prepend=-1) > 0
    texts = batch.column(layout.text).to_pylist()
    starts, ends = (batch.column(name).flatten().to_pylist() for name in ("start", "end"))
    columns: dict[str, Any] = {}
    for name in batch.schema.names:
        is_vector = any(name in COLUMNS[kind] for kind in layout.kinds)
        if is_vector or name in SPANS:
            columns[name] = batch.column(name).flatten()
        elif name in layout.columns:
            columns[name] = batch.column(name).take(pa.array(parents))
    document = [texts[parent] if first else None for parent, first in zip(parents, is_first, strict=True)]
    columns["document"] = pa.array(document, pa.string())
    spans = zip(parents, starts, ends, strict=True)
    columns[layout.text] = pa.array([texts[parent][start:end] for parent, start, end in spans], pa.string())
    return pa.RecordBatch.from_pydict(columns)
