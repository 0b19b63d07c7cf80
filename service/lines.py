"""Lines of JSON as documents, and documents as jobs: what a load from the command line reads."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from embedder.errors import InvalidRequest
from qdrant_sink.points import point_id, text_id
from service.fields import kind_of

Json = dict[str, Any]

JOB_TEXTS = 500
JOB_CHARACTERS = 1_000_000
JOB_BYTES = 8_000_000
"""Of one job, texts and payloads: enough for the model to be busy, little enough to be lost and repeated."""


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
    payload: Json
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
    """A line that is no document; the message says why, without its content."""


def parse_line(number: int, raw: bytes) -> Line:
    """A document.

    Raises:
        BadLineError: the line is none.
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
    if not isinstance(payload, dict):
        raise BadLineError(f"payload must be an object, got {kind_of(payload)}")
    if identity is not None and (isinstance(identity, bool) or not isinstance(identity, int | str)):
        raise BadLineError(f"id must be an integer or a string, got {kind_of(identity)}")
    return Line(number, text, identity, payload, len(raw))


class Job:
    """Lines that go together: with ids or without, each point once.

    Args:
        scope: of derived ids.
    """

    def __init__(self, scope: str) -> None:
        self.lines: list[Line] = []
        self.keys: set[Hashable] = set()
        self._scope = scope
        self._characters = 0
        self._bytes = 0

    def takes(self, line: Line) -> bool:
        """Whether there is room for this one; an empty job takes any."""
        if not self.lines:
            return True
        fits = (
            len(self.lines) < JOB_TEXTS
            and self._characters + len(line.text) <= JOB_CHARACTERS
            and self._bytes + line.size <= JOB_BYTES
        )
        return fits and not self.has(line)

    def has(self, line: Line) -> bool:
        """Whether a line of the same point is in."""
        return line.key(self._scope) in self.keys

    def add(self, line: Line) -> None:
        """Put a line in."""
        self.lines.append(line)
        self.keys.add(line.key(self._scope))
        self._characters += len(line.text)
        self._bytes += line.size


def jobs(lines: Iterable[Line], scope: str) -> Iterator[Job]:
    """Lines in jobs, those with ids apart from those without. A point that comes twice is in two jobs, in order.

    Args:
        lines: documents.
        scope: of derived ids.
    """
    filling = {True: Job(scope), False: Job(scope)}
    for line in lines:
        named = line.id is not None
        for kind, full in ((named, not filling[named].takes(line)), (not named, filling[not named].has(line))):
            if full:
                yield filling[kind]
                filling[kind] = Job(scope)
        filling[named].add(line)
    yield from (job for job in filling.values() if job.lines)
