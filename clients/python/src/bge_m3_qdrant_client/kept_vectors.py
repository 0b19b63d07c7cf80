"""Sparse vectors that were computed with dense ones, until a framework asks for them."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Sequence

from bge_m3_qdrant_client.answers import SparseAnswer
from bge_m3_qdrant_client.errors import InvalidOption

KEPT_MAX_BYTES = 64 * 2**20
"""Maximum bytes of the texts and sparse vectors that are kept: LlamaIndex embeds 2048 nodes before it stores them."""

_ENTRY_BYTES = 1024
"""Bytes that an entry takes beside its text and its numbers, rounded up."""


class KeptVectors:
    """Sparse vectors by text. Thread-safe.

    Each vector is kept for as many requests as it was put for, and those that were put first go first where space ends.

    Args:
        max_bytes: maximum bytes of texts and vectors; 0 keeps none.

    Raises:
        InvalidOption: the maximum is negative.
    """

    def __init__(self, max_bytes: int = KEPT_MAX_BYTES) -> None:
        if max_bytes < 0:
            raise InvalidOption(f"kept_max_bytes must be at least 0, got {max_bytes}")
        self._max_bytes = max_bytes
        self._bytes = 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, bool], tuple[SparseAnswer, int]] = OrderedDict()

    @property
    def bytes_(self) -> int:
        """Bytes that the texts and vectors take now."""
        return self._bytes

    def put(self, texts: Sequence[str], vectors: Sequence[SparseAnswer], *, is_passage: bool) -> None:
        """Keep a vector for each text.

        Args:
            texts: the texts.
            vectors: the vector of each.
            is_passage: whether they were embedded as passages.
        """
        with self._lock:
            for text, vector in zip(texts, vectors, strict=True):
                key = text, is_passage
                uses = self._pop(key)[1] if key in self._entries else 0
                self._entries[key] = vector, uses + 1
                self._bytes += _size(text, vector)
            while self._bytes > self._max_bytes:
                self._pop(next(iter(self._entries)))

    def take(self, texts: Sequence[str], *, is_passage: bool) -> list[SparseAnswer | None]:
        """The vector of each text, and None for those that are not kept.

        Args:
            texts: the texts.
            is_passage: whether passages are asked for.
        """
        with self._lock:
            return [self._take((text, is_passage)) for text in texts]

    def _take(self, key: tuple[str, bool]) -> SparseAnswer | None:
        if key not in self._entries:
            return None
        vector, uses = self._entries[key]
        if uses > 1:
            self._entries[key] = vector, uses - 1
        else:
            self._pop(key)
        return vector

    def _pop(self, key: tuple[str, bool]) -> tuple[SparseAnswer, int]:
        vector, uses = self._entries.pop(key)
        self._bytes -= _size(key[0], vector)
        return vector, uses


def _size(text: str, vector: SparseAnswer) -> int:
    return _ENTRY_BYTES + sys.getsizeof(text) + vector.indices.nbytes + vector.values.nbytes
