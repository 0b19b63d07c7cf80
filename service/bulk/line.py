"""A line: one document of a file, whatever the format of the file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from qdrant_sink import Refusal, conform_id, is_derived, text_id

STANDARD_INPUT: Final = "-"
"""Name of the standard input, as an argument and in rejections."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where lines come from.

    Attributes:
        file: name of the file, as it was given or found; None if there is no file.
        unit: what is counted in it: `line`, `row`, `item` or `page`; empty if the file is one document.
    """

    file: str | None = None
    unit: str = "line"


NO_FILE: Final = Origin()
"""The origin of lines that come from no file."""


@dataclass(frozen=True, slots=True)
class Line:
    """One document.

    Attributes:
        number: number of the line, row, item or page in its file, from 1.
        text: the text to embed.
        id: the id, an item of `qdrant.ids`; None derives it from the text.
        payload: the payload, an item of `qdrant.payloads`; None is an empty one.
        size: size of the line in bytes.
        origin: the file, and what is counted in it.
    """

    number: int
    text: str
    id: object
    payload: object
    size: int = 0
    origin: Origin = NO_FILE

    def key(self, scope: str) -> Hashable:
        """A key that is equal for lines of the same point, with ids derived from this scope."""
        if self.id is None:
            return text_id(self.text, scope)
        identity = conform_id(self.id, scope)
        return (self.origin.file, self.number) if isinstance(identity, Refusal) else identity

    def content(self) -> bytes | None:
        """A digest that is equal for lines of one point that store the same; None if the payload cannot be stored.

        The payload of a point has the id of its line unless the point has that id itself.
        """
        identity = self.id if isinstance(self.id, int | str) and is_derived(self.id) else None
        try:
            payload = json.dumps([identity, self.payload or {}], sort_keys=True).encode()
        except (TypeError, ValueError, RecursionError):
            return None
        digest = hashlib.blake2b(payload, digest_size=16, usedforsecurity=False)
        digest.update(b"\0" + self.text.encode("utf-8", "surrogatepass"))
        return digest.digest()

    def repeats(self, other: Line) -> bool:
        """Whether two lines of the same point are the same document."""
        content = self.content()
        return content is not None and self.id == other.id and content == other.content()


@dataclass(frozen=True, slots=True)
class BadLine:
    """A line that is not a document.

    Attributes:
        number: as in `Line`.
        message: why it is not one, without quoting it.
        raw: the line as JSON to correct, in UTF-8 without its line break; None if it cannot be given.
        origin: as in `Line`.
        is_part: whether it is a chunk of a document that is counted already.
    """

    number: int
    message: str
    raw: bytes | None = None
    origin: Origin = NO_FILE
    is_part: bool = False


class BadLineError(Exception):
    """The line is not a document. The message says why and does not quote the line."""


class InputError(Exception):
    """The load cannot go on with its input. The message says why, and the way out."""


class WrongFileError(InputError):
    """A file is wrong as a whole.

    Args:
        file: name of the file.
        reason: what is wrong, and the way out.
    """

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(f"{'the standard input' if file == STANDARD_INPUT else file}: {reason}")
        self.reason = reason


class Placed(Protocol):
    """What has a place in a file.

    Attributes:
        number: as in `Line`.
        origin: as in `Line`.
    """

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def origin(self) -> Origin: ...  # noqa: D102


def position(line: Placed, chunk: int | None = None) -> Mapping[str, Any]:
    """Where a line is, as JSON values: its file if there is one, its number and the number of a chunk."""
    where: dict[str, Any] = {} if line.origin.file is None else {"file": line.origin.file}
    if line.origin.unit:
        where[line.origin.unit] = line.number
    return where if chunk is None else {**where, "chunk": chunk}


def named(line: Placed) -> str:
    """Where a line is, in a sentence: `line 7 of a.jsonl`."""
    within = f"{line.origin.unit} {line.number}" if line.origin.unit else ""
    return " of ".join(part for part in (within, line.origin.file) if part)


def as_json(line: Line | BadLine) -> bytes | None:
    """A line to correct and to load again, as JSON in UTF-8 without a line break; None if it cannot be given."""
    if isinstance(line, BadLine):
        return line.raw
    fields = {"text": line.text, "id": line.id, "payload": line.payload}
    try:
        return json.dumps({name: value for name, value in fields.items() if value is not None}).encode()
    except (TypeError, ValueError, RecursionError):
        return None
