"""Parsing of JSON Lines into documents."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from embedder import InvalidRequest
from qdrant_sink import point_id, text_id
from service.validation import is_unicode, kind_of


@dataclass(frozen=True, slots=True)
class Line:
    """One line, which is a document.

    Attributes:
        number: number of the line, from 1, counted over all files.
        text: the text to embed.
        id: the id, as in `qdrant.ids`; None derives it from the text.
        payload: the payload, a JSON object.
        size: size of the line in bytes.
    """

    number: int
    text: str
    id: int | str | None
    payload: dict[str, Any]
    size: int = 0

    def key(self, scope: str) -> Hashable:
        """A key that is equal for lines of the same point, with ids derived from this scope."""
        if self.id is None:
            return text_id(self.text, scope)
        try:
            return point_id(self.id, scope)
        except InvalidRequest:  # the ingest rejects it with a better message
            return (self.id,)


class BadLineError(Exception):
    """The line is not a document. The message says why and does not quote the line."""


def parse_line(number: int, raw: bytes) -> Line:
    """Parse a line.

    Raises:
        BadLineError: the line is not a document.
    """
    try:
        # without the line break: a line that ends too early is wrong where it ends, not in column 1 of a next line
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"the line is not valid UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise BadLineError(f"the line is not valid JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise BadLineError("the line is nested too deeply") from None
    if not isinstance(value, dict):
        raise BadLineError(f"the line must be an object, got {kind_of(value)}")
    unknown = sorted(value.keys() - {"text", "id", "payload"})
    if unknown:
        raise BadLineError(f"unknown field {unknown[0][:64]!r}; a line may have text, id and payload")
    text, identity, payload = value.get("text"), value.get("id"), value.get("payload", {})
    if not isinstance(text, str):
        raise BadLineError(f"text must be a string, got {kind_of(text)}")
    if not is_unicode(text):
        raise BadLineError("text is not valid Unicode (a lone surrogate)")
    if not isinstance(payload, dict):
        raise BadLineError(f"payload must be an object, got {kind_of(payload)}")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, int | str)):
        raise BadLineError(f"id must be an integer or a string, got {kind_of(identity)}")
    return Line(number, text, identity, payload, len(raw))
