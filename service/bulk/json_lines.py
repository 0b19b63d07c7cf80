"""Parsing of JSON Lines into documents."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from qdrant_sink import kind_of
from service.bulk.field_mapping import LayoutChooser, Mapper, of_field, required_text
from service.bulk.line import NO_FILE, BadLine, BadLineError, Line, Origin
from service.bulk.raw_lines import LINE_MAX_BYTES, LongLine
from service.validation import BYTE_ORDER_MARK

_BYTE_ORDER_MARK = BYTE_ORDER_MARK.encode()


def is_blank(raw: bytes) -> bool:
    """Whether a line holds no document: it is empty, or all that an editor wrote into an empty file."""
    return not raw.removeprefix(_BYTE_ORDER_MARK).strip()


def parse_line(number: int, raw: bytes, origin: Origin = NO_FILE) -> Line:
    """Parse a line that has no other fields than text, id and payload.

    Raises:
        BadLineError: the line is not a document.
    """
    return plain_line(origin, number, parse_object(raw), len(raw))


def parse_object(raw: bytes) -> dict[str, Any]:
    """Parse a line into the object that it must be.

    Raises:
        BadLineError: the line is not an object.
    """
    try:
        # Each file may begin with a byte order mark. The line break is removed because a line that ends too early is
        # wrong where it ends, not in column 1 of a next line.
        value = json.loads(raw.decode().removeprefix(BYTE_ORDER_MARK).rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"the line is not valid UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise BadLineError(f"the line is not valid JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise BadLineError("the line is nested too deeply") from None
    if not isinstance(value, dict):
        raise BadLineError(f"the line must be an object, got {kind_of(value)}")
    return value


def plain_line(origin: Origin, number: int, value: dict[str, Any], size: int) -> Line:
    """The document of an object that has no other fields than text, id and payload.

    Raises:
        BadLineError: the text is missing, or there are other fields.
    """
    text = value.get("text")
    needed = "text is required; " if text is None else ""
    for name in sorted(value.keys() - {"text", "id", "payload"}):
        if value[name] is not None:
            raise BadLineError(f"{needed}unknown field {of_field(name)}; a line may have text, id and payload")
    return Line(number, required_text("text", text), value.get("id"), value.get("payload"), size, origin)


def read_json_lines(
    lines: Iterable[bytes | LongLine], origin: Origin = NO_FILE, mapper: Mapper | None = None
) -> Iterator[Line | BadLine]:
    """Parse the lines of one file. Blank lines are no documents.

    Args:
        lines: the lines with their line breaks.
        origin: where they come from.
        mapper: chooses the layout of the file by its first line; None for text, id and payload.
    """
    chooser = None if mapper is None else LayoutChooser(mapper, origin)
    for number, raw in enumerate(lines, start=1):
        if isinstance(raw, LongLine):
            message = f"the line must have at most {LINE_MAX_BYTES} bytes, got {raw.size}; shorten text or payload"
            yield BadLine(number, message, None, origin)
        elif not is_blank(raw):
            try:
                value = parse_object(raw)
            except BadLineError as error:
                yield BadLine(number, str(error), raw.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n"), origin)
                continue
            layout = None if chooser is None else chooser.layout(value)
            try:
                if layout is None:
                    yield plain_line(origin, number, value, len(raw))
                else:
                    yield layout.line(origin, number, value, len(raw))
            except BadLineError as error:
                draft = raw.removeprefix(_BYTE_ORDER_MARK).rstrip(b"\r\n") if layout is None else layout.draft(value)
                yield BadLine(number, str(error), draft, origin)
