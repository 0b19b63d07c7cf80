"""Parsing of JSON in parts, between which other threads can run: a parser holds the interpreter until it has ended.

The values are those of one step. Lists and objects that are larger than a portion are divided at their commas.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import numpy as np
from numpy.typing import NDArray

from embedder import InvalidRequest, check_cancelled
from service.validation import BYTE_ORDER_MARK
from service.wire.json_scan import JsonIndex, JsonScan

_MARK: Final = BYTE_ORDER_MARK.encode()
_SPACE: Final = re.compile(rb"[ \t\n\r]*+")
_PLAIN: Final = re.compile(rb'[^"\\\x00-\x1f]*+')
"""Bytes of a string without escapes."""

_ESCAPED: Final = re.compile(
    rb"""(?:[^"\\\x00-\x1f]++                        # no escape
        |\\["\\/bfnrt]
        |\\u(?:[0-9abcefABCEF][0-9a-fA-F]{3}
              |[dD][0-7c-fC-F][0-9a-fA-F]{2}
              |[dD][89abAB][0-9a-fA-F]{2}             # the first half of a character, and its second half if it follows
               (?:\\u[dD][c-fC-F][0-9a-fA-F]{2}|(?=[^\\]|\\[^u]|\\u[^dD]|\\u[dD][^c-fC-F])))
        )*+""",
    re.VERBOSE,
)
"""Bytes of a string with whole escapes."""

_STEP_MIN_BYTES: Final = 16
"""Minimum bytes of a string that are parsed in one step, so that every escape fits."""

_CLOSING: Final = {ord("["): ord("]"), ord("{"): ord("}")}
_LIST: Final = ("[", "]")
_OBJECT: Final = ("{", "}")


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


_DECODER: Final = json.JSONDecoder(parse_constant=_no_constant)


def parse_json(body: bytes | bytearray, scan: JsonScan, *, root: str = "the body") -> Any:
    """Parse a body as strict JSON.

    Args:
        body: the body in UTF-8, with or without a byte order mark.
        scan: the scan of the body.
        root: name of the body in errors.

    Raises:
        InvalidRequest: the body is not valid JSON.
    """
    try:
        return _Body(body, scan.index).value()
    except _NotUtf8 as error:
        raise InvalidRequest(f"{root} is not valid UTF-8 (byte {error.offset})") from None
    except _NotJson as error:
        line, column = _line_and_column(body, error.offset)
        raise InvalidRequest(f"{root} is not valid JSON (line {line}, column {column})") from None
    except ValueError:  # NaN, Infinity, or an integer of thousands of digits
        raise InvalidRequest(f"{root} is not valid JSON (a number that JSON cannot represent)") from None


class _NotJson(Exception):
    """The JSON is invalid.

    Attributes:
        offset: offset of the error in bytes.
    """

    def __init__(self, offset: int) -> None:
        super().__init__(offset)
        self.offset = offset


class _NotUtf8(_NotJson):
    """The bytes are no UTF-8."""


class _Body:
    """A body that is parsed.

    Args:
        body: the body.
        index: where its commas and brackets are; None to parse it in one step.
    """

    def __init__(self, body: bytes | bytearray, index: JsonIndex | None) -> None:
        self._body = body
        self._view = memoryview(body)
        self._index = index
        self._portion_bytes = len(body) if index is None else index.portion_bytes

    def value(self) -> Any:
        """The value of the whole body."""
        start = len(_MARK) if self._body.startswith(_MARK) else 0
        return self._value(start, len(self._body), level=0)

    def _value(self, start: int, end: int, level: int) -> Any:
        """The value between two offsets, inside of so many lists and objects."""
        opening, index = self._after_space(start, end), self._index
        if index is None or end - opening <= self._portion_bytes:
            return self._parsed(start, end)
        if self._body[opening] == ord('"'):
            text, behind = self._string(opening, end)
            if behind < end:
                raise _NotJson(behind)
            return text
        if self._body[opening] not in _CLOSING:
            return self._parsed(start, end)
        first, last = np.searchsorted(index.offsets, [opening, end]).tolist()
        ends = np.flatnonzero(index.depths[first + 1 : last] <= level)
        if not len(ends):
            raise _NotJson(end if index.open_string is None else index.open_string)
        inner = slice(first + 1, first + 1 + int(ends[0]))
        closing = int(index.offsets[inner.stop])
        commas = index.offsets[inner][index.is_comma[inner] & (index.depths[inner] == level + 1)]
        portions = self._portions(commas, opening + 1, closing)
        if self._after_space(opening + 1, closing) == closing:
            portions = iter(())
        is_list = self._body[opening] == ord("[")
        value: Any = self._list(portions, level + 1) if is_list else self._object(portions, level + 1)
        behind = self._after_space(closing + 1, end)
        if self._body[closing] != _CLOSING[self._body[opening]]:
            raise _NotJson(closing)
        if behind < end:
            raise _NotJson(behind)
        return value

    def _list(self, portions: Iterator[tuple[int, int]], level: int) -> list[Any]:
        items: list[Any] = []
        for start, end in portions:
            if end - start > self._portion_bytes:
                items.append(self._value(start, end, level))
            else:
                items += self._parsed(start, end, _LIST)
        return items

    def _object(self, portions: Iterator[tuple[int, int]], level: int) -> dict[str, Any]:
        fields: dict[str, Any] = {}
        for start, end in portions:
            if end - start > self._portion_bytes:
                opening = self._after_space(start, end)
                if self._body[opening] != ord('"'):
                    raise _NotJson(opening)
                name, colon = self._string(opening, end)
                if colon == end or self._body[colon] != ord(":"):
                    raise _NotJson(colon)
                fields[name] = self._value(colon + 1, end, level)
            else:
                fields |= self._parsed(start, end, _OBJECT)
        return fields

    def _parsed(self, start: int, end: int, brackets: tuple[str, str] = ("", "")) -> Any:
        """Parse the text between two offsets in one step, with brackets around it."""
        check_cancelled()
        opening, closing = brackets
        if opening and self._after_space(start, end) == end:
            raise _NotJson(end)
        try:
            text = str(self._view[start:end], "utf-8")
            return _DECODER.decode(opening + text + closing)
        except UnicodeDecodeError as error:
            raise _NotUtf8(start + error.start) from None
        except json.JSONDecodeError as error:
            before = text[: max(0, error.pos - len(opening))]
            raise _NotJson(start + len(before.encode("utf-8"))) from None

    def _string(self, opening: int, end: int) -> tuple[str, int]:
        """Parse the string that begins at an offset, in steps, and return it and the offset behind it and its space."""
        closing = self._run_end(_PLAIN, opening + 1, end)
        if self._is_quote(closing, end):
            parts = [self._text(opening + 1, closing)]  # decoded without a second copy
        else:
            parts, closing = self._unescaped(opening + 1, end)
            if not self._is_quote(closing, end):
                raise _NotJson(opening if closing == end else closing)
        return "".join(parts), self._after_space(closing + 1, end)

    def _unescaped(self, start: int, end: int) -> tuple[list[str], int]:
        """Parse the text of a string from an offset on; return it in parts, and the offset of what ends it."""
        parts: list[str] = []
        while start < end:
            check_cancelled()
            step_end = min(end, start + max(_STEP_MIN_BYTES, self._portion_bytes))
            match = _ESCAPED.match(self._body, start, step_end)
            stop = start if match is None else self._character_start(match.end(), end)
            if stop <= start:
                break
            text = self._text(start, stop)
            parts.append(_DECODER.decode(f'"{text}"') if "\\" in text else text)
            start = stop
        return parts, start

    def _run_end(self, pattern: re.Pattern[bytes], start: int, end: int) -> int:
        """The offset of the first byte that a pattern does not match, looked for in steps."""
        while start < end:
            check_cancelled()
            step_end = min(end, start + self._portion_bytes)
            match = pattern.match(self._body, start, step_end)
            start = start if match is None else match.end()
            if start < step_end:
                break
        return start

    def _text(self, start: int, end: int) -> str:
        try:
            return str(self._view[start:end], "utf-8")
        except UnicodeDecodeError as error:
            raise _NotUtf8(start + error.start) from None

    def _is_quote(self, offset: int, end: int) -> bool:
        return offset < end and self._body[offset] == ord('"')

    def _character_start(self, offset: int, end: int) -> int:
        """The offset, or that of the first byte of the character within which it is."""
        start = offset
        while start < end and self._body[start] & 0xC0 == 0x80:
            start -= 1
        return start if start < end and self._body[start] >= 0xC0 else offset

    def _after_space(self, start: int, end: int) -> int:
        space = _SPACE.match(self._body, start, end)
        return start if space is None else space.end()

    def _portions(self, commas: NDArray[np.int32], start: int, end: int) -> Iterator[tuple[int, int]]:
        """Divide a text at its commas into portions, of which only those of a single item may be too large."""
        count = 0
        while end - start > self._portion_bytes and count < len(commas):
            fitting = int(np.searchsorted(commas, start + self._portion_bytes, side="right"))
            count = max(count + 1, fitting)
            comma = int(commas[count - 1])
            yield start, comma
            start = comma + 1
        yield start, end


def _line_and_column(body: bytes | bytearray, offset: int) -> tuple[int, int]:
    start = len(_MARK) if body.startswith(_MARK) else 0
    newline = body.rfind(b"\n", start, offset)
    line_start = start if newline < 0 else newline + 1
    return body.count(b"\n", start, offset) + 1, len(body[line_start:offset].decode("utf-8", "replace")) + 1
