"""The operations of this process behind the client: its requests are answered without a connection."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import httpx
import orjson

from embedder import WorkerError
from service.operations import Operations
from service.wire import Answer, Codec, error_answer, error_reply
from service.wire.parsing import completed

ADDRESS: Final = "http://in-process"
"""Address of the operations for the client."""

RESPONSE_MB: Final = 30
"""Maximum size of an answer where `MAX_RESPONSE_MB` is unset, in megabytes, as over HTTP."""

_OPERATIONS: Final[Mapping[str, tuple[str, bool]]] = {
    "/points": ("embed", True),
    "/points/get": ("points", False),
    "/search": ("search", False),
}
"""The paths that the tools ask: their operations, and whether texts are passages."""

_COLLECTIONS: Final = "/collections"


class OperationsTransport(httpx.AsyncBaseTransport):
    """Answers the requests of the client as the HTTP server does, without its limits on bodies and connections.

    Args:
        operations: the operations; closed with the transport.
    """

    def __init__(self, operations: Operations) -> None:
        self._codec = Codec(operations, RESPONSE_MB)
        self._operations = operations

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request."""
        try:
            answer = await self._codec.answer(self._input(request.url.path, await request.aread()))
        except WorkerError as error:
            answer = error_reply(error, error_answer)
        return _response(answer)

    async def aclose(self) -> None:
        """Close the operations."""
        self._operations.close()

    def _input(self, path: str, content: bytes) -> dict[str, Any]:
        """The input of a job for a request."""
        if path == _COLLECTIONS:
            return {"operation": "collections"}
        if path.startswith(f"{_COLLECTIONS}/"):
            return {"operation": "collections", "collection": unquote(path.removeprefix(f"{_COLLECTIONS}/"))}
        operation, passages = _OPERATIONS[path]
        return completed(orjson.loads(content), operation, passages=passages, path=path)


def _response(answer: Answer) -> httpx.Response:
    headers = {} if answer.retry_after_s is None else {"Retry-After": str(answer.retry_after_s)}
    return httpx.Response(answer.status, content=answer.body, headers=headers)
