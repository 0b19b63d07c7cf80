"""The guard on the free space of a disk: what may allocate is refused before the disk is full.

The engine writes through memory maps of files that are longer than what is allocated for them. If the disk is full, the
kernel cannot allocate the touched page and ends the process with SIGBUS, which no code can handle. So a write begins
only if the disk has the space that it takes at most, and `RESERVE_BYTES` beyond it for everything else.

Reads allocate nothing, except on file systems in memory (tmpfs), where reading a page that was never written allocates
it. Opening a collection reads such pages, so that there it needs as much space as its files lack.
"""

from __future__ import annotations

import mmap
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from qdrant_sink.errors import StoreUnavailable

RESERVE_BYTES: Final = 256_000_000
"""Default space that writes leave free, in bytes. It suffices to open a collection again on any file system."""

WRITE_FACTOR: Final = 3
"""Maximum bytes that a write allocates per byte of its points: the write-ahead log, the vectors and the payload. In
measurements with and without ColBERT it was 1.8 to 2.1."""

OPERATION_MAX_BYTES: Final = 8_000_000
"""Maximum bytes that an operation allocates beside its content: a new collection takes 1.1 MB, an index 2.7 MB."""

OPEN_MAX_BYTES: Final = 40_000_000
"""Maximum bytes that the opening of a collection allocates beside pages that it reads. A write that was cut off is
repeated from the write-ahead log, and has at most the size of a batch or of the largest point."""

OPTIMIZE_FACTOR: Final = 1.5
"""Maximum bytes that an optimisation allocates per byte of the collection, beside `OPTIMIZE_MIN_BYTES`: new segments
that replace the old ones at the end. In measurements it was 0.3."""

OPTIMIZE_MIN_BYTES: Final = 100_000_000
"""Bytes that an optimisation may allocate for a collection of any size; 80 MB were measured."""

_PROBE_BYTES: Final = 1_000_000
"""Free bytes without which the probe of a file system is not tried."""


def free_bytes(path: Path) -> int | None:
    """The bytes that this process may still allocate on the disk of a path; None if the file system does not say."""
    status = os.statvfs(path)
    return status.f_bavail * status.f_frsize if status.f_blocks else None


class DiskSpace:
    """The free space of the disks on which a store has its collections. Thread-safe.

    Args:
        reserve_bytes: bytes that writes leave free.
        free: function that returns the free bytes of the disk of a path; None if they are unknown, which allows all.
    """

    def __init__(self, reserve_bytes: int = RESERVE_BYTES, free: Callable[[Path], int | None] = free_bytes) -> None:
        self._reserve_bytes = reserve_bytes
        self._free = free
        self._lock = threading.Lock()
        self._under_way = 0

    @contextmanager
    def write(self, path: Path, what: str, size: int) -> Iterator[None]:
        """Allow a write that allocates at most `size` bytes. Writes under way are added up.

        Raises:
            StoreUnavailable: the disk of the path would have less than the reserve.
        """
        with self._lock:
            self._check(path, what, self._under_way + size, self._reserve_bytes)
            self._under_way += size
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= size

    def check_open(self, directory: Path) -> None:
        """Check that the disk has the space that the opening of a collection takes, which may be of the reserve.

        Raises:
            StoreUnavailable: it does not.
        """
        read = _missing_bytes(directory / "segments") if self._reading_allocates(directory) else 0
        self._check(directory, "opening of a collection", OPEN_MAX_BYTES + read, 0)

    def _check(self, path: Path, what: str, size: int, reserve: int) -> None:
        free = self._free(path)
        if free is None or free >= size + reserve:
            return
        beyond = f" beyond the reserve of {_mb(reserve)} MB (QDRANT_PATH_RESERVE_MB)" if reserve else ""
        raise StoreUnavailable(
            f"disk full: the disk of QDRANT_PATH has {free / 1e6:.0f} MB free, and the {what} may need {_mb(size)} MB"
            f"{beyond}; free some space, or move the directory to a larger disk while the worker is stopped"
        )

    def _reading_allocates(self, directory: Path) -> bool:
        """Whether the file system allocates a page that is read and was never written."""
        free = self._free(directory)
        if free is not None and free < _PROBE_BYTES:  # the probe itself would end the process
            return True
        with tempfile.TemporaryFile(dir=directory) as file:
            os.ftruncate(file.fileno(), mmap.PAGESIZE)
            with mmap.mmap(file.fileno(), mmap.PAGESIZE) as page:
                page[0]
                return os.fstat(file.fileno()).st_blocks > 0


def allocated_bytes(directory: Path, pattern: str = "segments/**/*") -> int:
    """The bytes on disk of the files of a collection. Files that are removed meanwhile are left out."""
    return sum(allocated for _, allocated in _sizes(directory, pattern))


def _missing_bytes(directory: Path) -> int:
    return sum(max(0, size - allocated) for size, allocated in _sizes(directory, "**/*"))


def _sizes(directory: Path, pattern: str) -> Iterator[tuple[int, int]]:
    for path in directory.glob(pattern):
        try:
            status = path.lstat()
        except OSError:
            continue
        yield status.st_size, status.st_blocks * 512


def _mb(size: int) -> str:
    return f"{size / 1e6:.0f}"
