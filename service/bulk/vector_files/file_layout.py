"""What a Parquet file of vectors has: its description, its columns, its kinds of vectors and their sizes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from embedder import KINDS, Kind
from qdrant_sink import ModelIdentity
from service.bulk.extras import library
from service.bulk.field_mapping import FieldOptions, of_field
from service.bulk.line import WrongFileError
from service.bulk.stream_head import BUFFER_BYTES
from service.bulk.vector_files.columns import COLUMNS
from service.bulk.vector_files.description import DescriptionError, Part
from service.bulk.vector_files.points import column_names
from service.operations import VectorSource

_OWN = (
    "id",
    "id_integer",
    "payload",
    "document",
    "chunk",
    "start",
    "end",
    *(name for kind in KINDS for name in COLUMNS[kind]),
)
_SHARED = ("model", "revision", "vocabulary", "dropped_ids", "kinds", "dense_size", "colbert_size")
"""What the descriptions of files that are loaded together must share."""

CHANGED: Final = (
    "its rows differ from those that embed has written: it is damaged, or was changed. Delete it and the parts after "
    "it, and give the command of embed again; or write it without its metadata, to load it as a file of another program"
)
"""Why a file is refused whose checksums are other ones."""

_CHUNK = ("document", "chunk", "start", "end")


@dataclass(frozen=True, slots=True)
class FileLayout:
    """What a file has.

    Attributes:
        part: its description; None for a file of another program.
        kinds: its kinds of vectors.
        sizes: numbers of a dense vector and of a ColBERT row, as far as the file has them.
        id: column of the id; None without one.
        text: column of the text.
        payload: columns that are fields of the payload.
        is_chunked: whether its rows are chunks of documents.
        columns: columns that are read beside those of vectors.
    """

    part: Part | None
    kinds: tuple[Kind, ...]
    sizes: dict[Kind, int]
    id: str | None
    text: str
    payload: tuple[str, ...]
    is_chunked: bool
    columns: tuple[str, ...]

    def source(self, model: ModelIdentity | None) -> VectorSource:
        """What its vectors are.

        Args:
            model: model of vectors of which the file names none.
        """
        if self.part is None:
            return VectorSource(self.kinds, self.sizes.get("dense"), self.sizes.get("colbert"), model)
        own = self.part.description
        return VectorSource(self.kinds, own.dense_size, own.colbert_size, own.identity)

    def difference(self, other: FileLayout) -> str | None:
        """How the vectors of another file differ from these, in words; None if both can be loaded together."""
        if (self.part is None) != (other.part is None):
            return "only one of the two says what its vectors are"
        if self.part is not None and other.part is not None:
            difference = self.part.description.difference(other.part.description, names=_SHARED)
            if difference is not None:
                return difference
        for what, own, others in (
            ("kinds", ", ".join(self.kinds), ", ".join(other.kinds)),
            ("sizes", self.sizes, other.sizes),
            ("chunks", self.is_chunked, other.is_chunked),
        ):
            if own != others:
                return f"{what} {others}, not {own}"
        return None


def opened(file: io.BufferedIOBase, name: str) -> Any:
    """Open a Parquet file. Other errors are those of pyarrow.

    Raises:
        WrongFileError: it is a pipe.
    """
    parquet = library("pyarrow.parquet", "--vectors-in")
    if not file.seekable():
        raise WrongFileError(name, "Parquet is read from its end: give a file, not a pipe, and not compressed again")
    return parquet.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES)


def layout_of(file: Any, name: str, fields: FieldOptions, kinds: Sequence[Kind]) -> FileLayout:
    """What a file has. Other errors are those of pyarrow.

    Args:
        file: the open Parquet file.
        name: its name.
        fields: the columns that the user names.
        kinds: kinds of vectors that the user wants; empty for all that the file has.

    Raises:
        WrongFileError: it has no text or no vectors, lacks a kind that is wanted or what its description names, or a
            column has a wrong type.
    """
    try:
        part = Part.read(file.metadata.metadata)
    except DescriptionError as error:
        raise WrongFileError(name, str(error)) from None
    schema = file.schema_arrow
    names = list(schema.names)
    if part is not None and not set(column_names(part.description)) <= set(names):
        raise WrongFileError(name, CHANGED)
    available = tuple(kind for kind in KINDS if set(COLUMNS[kind]) <= set(names))
    missing = next((kind for kind in kinds if kind not in available), None)
    if missing is not None or not available:
        wanted = " and ".join(COLUMNS[missing or "dense"])
        reason = f"there is no column {wanted}" if missing else "it has no column dense, sparse_indices or colbert"
        raise WrongFileError(name, f"{reason}; --vectors-in reads what embed writes (docs/bulk.md has the columns)")
    text = fields.texts[0] if fields.texts else "text"
    identity = fields.id or ("id" if "id" in names else None)
    payload = tuple(fields.payload) or _rest(names, text, identity)
    for column in (text, *((identity,) if fields.id else ()), *fields.payload):
        if column not in names:
            raise WrongFileError(name, f"there is no column {of_field(column)}; name the columns that it has")
    is_chunked = "chunk" in names
    if is_chunked and not set(_CHUNK) <= set(names):
        raise WrongFileError(name, f"rows with a column chunk need the columns {', '.join(_CHUNK)} too")
    chosen = tuple(kind for kind in available if not kinds or kind in kinds)
    read = [text, *payload, *(_CHUNK if is_chunked else ())]
    read += [column for column in (identity, "id_integer", "payload") if column in names]
    columns = tuple(column for column in names if column in read)
    return FileLayout(part, chosen, _sizes(file, name, chosen, part), identity, text, payload, is_chunked, columns)


def _rest(names: Sequence[str], text: str, identity: str | None) -> tuple[str, ...]:
    """The columns that have no other use."""
    used = {*_OWN, text, identity, *_CHUNK}
    return tuple(name for name in names if name and name not in used)


def _sizes(file: Any, name: str, kinds: Sequence[Kind], part: Part | None) -> dict[Kind, int]:
    """The numbers of a dense vector and of a ColBERT row."""
    sizes: dict[Kind, int] = {}
    for kind in kinds:
        for column in COLUMNS[kind]:
            check_type(file.schema_arrow.field(column).type, 2 if kind == "colbert" else 1, name, column)
        if kind == "sparse":
            continue
        if part is not None:
            sizes[kind] = part.description.dense_size if kind == "dense" else part.description.colbert_size
            continue
        type_ = file.schema_arrow.field(kind).type
        if kind == "colbert":
            type_ = type_.value_type
        sizes[kind] = type_.list_size if hasattr(type_, "list_size") else _first_size(file, kind)
        if sizes[kind] < 1:
            raise WrongFileError(name, f"{kind}: its first row has no numbers, so the size of its vectors is unknown")
    return sizes


def _first_size(file: Any, kind: Kind) -> int:
    batch = next(iter(file.iter_batches(batch_size=1, columns=[kind])), None)
    value = batch.column(0)[0].as_py() if batch is not None and batch.num_rows else None
    if kind == "colbert":
        value = value[0] if value else None
    return len(value) if value else 0


def check_type(type_: Any, depth: int, name: str, column: str) -> None:
    """Check that a column has lists of numbers.

    Args:
        type_: its type, of pyarrow.
        depth: how deeply the lists are nested; 1 for lists of numbers.
        name: name of the file.
        column: name of the column.

    Raises:
        WrongFileError: it has other values.
    """
    arrow = library("pyarrow", "--vectors-in")
    nested = 0
    inner = type_
    while hasattr(inner, "value_field"):
        nested += 1
        inner = inner.value_type
    is_number = arrow.types.is_integer(inner) or arrow.types.is_floating(inner)
    if nested != depth or not is_number:
        wanted = f"{'lists of ' * depth}numbers"
        raise WrongFileError(name, f"the column {column} must have {wanted}, got {type_!s:.60}")
