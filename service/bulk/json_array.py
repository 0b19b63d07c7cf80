"""Parsing of a JSON array of objects, item by item."""

from __future__ import annotations

import codecs
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Final

from qdrant_sink import kind_of
from service.bulk.field_mapping import LayoutChooser, Mapper
from service.bulk.json_lines import plain_line
from service.bulk.line import BadLine, BadLineError, Line, Origin, WrongFileError
from service.bulk.raw_lines import LINE_MAX_BYTES

PART_BYTES: Final = 262_144
"""Bytes that are read at a time, and more if an item is longer."""

_CUT_MAX = 16
"""Maximum characters between an error and the end of what is read, if the error is that the rest is not read yet."""

_BLANKS = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


class _Items:
    """The items of an array.

    Args:
        file: the array in UTF-8.
        name: name of the file.
    """

    def __init__(self, file: io.BufferedIOBase, name: str) -> None:
        self._file = file
        self._name = name
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._text = ""
        self._index = 0
        self._line = 1
        self._is_complete = False

    def __iter__(self) -> Iterator[tuple[Any, int]]:
        """Each item, and its size in characters."""
        if self._next() != "[":
            raise self._wrong("a JSON array begins with [")
        self._index += 1
        if self._next() == "]":
            self._index += 1
        else:
            while True:
                begin = self._index
                value = self._value()
                yield value, self._index - begin
                following = self._next()
                self._index += 1
                if following == "]":
                    break
                if following != ",":
                    raise self._wrong("after an item, a comma or ] was expected")
                self._next()
        if self._next():
            raise self._wrong("there is more after the array")

    def _value(self) -> Any:
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._index)
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated string") or error.pos > len(self._text) - _CUT_MAX
                if not is_cut or not self._more():
                    self._index = min(error.pos, len(self._text))
                    raise self._wrong("it is not valid JSON") from None
                continue
            except RecursionError:
                raise self._wrong("an item is nested too deeply") from None
            # A number that ends where the buffer ends may go on.
            if end < len(self._text) or not self._more():
                self._index = end
                return value

    def _next(self) -> str:
        """The next character that is not blank; empty at the end."""
        while True:
            match = _BLANKS.match(self._text, self._index)
            self._index = match.end() if match else self._index
            if self._index < len(self._text):
                return self._text[self._index]
            if not self._more():
                return ""

    def _more(self) -> bool:
        """Read more, as much again as the item has so far. False at the end of the file."""
        if self._is_complete:
            return False
        self._line += self._text.count("\n", 0, self._index)
        self._text = self._text[self._index :]
        self._index = 0
        if len(self._text) > LINE_MAX_BYTES:
            raise self._wrong(f"an item must have at most {LINE_MAX_BYTES} characters; is a quote not closed?")
        part = self._file.read(max(PART_BYTES, len(self._text)))
        try:
            self._text += self._decode(part, final=not part)
        except UnicodeDecodeError:
            raise self._wrong("after this line it is not valid UTF-8; name its encoding with --encoding") from None
        self._is_complete = not part
        return True

    def _wrong(self, reason: str) -> WrongFileError:
        line = self._line + self._text.count("\n", 0, self._index)
        return WrongFileError(self._name, f"{reason} (line {line})")


def read_json_array(file: io.BufferedIOBase, origin: Origin, mapper: Mapper) -> Iterator[Line | BadLine]:
    """Parse an array of objects.

    Args:
        file: the array in UTF-8.
        origin: the file.
        mapper: chooses the layout by the first item.

    Raises:
        WrongFileError: the file is not a JSON array, or is not valid JSON from some line on.
    """
    origin = replace(origin, unit="item")
    chooser = LayoutChooser(mapper, origin)
    for number, (value, size) in enumerate(_Items(file, str(origin.file)), start=1):
        if not isinstance(value, dict):
            message = f"the item must be an object, got {kind_of(value)}"
            yield BadLine(number, message, json.dumps(value).encode(), origin)
            continue
        layout = chooser.layout(value)
        try:
            if layout is None:
                yield plain_line(origin, number, value, size)
            else:
                yield layout.line(origin, number, value, size)
        except BadLineError as error:
            draft = json.dumps(value).encode() if layout is None else layout.draft(value)
            yield BadLine(number, str(error), draft, origin)
