"""The key of a request to `/qdrant/inference`, which a Qdrant server cannot send as a bearer token.

The server writes the `token` of its settings into the body, and asks the address as its settings name it, `?key=`
included. So the key may be there, beside the two headers that other clients use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from starlette.requests import Request

from embedder import Overloaded
from service.logs import CALLER
from service.memory_budget import MemoryBudget, Reservation
from service.settings import Settings
from service.wire.errors import Unauthorized
from service.wire.qdrant_inference import token_in

_MESSAGE: Final = (
    "the key is missing or wrong; the server's inference.token must be the API_KEY of this worker, or ?key= of its "
    "inference.address (other clients: the header 'api-key' or 'Authorization: Bearer')"
)


UNPROVEN_DIVISOR: Final = 8
"""Part of `MEMORY_BUDGET_MB` that bodies may take together before their key is known: one eighth."""


class InferenceKey:
    """Checks the key of requests to `/qdrant/inference`.

    Args:
        settings: the settings.

    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.api_key
        size_bytes = max(settings.inference_max_request_bytes, settings.memory_budget_bytes // UNPROVEN_DIVISOR)
        self._unproven = MemoryBudget(size_bytes)

    def is_outside_body(self, request: Request) -> bool:
        """Whether no key is needed, or the key is in a header or in the address."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        sent = [request.headers.get("api-key", ""), *request.query_params.getlist("key")[:1]]
        if scheme.lower() == "bearer":
            sent.append(bearer.strip())
        return self._keys is None or any(self._matches(key) for key in sent)

    @contextmanager
    def awaited(self) -> Iterator[Callable[[int], None]]:
        """Bound the memory of a body that may have the key, and of all such bodies together, until the block ends.

        Yields:
            What must be called with the size of each part before it is kept. It raises `Overloaded` if there is no
            room, so that clients without the key do not take the memory of others.
        """
        reservation = Reservation(self._unproven)

        def grow(size_bytes: int) -> None:
            try:
                reservation.grow(size_bytes)
            except Overloaded as error:
                raise error.saying(
                    f"bodies that may have the key must take at most {self._unproven.total_bytes} bytes together (an "
                    "eighth of MEMORY_BUDGET_MB), got more; retry later, or send the key in the address or a header"
                ) from None

        try:
            yield grow
        finally:
            reservation.release()

    def check_bytes(self, body: bytes | bytearray) -> None:
        """Refuse a body without the key before it is parsed, which can take many times its size of memory.

        Raises:
            Unauthorized: the body has no token, or another one.
        """
        if not self._matches(token_in(body)):
            raise Unauthorized(_MESSAGE)

    def check(self, raw: Any) -> None:
        """Check the token of a parsed body, since `check_bytes` may have seen that of an object inside.

        Raises:
            Unauthorized: the body has no token, or another one.
        """
        if not (isinstance(raw, dict) and self._matches(raw.get("token"))):
            raise Unauthorized(_MESSAGE)

    def _matches(self, key: object) -> bool:
        if self._keys is None or not isinstance(key, str):
            return False
        name = self._keys.name_of(key.encode("utf-8", "replace"))
        if name is not None:
            CALLER.set(name)
        return name is not None
