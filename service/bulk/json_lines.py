"""Parsing of JSON Lines into documents."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass

from qdrant_sink import Refusal, conform_id, kind_of, text_id
from service.validation import BYTE_ORDER_MARK, is_unicode


@dataclass(frozen=True, slots=True)
class Line:
    """One line, which is a document.

    Attributes:
        number: number of the line, from 1, counted over all files.
        text: the text to embed.
        id: the id, an item of `qdrant.ids`; None derives it from the text.
        payload: the payload, an item of `qdrant.payloads`; None is an empty one.
        size: size of the line in bytes.
    """

    number: int
    text: str
    id: object
    payload: object
    size: int = 0

    def key(self, scope: str) -> Hashable:
        """A key that is equal for lines of the same point, with ids derived from this scope."""
        if self.id is None:
            return text_id(self.text, scope)
        identity = conform_id(self.id, scope)
        return (self.number,) if isinstance(identity, Refusal) else identity


class BadLineError(Exception):
    """The line is not a document. The message says why and does not quote the line."""


def is_blank(raw: bytes) -> bool:
    """Whether a line holds no document: it is empty, or all that an editor wrote into an empty file."""
    return not raw.removeprefix(BYTE_ORDER_MARK.encode()).strip()


def parse_line(number: int, raw: bytes) -> Line:
    """Parse a line.

    Raises:
        BadLineError: the line is not a document.
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
    text = value.get("text")
    needed = "text is required; " if text is None else ""
    for name in sorted(value.keys() - {"text", "id", "payload"}):
        if value[name] is not None:
            raise BadLineError(f"{needed}unknown field {name[:64]!r}; a line may have text, id and payload")
    if text is None:
        raise BadLineError("text is required")
    if not isinstance(text, str):
        raise BadLineError(f"text must be a string, got {kind_of(text)}")
    if not is_unicode(text):
        raise BadLineError("text is not valid Unicode (a lone surrogate)")
    return Line(number, text, value.get("id"), value.get("payload"), len(raw))
