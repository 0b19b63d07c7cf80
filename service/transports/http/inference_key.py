"""The key of a request to `/qdrant/inference`, which a Qdrant server cannot send as a bearer token.

The server writes the `token` of its settings into the body, and asks the address as its settings name it, `?key=`
included. So the key may be there, beside the two headers that other clients use.
"""

from __future__ import annotations

from typing import Any, Final

from starlette.requests import Request

from service.logs import CALLER
from service.settings import Settings
from service.wire.errors import Unauthorized
from service.wire.qdrant_inference import token_in

_MESSAGE: Final = (
    "the key is missing or wrong; the server's inference.token must be the API_KEY of this worker, or ?key= of its "
    "inference.address (other clients: the header 'api-key' or 'Authorization: Bearer')"
)


class InferenceKey:
    """Checks the key of requests to `/qdrant/inference`.

    Args:
        settings: the settings.
    """

    def __init__(self, settings: Settings) -> None:
        self._keys = settings.api_key

    def is_outside_body(self, request: Request) -> bool:
        """Whether no key is needed, or the key is in a header or in the address."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        sent = [request.headers.get("api-key", ""), *request.query_params.getlist("key")[:1]]
        if scheme.lower() == "bearer":
            sent.append(bearer.strip())
        return self._keys is None or any(self._matches(key) for key in sent)

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
