"""Compressed files, recognised by their first bytes and read as streams."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from backports import zstd

from service.bulk.line import WrongFileError
from service.bulk.stream_head import BUFFER_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

COMPRESSIONS: Final[dict[str, tuple[bytes, str, Callable[[Any], Any]]]] = {
    ".gz": (b"\x1f\x8b", "gzip", lambda file: gzip.GzipFile(fileobj=file)),
    ".bz2": (b"BZh", "bzip2", bz2.BZ2File),
    ".zst": (b"\x28\xb5\x2f\xfd", "zstd", zstd.ZstdFile),
}
"""First bytes, name and reader of each compression, by the suffix of its files."""


def without_suffix(name: str) -> str:
    """The name of a file without the suffix of its compression."""
    return next((name[: -len(suffix)] for suffix in COMPRESSIONS if name.lower().endswith(suffix)), name)


class _Decompressed(io.RawIOBase):
    """The content of a compressed file. Only a buffer of it is in memory."""

    def __init__(self, stream: Any, kind: str, name: str) -> None:
        super().__init__()
        self._stream = stream
        self._kind = kind
        self._name = name

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        try:
            return int(self._stream.readinto1(buffer))
        except EOFError:
            raise WrongFileError(self._name, f"the {self._kind} data end too early; the file is incomplete") from None
        except (gzip.BadGzipFile, zlib.error, zstd.ZstdError, ValueError):
            raise WrongFileError(self._name, f"the {self._kind} data are damaged") from None
        except OSError as error:
            if error.errno is not None:
                raise
            raise WrongFileError(self._name, f"the {self._kind} data are damaged") from None


def decompressed(file: io.BufferedIOBase, head: bytes, name: str) -> io.BufferedIOBase | None:
    """The content of a compressed file; None if the file is not compressed.

    Args:
        file: the stream from its beginning.
        head: its first bytes.
        name: name of the file.

    Raises:
        WrongFileError: the name has the suffix of a compression, and the file is not compressed so.
    """
    for magic, kind, reader in COMPRESSIONS.values():
        if head.startswith(magic):
            return io.BufferedReader(_Decompressed(reader(file), kind, name), BUFFER_BYTES)
    for suffix, (_, kind, _) in COMPRESSIONS.items():
        if head and name.lower().endswith(suffix):
            raise WrongFileError(name, f"it is not {kind}, as its name says; rename or compress it")
    return None
