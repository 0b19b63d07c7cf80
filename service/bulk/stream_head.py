"""The first bytes of a stream, which are looked at before it is read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

HEAD_MAX_BYTES: Final = 4096
"""Maximum bytes that are looked at."""

HEAD_MIN_BYTES: Final = 8
"""Bytes that are waited for: enough for every signature. More are not, since a pipe may be slow."""

BUFFER_BYTES: Final = 262_144
"""Size of the buffer of a stream."""


class _Prefixed(io.RawIOBase):
    """A stream whose first bytes were read before."""

    def __init__(self, head: bytes, file: io.BufferedIOBase) -> None:
        super().__init__()
        self._head = head
        self._file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        if not self._head:
            return self._file.readinto1(view)
        part, self._head = self._head[: len(view)], self._head[len(view) :]
        view[: len(part)] = part
        return len(part)


def with_head(file: io.BufferedIOBase) -> tuple[bytes, io.BufferedIOBase]:
    """The first bytes of a buffered stream, and the stream from its beginning."""
    if file.seekable():
        head = file.read(HEAD_MAX_BYTES)
        file.seek(0)
        return head, file
    head = b""
    while len(head) < HEAD_MIN_BYTES and (part := file.read1(HEAD_MAX_BYTES)):
        head += part
    return head, io.BufferedReader(_Prefixed(head, file), BUFFER_BYTES)
