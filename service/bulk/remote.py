"""Files at URLs, such as `s3://`, `gs://` and `hf://`, through fsspec."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

from service.bulk.extras import INSTALL, library
from service.bulk.line import InputError, WrongFileError
from service.bulk.stream_head import BUFFER_BYTES

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

BLOCK_BYTES: Final = 4_194_304
"""Bytes that are asked for at a time."""

_PACKAGES: Final = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}
"""Packages that fsspec needs for a scheme beside itself."""


class RemoteFolder:
    """The files of a URL: one, those of a pattern, or those below a folder.

    Args:
        url: the URL.

    Raises:
        InputError: the file system cannot be reached, or a package is missing.
    """

    def __init__(self, url: str) -> None:
        scheme = url.partition("://")[0]
        core = library("fsspec.core", f"{scheme}://")
        self._url = url
        try:
            self._files, self._path = core.url_to_fs(url)
        except (ImportError, ValueError):
            package = _PACKAGES.get(scheme)
            reason = (
                f"install it with: pip install {package}" if package else f"is the scheme right, and {INSTALL} done?"
            )
            raise InputError(f"{url}: the package for {scheme}:// is missing; {reason}") from None
        except Exception as error:  # noqa: BLE001 - every file system has errors of its own
            raise _unreadable(url, error) from None

    def names(self) -> tuple[list[str], bool]:
        """The URLs of the files in the order of their names, and whether they are those of a folder.

        Raises:
            InputError: there are none, or they cannot be listed.
        """
        with _as_wrong_file(self._url):
            if any(sign in self._path for sign in "*?["):
                found = [path for path in self._files.glob(self._path) if not self._files.isdir(path)]
                if not found:
                    raise InputError(f"{self._url}: no file has a name of this pattern")
                return sorted(map(self._files.unstrip_protocol, found)), False
            if self._files.isdir(self._path):
                return sorted(map(self._files.unstrip_protocol, self._files.find(self._path))), True
            if not self._files.exists(self._path):
                raise InputError(f"{self._url}: there is no such file")
        return [self._files.unstrip_protocol(self._path)], False

    def open(self, name: str) -> BinaryIO:
        """Open one of the files.

        Raises:
            WrongFileError: it cannot be read.
        """
        with _as_wrong_file(name):
            file = self._files.open(name, "rb", block_size=BLOCK_BYTES)
        return cast("BinaryIO", io.BufferedReader(_RemoteFile(file, name), BUFFER_BYTES))


class _RemoteFile(io.RawIOBase):
    """A file of fsspec, whose errors are those of an input."""

    def __init__(self, file: Any, name: str) -> None:
        super().__init__()
        self._file = file
        self._name = name

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return bool(self._file.seekable())

    def seek(self, offset: int, whence: int = 0) -> int:
        with _as_wrong_file(self._name):
            return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        return int(self._file.tell())

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer)
        with _as_wrong_file(self._name):
            part = self._file.read(len(view))
        view[: len(part)] = part
        return len(part)

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


@contextmanager
def _as_wrong_file(name: str) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - every file system has errors of its own
        raise _unreadable(name, error) from None


def _unreadable(name: str, error: Exception) -> WrongFileError:
    kind = type(error).__name__  # its message may quote a host or a key
    return WrongFileError(name, f"it cannot be read ({kind}); are the address and the credentials right?")
