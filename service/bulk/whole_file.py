"""Files that are documents: plain text, and the limits of files that are read as a whole."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from service.bulk.line import BadLine, BadLineError, Line, Origin
from service.bulk.raw_lines import LINE_MAX_BYTES

TEXT_FILE_MAX_BYTES: Final = LINE_MAX_BYTES
"""Maximum size in bytes of a file of text, Markdown or HTML, like that of a line."""

PDF_MAX_BYTES: Final = 100_000_000
"""Maximum size of a PDF in bytes."""


def read_whole(file: io.BufferedIOBase, max_bytes: int) -> bytes:
    """The content of a file.

    Args:
        file: the file.
        max_bytes: maximum size.

    Raises:
        BadLineError: the file is larger.
    """
    parts: list[bytes] = []
    size = 0
    while part := file.read(min(max_bytes + 1 - size, 1_000_000)):
        parts.append(part)
        size += len(part)
        if size > max_bytes:
            raise BadLineError(f"the file must have at most {max_bytes} bytes; split it")
    return b"".join(parts)


def read_text(file: io.BufferedIOBase, max_bytes: int = TEXT_FILE_MAX_BYTES) -> str:
    """The content of a file of text in UTF-8, with line feeds alone.

    Raises:
        BadLineError: the file is larger, or not UTF-8.
    """
    try:
        text = read_whole(file, max_bytes).removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError as error:
        reason = f"the file is not valid UTF-8 (byte {error.start}); name its encoding with --encoding"
        raise BadLineError(reason) from None
    return text.replace("\r\n", "\n").replace("\r", "\n")


def document(origin: Origin, text: str, payload: dict[str, Any], *, number: int | None = None) -> Line:
    """A document of a file.

    Its id is that of the file and its number, so that equal passages of two files are two points.

    Args:
        origin: the file.
        text: the text.
        payload: the payload beside the name of the file.
        number: number of a passage; None for the whole file.
    """
    name = str(origin.file)
    identity = name if number is None else f"{name}#{number}"
    return Line(number or 1, text, identity, {"file": name, **payload}, len(text), origin)


def read_plain_text(file: io.BufferedIOBase, origin: Origin) -> Iterator[Line | BadLine]:
    """Read a file as one document; a blank one is none."""
    origin = replace(origin, unit="")
    text = read_text(file)
    if text.strip():
        yield document(origin, text, {})
