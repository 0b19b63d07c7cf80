"""Text in any encoding, read as UTF-8 without a byte order mark."""

from __future__ import annotations

import codecs
import io
from typing import TYPE_CHECKING, Final

from service.bulk.line import WrongFileError
from service.bulk.stream_head import BUFFER_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

_MARKS: Final = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""Byte order marks, longer ones before their beginnings, and the encodings that they name."""

_PART_BYTES = 65_536


def is_text_encoding(name: str) -> bool:
    """Whether Python can read text in an encoding of this name."""
    try:
        "".encode(name)
        b"".decode(name)
    except (LookupError, ValueError):
        return False
    return True


class _Recoded(io.RawIOBase):
    """A stream in UTF-8 of text in another encoding."""

    def __init__(self, file: io.BufferedIOBase, encoding: str, name: str) -> None:
        super().__init__()
        self._file = file
        self._encoding = encoding
        self._name = name
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._read = 0
        self._at_start = True
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        is_last = False
        while not self._ready and not is_last:
            part = self._file.read1(_PART_BYTES)
            self._read += len(part)
            is_last = not part
            self._ready = memoryview(self._decoded(part, is_last=is_last).encode())
        ready, self._ready = self._ready[: len(view)], self._ready[len(view) :]
        view[: len(ready)] = ready
        return len(ready)

    def _decoded(self, part: bytes, *, is_last: bool) -> str:
        try:
            text = self._decoder.decode(part, final=is_last)
        except UnicodeDecodeError as error:
            offset = self._read - len(error.object) + error.start
            reason = f"it is not valid {self._encoding} (byte {offset}); name its encoding with --encoding"
            raise WrongFileError(self._name, reason) from None
        if text and self._at_start:
            self._at_start = False
            return text.removeprefix("\ufeff")
        return text


def as_utf8(file: io.BufferedIOBase, head: bytes, encoding: str | None, name: str) -> io.BufferedIOBase:
    """The text of a file in UTF-8, without the byte order mark at its beginning.

    Args:
        file: the stream from its beginning.
        head: its first bytes.
        encoding: the encoding; None for that which the byte order mark names, or UTF-8.
        name: name of the file.
    """
    mark, marked = next(((mark, marked) for mark, marked in _MARKS if head.startswith(mark)), (b"", "utf-8"))
    chosen = codecs.lookup(encoding or marked).name
    if chosen != "utf-8":
        return io.BufferedReader(_Recoded(file, chosen, name), BUFFER_BYTES)
    if mark == codecs.BOM_UTF8:
        file.read(len(mark))
    return file
