"""The JSON of an answer in parts, where base64 is written only when it is sent.

A large answer is so never in memory twice, nor beside its base64: its size is known from the shapes of its arrays.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson
import pybase64
from numpy.typing import NDArray

_HOLE: Final = orjson.Fragment(b'"\0"')
"""Stands for a string that is written later. No other NUL is in JSON: strings escape it."""


class Base64Array:
    """The bytes of an array as base64.

    Args:
        array: contiguous, in the byte order of the wire; nothing may write to it before it is sent.
    """

    __slots__ = ("_bytes", "_text")

    def __init__(self, array: NDArray[Any]) -> None:
        self._bytes = array.data.cast("B")
        self._text: str | None = None

    def __len__(self) -> int:
        """Characters, padding included."""
        return (len(self._bytes) + 2) // 3 * 4

    def written(self) -> bytes:
        """The characters."""
        return pybase64.b64encode(self._bytes)

    def text(self) -> str:
        """The characters as a string, without a copy in between; kept from the first call on."""
        if self._text is None:
            self._text = pybase64.b64encode_as_string(self._bytes)
        return self._text


@dataclass(frozen=True, slots=True)
class Body:
    """A compact JSON object.

    Attributes:
        arrays: each with the JSON before it, which ends with the opening quote.
        end: the JSON after the last array, or all of it.
    """

    arrays: tuple[tuple[bytes, Base64Array], ...]
    end: bytes

    @classmethod
    def of(cls, answer: object) -> Self:
        """Write an answer; arrays are written from their buffers, without a Python number in between."""
        arrays: list[Base64Array] = []

        def leave_hole(value: object) -> orjson.Fragment:
            if not isinstance(value, Base64Array):
                raise TypeError(f"{type(value).__name__} has no form in JSON")
            arrays.append(value)
            return _HOLE

        written = orjson.dumps(answer, default=leave_hole, option=orjson.OPT_SERIALIZE_NUMPY)
        *parts, end = written.split(b"\0") if arrays else [written]
        return cls(tuple(zip(parts, arrays, strict=True)), end)

    def __len__(self) -> int:
        """Bytes of the whole."""
        return sum(len(part) + len(array) for part, array in self.arrays) + len(self.end)

    @property
    def max_bytes(self) -> int:
        """Limit on the JSON as the queue's encoder writes it, which has 18 bytes for `1e13,`, the worst of all."""
        return 4 * len(self)

    def __bytes__(self) -> bytes:
        """The whole."""
        return b"".join(self._written())

    @property
    def json(self) -> tuple[bytes, ...]:
        """The whole but for the base64."""
        return (*(part for part, _ in self.arrays), self.end)

    def with_member(self, name: str, value: Body) -> Body:
        """The body with one more member, whose value has no base64."""
        separator = b"," if len(self) > len(b"{}") else b""
        return Body(self.arrays, b'%b%b"%b":%b}' % (self.end[:-1], separator, name.encode(), bytes(value)))

    def chunks(self, size: int) -> Iterator[bytes]:
        """The whole, in order: chunks of at least `size` bytes and less than twice as many, but for the last."""
        waiting: list[bytes] = []
        count = 0
        for part in self._written():
            for start in range(0, len(part), size):
                waiting.append(part[start : start + size])
                count += len(waiting[-1])
                if count >= size:
                    yield b"".join(waiting)
                    waiting, count = [], 0
        if waiting:
            yield b"".join(waiting)

    def _written(self) -> Iterator[bytes]:
        for part, array in self.arrays:
            yield part
            yield array.written()
        yield self.end
