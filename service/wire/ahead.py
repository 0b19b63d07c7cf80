"""Base64 encoding of vectors while the model still computes the other texts of the request."""

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

_ENCODER_THREADS: Final = 2
"""Threads that encode base64, shared by all answers.

Encoding takes a tenth of their time; the rest is page faults of newly allocated memory. A thread mostly gets memory
again that it has freed, so fewer threads cause fewer page faults.
"""


class WrittenAhead:
    """Encodes the vectors of one answer for the queue as soon as the model has computed them.

    Args:
        request: the request, whose encoding is base64.
    """

    def __init__(self, request: EmbedRequest) -> None:
        self._request = request
        self._parts: list[Future[dict[int, TextAnswer]]] = []
        self._cancelled = False

    def encode(self, results: Sequence[tuple[int, Result]]) -> None:
        """Encode results, each given with the index of its text, in the background. Thread-safe; does not block."""
        if not self._cancelled:
            self._parts.append(_encoders().submit(self._encoded, results))

    def vectors(self) -> dict[int, TextAnswer]:
        """The encoded vectors by the index of their text; failed texts are absent. Blocks until all are encoded."""
        return {index: answer for part in self._parts for index, answer in part.result().items()}

    def cancel(self) -> None:
        """Encode nothing more, batches under way included, since the answer will not be sent."""
        self._cancelled = True
        for part in self._parts:
            part.cancel()

    def _encoded(self, results: Sequence[tuple[int, Result]]) -> dict[int, TextAnswer]:
        answers: dict[int, TextAnswer] = {}
        for index, result in results:
            if isinstance(result, Embedding):
                answer = answers[index] = {}
                add_vectors(answer, result, self._request.encoding, self._request.dtype)
                for vector in (answer.get("dense"), answer.get("colbert")):
                    if isinstance(vector, dict) and isinstance(vector["data"], Base64Array):
                        vector["data"].text()
        return answers


@cache
def _encoders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_ENCODER_THREADS, thread_name_prefix="base64")
