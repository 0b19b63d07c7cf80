"""What the commands that read files share: the lines of the files and the files of rejections."""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from embedder import Embedder
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import BadLine, InputError, Line
from service.bulk.reading import Reader, ReadOptions, ReadProgress
from service.bulk.sources import Source, sources_of
from service.operations import Operations
from service.settings import Settings
from service.transports.cli.messages import say
from service.transports.cli.options import Failure


@dataclass(frozen=True, slots=True, kw_only=True)
class InputOptions:
    """Which files are read, and how.

    Attributes:
        files: paths, patterns, folders and URLs of them; none, or `-`, is the standard input.
        rejects: a file for the reasons of all rejected lines.
        rejected_lines: a file for the rejected lines themselves.
        format: format of all files; None for that of each.
        encoding: encoding of text; None for that of a byte order mark, or UTF-8.
        columns: names of the columns of CSV and TSV without a header.
        id_field: field of the id.
        text_fields: fields of the text, which are joined.
        payload_fields: fields of the payload; empty for all others.
    """

    files: Sequence[str] = ()
    rejects: Path | None = None
    rejected_lines: Path | None = None
    format: str | None = None
    encoding: str | None = None
    columns: Sequence[str] = ()
    id_field: str | None = None
    text_fields: Sequence[str] = ()
    payload_fields: Sequence[str] = ()

    @property
    def fields(self) -> FieldOptions:
        """The fields that the user names."""
        return FieldOptions(self.id_field, self.text_fields, self.payload_fields)

    @property
    def read_by(self) -> dict[str, object]:
        """The options by which the lines are read from the files, by their names."""
        encoding = None if self.encoding is None else codecs.lookup(self.encoding).name
        files = {"format": self.format, "encoding": encoding, "columns": self.columns}
        return {**files, **self.fields.by_option}


def lines_of(options: InputOptions) -> tuple[Iterator[Line | BadLine], ReadProgress]:
    """The lines of all files, whose beginnings are checked, and how far they are read.

    Raises:
        Failure: a file is wrong as a whole, or would be overwritten.
    """
    reading = ReadOptions(
        format=options.format, encoding=options.encoding, columns=options.columns, fields=options.fields
    )
    reader = Reader(reading, say)
    try:
        sources = sources_of(options.files, any_format=options.format is not None, say=say)
        reader.check(sources)
    except InputError as error:
        raise Failure(str(error)) from None
    check_rejects(options, sources)
    return reader.lines(sources), reader.progress


def check_rejects(options: InputOptions, sources: Sequence[Source]) -> None:
    """Check that no file of rejections is one that is read.

    Raises:
        Failure: one is.
    """
    written = {path.resolve() for path in (options.rejects, options.rejected_lines) if path is not None}
    for source in sources:
        if source.path is not None and source.path.resolve() in written:
            raise Failure(f"{source.name} is read, and cannot take the rejected lines; name another file for them")


def opened(stack: ExitStack, path: Path | None, option: str) -> BinaryIO | None:
    """Open a file for rejections, which the stack closes; None without a path.

    Raises:
        Failure: it cannot be written.
    """
    if path is None:
        return None
    try:
        file = path.open("wb")
    except OSError as error:
        raise Failure(f"{option} cannot be written ({error.strerror}): {path}") from None
    stack.callback(_close, file)
    return file


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # each line was flushed when it was written, and failed then
        file.close()


def operations_without_store(settings: Settings) -> Operations:
    """The operations of the loaded model, which open the store only when it is needed."""
    return Operations(settings, Embedder.load(settings.model_options))
