"""The JSON of an answer in parts, whose base64 is encoded only while the answer is sent.

The size of an answer follows from the shapes of its arrays, so a large answer is never in memory twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import orjson
import pybase64
from numpy.typing import NDArray

_PLACEHOLDER: Final = orjson.Fragment(b'"\0"')
"""Placeholder of a string that is encoded later. JSON has no other NUL, since strings escape it."""


class Base64Array:
    """An array that is encoded as base64 when it is sent.

    Args:
        array: a contiguous little-endian array, which must not change before it is sent.
    """

    __slots__ = ("_bytes", "_text")

    def __init__(self, array: NDArray[Any]) -> None:
        self._bytes = array.data.cast("B")
        self._text: str | None = None

    def __len__(self) -> int:
        """Number of base64 characters, padding included."""
        return (len(self._bytes) + 2) // 3 * 4

    @property
    def nbytes(self) -> int:
        """Memory of the array in bytes."""
        return len(self._bytes)

    def written(self) -> bytes:
        """The base64 characters as bytes."""
        return pybase64.b64encode(self._bytes)

    def text(self) -> str:
        """The base64 characters as a string, which is encoded once and then kept."""
        if self._text is None:
            self._text = pybase64.b64encode_as_string(self._bytes)
        return self._text


@dataclass(frozen=True, slots=True)
class Body:
    """A compact JSON object in parts.

    Attributes:
        arrays: the base64 arrays, each with the JSON before it, which ends with the opening quote.
        end: the JSON after the last array, or the whole JSON without arrays.
    """

    arrays: tuple[tuple[bytes, Base64Array], ...]
    end: bytes

    @classmethod
    def of(cls, answer: object) -> Self:
        """Serialize an answer. Arrays are serialized from their buffers, without creating Python numbers."""
        arrays: list[Base64Array] = []

        def replace_array(value: object) -> orjson.Fragment:
            if not isinstance(value, Base64Array):
                raise TypeError(f"an answer must not contain {type(value).__name__}, which JSON cannot represent")
            arrays.append(value)
            return _PLACEHOLDER

        written = orjson.dumps(answer, default=replace_array, option=orjson.OPT_SERIALIZE_NUMPY)
        *parts, end = written.split(b"\0") if arrays else [written]
        return cls(tuple(zip(parts, arrays, strict=True)), end)

    def __len__(self) -> int:
        """Size of the JSON in bytes."""
        return sum(len(part) + len(array) for part, array in self.arrays) + len(self.end)

    @property
    def held_bytes(self) -> int:
        """Memory in bytes until it is sent, with the largest array as base64."""
        arrays = sum(len(part) + array.nbytes for part, array in self.arrays)
        return arrays + max((len(array) for _, array in self.arrays), default=0) + len(self.end)

    @property
    def max_bytes(self) -> int:
        """Upper bound on the JSON as the queue's encoder writes it. Its worst case is `1e13,`, which takes 18 bytes."""
        return 4 * len(self)

    def __bytes__(self) -> bytes:
        """The whole JSON."""
        return b"".join(self._written())

    @property
    def json(self) -> tuple[bytes, ...]:
        """The JSON without its base64."""
        return (*(part for part, _ in self.arrays), self.end)

    def with_member(self, name: str, value: Body) -> Body:
        """The body with another member, whose value contains no base64."""
        separator = b"," if len(self) > len(b"{}") else b""
        return Body(self.arrays, b'%b%b"%b":%b}' % (self.end[:-1], separator, name.encode(), bytes(value)))

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the JSON in chunks of at least `size` and less than `2 * size` bytes; the last may be shorter."""
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
