"""Vectors written as base64 while the model still computes the other texts of their request."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from typing import Final

from embedder import Embedding, Result
from service.wire.answer_types import TextAnswer
from service.wire.answers import add_vectors
from service.wire.body import Base64Array
from service.wire.requests import EmbedRequest

_WRITERS: Final = 2
"""Threads that write base64, for all answers.

The encoding is a tenth of their time; the rest goes to memory that is new to the process, page by page. A thread that
freed as much before mostly gets it again from the allocator, and the fewer the threads, the more each has.
"""


class WrittenAhead:
    """The vectors of one answer of the queue, each written as soon as it is there.

    Args:
        request: of the wire, with encoding base64.
    """

    def __init__(self, request: EmbedRequest) -> None:
        self._request = request
        self._parts: list[Future[dict[int, TextAnswer]]] = []
        self._cancelled = False

    def take(self, results: Sequence[tuple[int, Result]]) -> None:
        """Have these results written, each with the index of its text. From any thread; does not block."""
        if not self._cancelled:
            self._parts.append(_writers().submit(self._written, results))

    def items(self) -> dict[int, TextAnswer]:
        """The vectors of all texts that have some, by the index of the text. Blocks until the last one is written."""
        return {index: item for part in self._parts for index, item in part.result().items()}

    def cancel(self) -> None:
        """Write nothing more, batches that are still under way included: the answer will not be sent."""
        self._cancelled = True
        for part in self._parts:
            part.cancel()

    def _written(self, results: Sequence[tuple[int, Result]]) -> dict[int, TextAnswer]:
        items: dict[int, TextAnswer] = {}
        for index, result in results:
            if isinstance(result, Embedding):
                item = items[index] = {}
                add_vectors(item, result, self._request.encoding, self._request.dtype)
                for vector in (item.get("dense"), item.get("colbert")):
                    if isinstance(vector, dict) and isinstance(vector["data"], Base64Array):
                        vector["data"].text()
        return items


@cache
def _writers() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_WRITERS, thread_name_prefix="base64")
