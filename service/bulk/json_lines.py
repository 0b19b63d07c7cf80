"""JSON Lines as documents."""

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
    """One document.

    Attributes:
        number: of the line, from 1, over all files.
        text: to embed.
        id: as in `qdrant.ids`, or None.
        payload: a JSON object.
        size: bytes that it was read from.
    """

    number: int
    text: str
    id: int | str | None
    payload: dict[str, Any]
    size: int = 0

    def key(self, scope: str) -> Hashable:
        """What makes it the same point as another line, where derived ids belong to this scope."""
        if self.id is None:
            return text_id(self.text, scope)
        try:
            return point_id(self.id, scope)
        except InvalidRequest:  # which the worker says better
            return (self.id,)


class BadLineError(Exception):
    """A line is not a document; the message says why, without its content."""


def parse_line(number: int, raw: bytes) -> Line:
    """Read a document.

    Raises:
        BadLineError: the line is not a document.
    """
    try:
        value = json.loads(raw.decode("utf-8-sig" if number == 1 else "utf-8"))
    except UnicodeDecodeError as error:
        raise BadLineError(f"not UTF-8 (byte {error.start})") from None
    except ValueError as error:
        raise BadLineError(f"not JSON (column {getattr(error, 'colno', '?')})") from None
    except RecursionError:
        raise BadLineError("nested too deeply") from None
    if not isinstance(value, dict):
        raise BadLineError(f"must be an object, got {kind_of(value)}")
    unknown = sorted(value.keys() - {"text", "id", "payload"})
    if unknown:
        raise BadLineError(f"unknown field {unknown[0][:64]!r}; a line has text, id and payload")
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
