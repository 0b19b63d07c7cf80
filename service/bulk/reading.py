"""Reading of files into lines, whatever their format, compression and encoding."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Final, cast

from service.bulk.columnar import is_arrow_file, parquet_rows, read_arrow, read_parquet
from service.bulk.compression import decompressed
from service.bulk.delimited import read_delimited
from service.bulk.field_mapping import FieldOptions, Mapper
from service.bulk.formats import BINARY, DOCUMENTS, check_text, format_of
from service.bulk.html_text import charset, read_html
from service.bulk.json_array import read_json_array
from service.bulk.json_lines import read_json_lines
from service.bulk.line import BadLine, BadLineError, Line, Origin, WrongFileError
from service.bulk.markdown import read_markdown
from service.bulk.pdf_pages import read_pdf
from service.bulk.raw_lines import LINE_MAX_BYTES, raw_lines
from service.bulk.sources import Source, is_checked_early
from service.bulk.stream_head import with_head
from service.bulk.text_encoding import as_utf8
from service.bulk.whole_file import read_plain_text

BAD_LINES_MAX: Final = 20
"""Lines at the beginning of a file of which one must be a document; otherwise the file is wrong as a whole."""

FILES_CHECKED_MAX: Final = 100
"""Maximum files whose beginning is read before the load begins. The others are judged when they are reached."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadOptions:
    """How files are read.

    Attributes:
        format: format of all files, one of `FORMATS`; None for that of each.
        encoding: encoding of text; None for that of a byte order mark, or UTF-8.
        columns: names of the columns of CSV and TSV without a header.
        fields: the fields that the user names.
    """

    format: str | None = None
    encoding: str | None = None
    columns: Sequence[str] = ()
    fields: FieldOptions = field(default_factory=FieldOptions)


class ReadProgress:
    """How far files are read. One thread reads, and any thread asks.

    Attributes:
        lines: lines that were read.
        fraction: the part of all bytes that was read, from 0 to 1; None if a size is unknown.
    """

    def __init__(self) -> None:
        self.lines = 0
        self.fraction: float | None = None
        self._of_file: Callable[[], float] = lambda: 0.0

    def of_file(self, fraction: Callable[[], float]) -> None:
        """Set what tells the part of the present file that was read."""
        self._of_file = fraction

    def observed(
        self, sources: Sequence[Source], read: Callable[[Source], Iterator[Line | BadLine]]
    ) -> Iterator[Line | BadLine]:
        """The lines of all files, whose progress is observed."""
        sizes = [source.size for source in sources]
        total = sum(size or 0 for size in sizes)
        is_known = total > 0 and None not in sizes
        before = 0
        for source, size in zip(sources, sizes, strict=True):
            for line in read(source):
                self.lines += 1
                if is_known:
                    self.fraction = (before + (size or 0) * min(self._of_file(), 1.0)) / total
                yield line
            before += size or 0


class Reader:
    """Reads files.

    Args:
        options: how they are read.
        say: prints a message.

    Attributes:
        progress: how far `lines` has come.
    """

    def __init__(self, options: ReadOptions, say: Callable[[str], None]) -> None:
        self._options = options
        self._say = say
        self._said: set[str] = set()
        self._mapper = Mapper(options.fields, self._say_once)
        self.progress = ReadProgress()

    def check(self, sources: Iterable[Source]) -> None:
        """Read the beginnings of the first files, so that a wrong one ends the load before it begins.

        Raises:
            InputError: a file is wrong as a whole.
        """
        for source in islice(filter(is_checked_early, sources), FILES_CHECKED_MAX):
            next(self._lines(source), None)

    def lines(self, sources: Iterable[Source]) -> Iterator[Line | BadLine]:
        """The lines of all files.

        Raises:
            InputError: a file is wrong as a whole.
        """
        return self.progress.observed(list(sources), self._lines)

    def _lines(self, source: Source) -> Iterator[Line | BadLine]:
        name = source.name
        with source.open() as opened:
            try:
                file = cast("io.BufferedIOBase", opened)
                if source.size:
                    size = source.size
                    # A reader of whole files may close it before its last line is taken.
                    self.progress.of_file(lambda: 1.0 if opened.closed else opened.tell() / size)
                head, file = with_head(file)
                content = decompressed(file, head, name)
                if content is not None:
                    head, file = with_head(content)
                yield from self._of_format(name, file, head)
            except OSError as error:
                raise WrongFileError(name, f"it cannot be read ({error.strerror})") from None

    def _of_format(self, name: str, file: io.BufferedIOBase, head: bytes) -> Iterator[Line | BadLine]:
        chosen = format_of(name, head, self._options.format)
        origin = Origin(name)
        if chosen in DOCUMENTS:
            try:
                yield from self._documents(chosen, file, head, origin)
            except (BadLineError, WrongFileError) as error:
                reason = error.reason if isinstance(error, WrongFileError) else str(error)
                yield BadLine(0, reason, None, replace(origin, unit=""))
            return
        if chosen not in BINARY:
            head, file = self._text(file, head, name)
        yield from _judged(self._parsed(chosen, file, head, origin), name)

    def _text(
        self, file: io.BufferedIOBase, head: bytes, name: str, declared: str | None = None
    ) -> tuple[bytes, io.BufferedIOBase]:
        text = as_utf8(file, head, self._options.encoding or declared, name)
        if text is not file:
            head, file = with_head(text)
        check_text(name, head)
        return head, file

    def _documents(self, chosen: str, file: io.BufferedIOBase, head: bytes, origin: Origin) -> Iterator[Line | BadLine]:
        """The documents of a file that is one, or has some, without regard to fields."""
        if chosen == "pdf":
            return read_pdf(file, origin)
        head, file = self._text(file, head, str(origin.file), charset(head) if chosen == "html" else None)
        if chosen == "html":
            return read_html(file, origin)
        return read_markdown(file, origin) if chosen == "markdown" else read_plain_text(file, origin)

    def _parsed(self, chosen: str, file: io.BufferedIOBase, head: bytes, origin: Origin) -> Iterator[Line | BadLine]:
        match chosen:
            case "jsonl":
                return read_json_lines(raw_lines(file), origin, self._mapper)
            case "json":
                return read_json_array(file, origin, self._mapper)
            case "parquet":
                return self._rows(file, origin)
            case "arrow":
                return read_arrow(file, origin, self._mapper, is_file=is_arrow_file(head))
            case _:
                return read_delimited(
                    raw_lines(file),
                    origin,
                    self._mapper,
                    delimiter="\t" if chosen == "tsv" else None,
                    columns=self._options.columns,
                    say=self._say_once,
                )

    def _rows(self, file: io.BufferedIOBase, origin: Origin) -> Iterator[Line | BadLine]:
        """The rows of Parquet, whose progress is that of its rows: its columns are read one after the other."""
        rows = 0
        total = parquet_rows(file, origin)
        self.progress.of_file(lambda: rows / max(total, 1))
        for line in read_parquet(file, origin, self._mapper):
            rows += 1
            yield line

    def _say_once(self, origin: Origin, text: str) -> None:
        """Say of a file what was said of no file before."""
        if text not in self._said:
            self._said.add(text)
            self._say(f"{origin.file}: {text}")


def _judged(lines: Iterator[Line | BadLine], name: str) -> Iterator[Line | BadLine]:
    """The lines of a file.

    Raises:
        WrongFileError: none of the first lines is a document.
    """
    bad: list[BadLine] = []
    size = 0
    for line in lines:
        if isinstance(line, Line):
            yield from bad
            yield line
            yield from lines
            return
        size += len(line.raw or b"")
        bad.append(line if size <= LINE_MAX_BYTES else BadLine(line.number, line.message, None, line.origin))
        if len(bad) == BAD_LINES_MAX:
            break
    if bad:
        first = bad[0]
        lines_of = f"none of the first {len(bad)} {first.origin.unit}s is a document" if len(bad) > 1 else "no document"
        reason = f"{lines_of}; {first.origin.unit} {first.number}: {first.message}"
        way = "--format names another format, and --text-field, --id-field and --payload-fields other fields"
        raise WrongFileError(name, f"{reason} ({way})")
