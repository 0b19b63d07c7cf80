"""The size of JSON, counted in its bytes: a body that is too large is refused before it takes memory as values.

Parsers hold the interpreter while they create values, and take up to a hundred times the bytes of the body for them. A
scan creates none: it looks for quotes, brackets, commas and colons with vectorised operations, portion by portion.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.wire.json_limits import CHARACTER_MAX_BYTES, JsonLimits, JsonSize

PORTION_BYTES: Final = 256 * 1024
"""Bytes that are scanned, or parsed, in one step, after which other threads can run."""

_OTHER, _QUOTE, _LIST, _OBJECT, _LIST_END, _OBJECT_END, _COMMA, _COLON = range(8)

_KINDS: Final = bytes(
    {0x22: _QUOTE, 0x5B: _LIST, 0x7B: _OBJECT, 0x5D: _LIST_END, 0x7D: _OBJECT_END, 0x2C: _COMMA, 0x3A: _COLON}.get(
        byte, _OTHER
    )
    for byte in range(256)
)
"""The kind of each byte, as a table of `bytes.translate`."""

_DEPTHS: Final = np.array([0, 0, 1, 1, -1, -1, 0, 0], dtype=np.int32)
"""Change of the depth at a byte of each kind."""

_TWO_BYTE_CHARACTER = 0xC4
"""First byte of the UTF-8 of characters beyond U+00FF, which need two bytes in memory."""

_FOUR_BYTE_CHARACTER = 0xF0
"""First byte of the UTF-8 of characters beyond U+FFFF, which need four bytes in memory."""


@dataclass(frozen=True, slots=True, eq=False)
class JsonIndex:
    """Where the commas and brackets of a body are, outside of its strings.

    Attributes:
        offsets: offset of each in bytes, ascending.
        depths: the levels that are open behind each.
        is_comma: whether it is a comma.
        portion_bytes: bytes that are parsed in one step.
        open_string: offset of a string without an end; None if there is none.
    """

    offsets: NDArray[np.int32]
    depths: NDArray[np.int16]
    is_comma: NDArray[np.bool_]
    portion_bytes: int
    open_string: int | None


@dataclass(frozen=True, slots=True, eq=False)
class JsonScan:
    """The result of a scan.

    Attributes:
        size: the size.
        index: for the parser; None for a body that is parsed in one step.
    """

    size: JsonSize
    index: JsonIndex | None


def scan(
    body: bytes | bytearray, limits: JsonLimits, *, root: str = "the body", portion_bytes: int = PORTION_BYTES
) -> JsonScan:
    """Count what a body has, valid or not. The counts are exact or too high.

    Args:
        body: the body.
        limits: the limits of the request.
        root: name of the body in errors.
        portion_bytes: bytes that are scanned, or parsed, in one step.

    Raises:
        InvalidRequest: the body exceeds a limit. The rest of it is not read.
    """
    scanner = _Scanner(with_index=len(body) > portion_bytes)
    view = memoryview(body)
    for start in range(0, len(body), portion_bytes):
        scanner.add(bytes(view[start : start + portion_bytes]), start)
        scanner.size.check(limits, root)
    return JsonScan(scanner.size, scanner.index(portion_bytes))


class _Scanner:
    """Counts the portions of a body one after another.

    Args:
        with_index: whether to keep where commas and brackets are.

    Attributes:
        size: the size of the portions so far.
    """

    def __init__(self, *, with_index: bool) -> None:
        self.size = JsonSize(scalars=1)
        self._with_index = with_index
        self._parts: list[tuple[NDArray[np.int32], NDArray[np.int16], NDArray[np.bool_]]] = []
        self._depth = 0
        self._in_string = 0
        self._escapes = False
        self._last_quote = 0
        self._last = (-2, _OTHER)  # offset and kind of the last byte of a kind of its own
        self._quotes = 0
        self._commas = 0
        self._empty = 0
        self._characters = 0
        self._widest = 0

    def add(self, portion: bytes, start: int) -> None:
        """Count a portion, which begins at an offset of the body."""
        self._count_characters(portion)
        kinds = np.frombuffer(self._without_escapes(portion).translate(_KINDS), dtype=np.uint8)
        offsets = np.flatnonzero(kinds != _OTHER)
        kinds = kinds[offsets]
        quotes = kinds == _QUOTE
        inside = (np.cumsum(quotes) + self._in_string) & 1
        count = int(np.count_nonzero(quotes))
        if count:
            self._last_quote = start + int(offsets[np.flatnonzero(quotes)[-1]])
        self._quotes += count
        self._in_string = (self._in_string + count) & 1
        outside = np.flatnonzero(inside == 0)
        self._count_structure(offsets[outside] + start, kinds[outside])

    def index(self, portion_bytes: int) -> JsonIndex | None:
        """Where the commas and brackets of all portions are."""
        if not self._with_index:
            return None
        return JsonIndex(
            offsets=np.concatenate([part[0] for part in self._parts] or [np.empty(0, np.int32)]),
            depths=np.concatenate([part[1] for part in self._parts] or [np.empty(0, np.int16)]),
            is_comma=np.concatenate([part[2] for part in self._parts] or [np.empty(0, np.bool_)]),
            portion_bytes=portion_bytes,
            open_string=self._last_quote if self._in_string else None,
        )

    def _without_escapes(self, portion: bytes) -> bytes:
        """The portion with other characters in place of backslashes and of the quotes that they escape."""
        if self._escapes:
            portion = b"_" + portion[1:]
        self._escapes = False
        if b"\\" in portion:
            portion = portion.replace(rb"\\", b"__")
            self._escapes = portion.endswith(b"\\")
            portion = portion.replace(rb"\"", b"__")
        return portion

    def _count_characters(self, portion: bytes) -> None:
        if portion.isascii():
            self._characters += len(portion)
        else:
            codes = np.frombuffer(portion, dtype=np.uint8)
            self._characters += int(np.count_nonzero((codes & 0xC0) != 0x80))  # the first byte of each
            self._widest = max(self._widest, int(codes.max()))
        if rb"\ud" in portion or rb"\uD" in portion:  # one half of a character beyond U+FFFF
            self._widest = 0xFF
        elif rb"\u" in portion or (self._escapes and portion.startswith(b"u")):
            self._widest = max(self._widest, _TWO_BYTE_CHARACTER)
        wide, widest = CHARACTER_MAX_BYTES, self._widest
        width = wide if widest >= _FOUR_BYTE_CHARACTER else 2 if widest >= _TWO_BYTE_CHARACTER else 1
        self.size.character_bytes = self._characters * width

    def _count_structure(self, offsets: NDArray[np.int64], kinds: NDArray[np.uint8]) -> None:
        """Count the quotes at the ends of strings, and the brackets, commas and colons outside of strings."""
        if not len(kinds):
            return
        counts = np.bincount(kinds, minlength=8)
        self.size.lists += int(counts[_LIST])
        self.size.objects += int(counts[_OBJECT])
        self.size.names += int(counts[_COLON])
        self._commas += int(counts[_COMMA])
        self._count_empty(offsets, kinds)
        structure = np.flatnonzero(kinds != _QUOTE)
        kinds, offsets = kinds[structure], offsets[structure]
        depths = np.cumsum(_DEPTHS[kinds]) + self._depth
        if len(depths):
            self._depth = int(depths[-1])
            self.size.depth = max(self.size.depth, int(depths.max()))
        if self._with_index:
            kept = np.flatnonzero(kinds != _COLON)
            clipped = np.clip(depths[kept], -1, np.iinfo(np.int16).max)
            self._parts.append(
                (offsets[kept].astype(np.int32), clipped.astype(np.int16), np.equal(kinds[kept], _COMMA))
            )
        # A list or an object of n items has n - 1 commas; the body itself is one more value.
        size = self.size
        size.strings = max(0, (self._quotes + 1) // 2 - size.names)
        values = 1 + self._commas + size.lists + size.objects - self._empty
        size.scalars = max(0, values - size.lists - size.objects - size.strings)

    def _count_empty(self, offsets: NDArray[np.int64], kinds: NDArray[np.uint8]) -> None:
        """Count the lists and objects whose brackets touch."""
        opens = (kinds == _LIST) | (kinds == _OBJECT)
        closes = (kinds == _LIST_END) | (kinds == _OBJECT_END)
        self._empty += int(np.count_nonzero(opens[:-1] & closes[1:] & (np.diff(offsets) == 1)))
        last, kind = self._last
        if kind in (_LIST, _OBJECT) and closes[0] and int(offsets[0]) == last + 1:
            self._empty += 1
        self._last = (int(offsets[-1]), int(kinds[-1]))
