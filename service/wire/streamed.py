"""The JSON of an answer whose arrays are written as lists of numbers while it is sent.

A list of numbers has six times the bytes of a float16 array, so a large answer is in memory as arrays alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from numpy.typing import NDArray

_SLICE_MAX_NUMBERS: Final = 16_384
"""Maximum numbers of several rows that are written together: in 0.6 ms, during which no other thread runs Python."""

NUMBER_MAX_BYTES: Final = 16
"""Maximum bytes of a float32 or float16 in JSON, such as `-0.0000063184107`."""


@dataclass(frozen=True, slots=True)
class Streamed:
    """A JSON value in parts, whose size is unknown until it is written.

    Attributes:
        parts: JSON, and contiguous arrays of numbers in native byte order, which must not change before they are sent.
    """

    parts: Sequence[bytes | NDArray[Any]]

    @property
    def held_bytes(self) -> int:
        """Memory in bytes until it is sent, without what is on its way."""
        return sum(len(part) if isinstance(part, bytes) else part.nbytes for part in self.parts)

    def __bytes__(self) -> bytes:
        """The whole JSON."""
        return b"".join(self._written())

    def chunks(self, size: int) -> Iterator[bytes]:
        """Yield the JSON in chunks of at least `size` bytes; the last one may be shorter."""
        waiting: list[bytes] = []
        count = 0
        for part in self._written():
            waiting.append(part)
            count += len(part)
            if count >= size:
                yield b"".join(waiting)
                waiting, count = [], 0
        if waiting:
            yield b"".join(waiting)

    def _written(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from _list(part)


def _list(array: NDArray[Any]) -> Iterator[bytes]:
    """The JSON of an array in slices of its rows, without creating Python numbers."""
    rows = max(1, _SLICE_MAX_NUMBERS // (array[0].size if len(array) else 1))
    yield b"["
    for start in range(0, len(array), rows):
        if start:
            yield b","
        yield orjson.dumps(array[start : start + rows], option=orjson.OPT_SERIALIZE_NUMPY)[1:-1]
    yield b"]"
