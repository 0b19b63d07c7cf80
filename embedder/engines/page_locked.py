"""Results that stay where the device wrote them, as long as that takes no more page-locked memory than is allowed."""

from __future__ import annotations

import threading
import weakref
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

LENT_MAX_BYTES = 1 << 30
"""Page-locked memory that results may hold: that of half a million ColBERT rows of 1024 in float16."""


class PageLocked:
    """Lends page-locked buffers to results, which return when the last view of them is gone.

    Page-locked memory cannot be swapped out and torch never gives it back to the system; it is used again. What is
    beyond the limit is copied into ordinary memory, so that a consumer who keeps results for long keeps none of it.
    A buffer counts as the block that torch took for it, whose size is a power of two.

    Args:
        limit_bytes: most that may be lent.
    """

    def __init__(self, limit_bytes: int = LENT_MAX_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._lent_bytes = 0
        self._lock = threading.Lock()

    @property
    def lent_bytes(self) -> int:
        """Bytes that results hold now."""
        with self._lock:
            return self._lent_bytes

    def lent(self, buffer: Tensor) -> NDArray[Any]:
        """The buffer as an array, or a copy of it in ordinary memory.

        Args:
            buffer: in page-locked memory; nobody else may use it.
        """
        size = _block_bytes(buffer.nbytes)
        with self._lock:
            fits = self._lent_bytes + size <= self._limit_bytes
            if fits:
                self._lent_bytes += size
        array: NDArray[Any] = buffer.numpy()
        if not fits:
            return array.copy()
        weakref.finalize(array, self._returned, size).atexit = False
        return array

    def _returned(self, size: int) -> None:
        with self._lock:
            self._lent_bytes -= size


def _block_bytes(size: int) -> int:
    """Bytes of the smallest power of two that holds so many."""
    return 1 << (size - 1).bit_length() if size else 0
