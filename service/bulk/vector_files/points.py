"""The rows of a vector file: their columns, and tables of them.

| column | type | value |
|---|---|---|
| `id`, `id_integer` | string, uint64 | the id as it was given, one of the two; null if it derives from the text |
| `text` | string | text of the point |
| `payload` | string | payload as JSON; of a document in chunks in its first row |
| `document` | string | whole text of a document in chunks, in its first row |
| `chunk`, `start`, `end` | int32 | number of a chunk, and its span in the document in characters |
| `dense` | fixed-size list | dense vector |
| `sparse_indices`, `sparse_values` | lists of uint32, float32 | lexical weights by ascending token ids |
| `colbert` | list of fixed-size lists | ColBERT rows |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from embedder import Embedding
from service.bulk.extras import library
from service.bulk.vector_files.description import Description
from service.operations import Piece

COMPRESSED: Final = ("id", "text", "payload", "document")
"""Columns that are compressed. Numbers of vectors hardly become smaller."""

SPANS: Final = ("chunk", "start", "end")
"""Columns of the spans of chunks."""

_ROW_BYTES: Final = 64
"""Bytes of the columns of a row that are always the same."""


@dataclass(frozen=True, slots=True, eq=False)
class PointRow:
    """One row: a text, or a chunk of a document, and its vectors.

    Attributes:
        id: the id as the caller gave it, an unsigned integer or a string; None if it derives from the text.
        text: text of the point.
        payload: payload as JSON; None if it is empty, or stands in an earlier row of the document.
        document: whole text of the document; None without chunks, and in its further rows.
        piece: the span of the text.
        vectors: the vectors.
    """

    id: int | str | None
    text: str
    payload: str | None
    document: str | None
    piece: Piece
    vectors: Embedding

    @property
    def nbytes(self) -> int:
        """Approximate size of the row in memory in bytes."""
        arrays = [self.vectors.dense, self.vectors.colbert]
        if self.vectors.sparse is not None:
            arrays += [self.vectors.sparse.indices, self.vectors.sparse.values]
        texts = (self.text, self.payload, self.document)
        return (
            _ROW_BYTES
            + sum(array.nbytes for array in arrays if array is not None)
            + sum(len(text) for text in texts if text is not None)
        )


def payload_json(payload: Mapping[str, Any]) -> str | None:
    """A payload as a row has it; None for an empty one."""
    return json.dumps(payload, ensure_ascii=False) if payload else None


def schema_of(description: Description) -> Any:
    """The Arrow schema of files with these vectors."""
    arrow = library("pyarrow", "embed")
    number = arrow.float16() if description.dtype == "float16" else arrow.float32()
    fields = [
        ("id", arrow.string()),
        ("id_integer", arrow.uint64()),
        ("text", arrow.string()),
        ("payload", arrow.string()),
    ]
    if description.chunk_tokens:
        fields += [("document", arrow.string()), *((name, arrow.int32()) for name in ("chunk", "start", "end"))]
    if "dense" in description.kinds:
        fields.append(("dense", arrow.list_(number, description.dense_size)))
    if "sparse" in description.kinds:
        fields += [
            ("sparse_indices", arrow.list_(arrow.uint32())),
            ("sparse_values", arrow.list_(arrow.float32())),
        ]
    if "colbert" in description.kinds:
        fields.append(("colbert", arrow.list_(arrow.list_(number, description.colbert_size))))
    return arrow.schema(fields)


def column_names(description: Description) -> Sequence[str]:
    """The columns of files with these vectors."""
    return tuple(schema_of(description).names)


def table_of(rows: Sequence[PointRow], description: Description) -> Any:
    """An Arrow table of rows, at least one."""
    arrow = library("pyarrow", "embed")
    schema = schema_of(description)
    dtype = np.dtype(description.dtype)
    columns: dict[str, Any] = {
        "id": [row.id if isinstance(row.id, str) else None for row in rows],
        "id_integer": [row.id if isinstance(row.id, int) else None for row in rows],
        "text": [row.text for row in rows],
        "payload": [row.payload for row in rows],
        "document": [row.document for row in rows],
        "chunk": [row.piece.chunk for row in rows],
        "start": [row.piece.start for row in rows],
        "end": [row.piece.end for row in rows],
    }
    vectors = [row.vectors for row in rows]
    dense = [vector.dense for vector in vectors if vector.dense is not None]
    if dense:
        numbers = np.concatenate(dense).astype(dtype, copy=False)
        columns["dense"] = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), description.dense_size)
    sparse = [vector.sparse for vector in vectors if vector.sparse is not None]
    if sparse:
        offsets = _offsets([vector.indices.size for vector in sparse])
        for name, parts in (
            ("sparse_indices", [vector.indices for vector in sparse]),
            ("sparse_values", [vector.values for vector in sparse]),
        ):
            columns[name] = arrow.ListArray.from_arrays(arrow.array(offsets), arrow.array(np.concatenate(parts)))
    colbert = [vector.colbert for vector in vectors if vector.colbert is not None]
    if colbert:
        numbers = np.concatenate(colbert).astype(dtype, copy=False).ravel()
        matrix = arrow.FixedSizeListArray.from_arrays(arrow.array(numbers), description.colbert_size)
        columns["colbert"] = arrow.ListArray.from_arrays(arrow.array(_offsets(map(len, colbert))), matrix)
    arrays = [
        column if isinstance(column := columns[field.name], arrow.Array) else arrow.array(column, field.type)
        for field in schema
    ]
    return arrow.Table.from_arrays(arrays, schema=schema)


def _offsets(lengths: Any) -> Any:
    return np.concatenate([[0], np.cumsum(list(lengths))]).astype(np.int32)
