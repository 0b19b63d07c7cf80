"""The limit on one answer of a server, beyond which it is neither received nor decoded.

Requests are made so that answers stay far below it (see `searching.reading`). It is the last resort where points have
become larger than those that were read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import httpx

from qdrant_sink.errors import AnswerTooLarge

ANSWER_MAX_BYTES: Final = 134_217_728
"""Maximum size of one answer of a server in bytes. Decoded it takes several times as much memory."""

GRPC_OPTIONS: Final = {"grpc.max_receive_message_length": ANSWER_MAX_BYTES}
"""Options of a channel that receives no larger answer."""

_REFUSED_BY_CLIENT: Final = "CLIENT: Received message larger than max"
"""How gRPC says that this side refused a message, rather than the server."""


def is_too_large(details: str) -> bool:
    """Whether a call over gRPC failed because its answer is too large."""
    return _REFUSED_BY_CLIENT in details


def answer_too_large() -> AnswerTooLarge:
    """Create the error of an answer that is too large."""
    return AnswerTooLarge(
        f"an answer of Qdrant must have at most {ANSWER_MAX_BYTES} bytes, got more; ask for fewer points, or set "
        "withPayload or withVectors false"
    )


def bound_answer(response: Any) -> None:
    """Limit the body of a REST answer, as a hook of the client before it reads the body."""
    response.stream = _Bounded(response.stream)


class _Bounded(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for part in self._stream:
            size += len(part)
            if size > ANSWER_MAX_BYTES:
                raise answer_too_large()
            yield part

    def close(self) -> None:
        self._stream.close()
