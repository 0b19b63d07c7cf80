"""Access of pages of other origins (CORS), for the origins of `CORS_ORIGINS`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.responses import Response

PREFLIGHT_MAX_AGE_S: Final = 7200
"""Time for which a browser keeps the answer to a preflight request; Chrome keeps none for longer."""

EXPOSED_HEADERS: Final = "Location, Preference-Applied, Retry-After, X-Request-ID, X-Warning"
"""Headers of answers that a page may read."""

_METHODS: Final = "DELETE, GET, HEAD, POST"
_HEADER_NAMES = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~, -]{1,4096}")


class Cors:
    """The headers for pages of other origins. Cookies are never allowed, since the worker has none.

    Args:
        origins: the allowed origins; `*` allows every one.
    """

    def __init__(self, origins: Sequence[str]) -> None:
        self._origins = frozenset(origins)

    def headers(self, request: Headers) -> Mapping[str, str]:
        """The headers that every answer to a request needs; empty for a request of no allowed origin."""
        origin = request.get("origin")
        if origin is None or not self.allows(origin):
            return {}
        allowed = "*" if "*" in self._origins else origin
        return {"Access-Control-Allow-Origin": allowed, "Access-Control-Expose-Headers": EXPOSED_HEADERS}

    @property
    def varies(self) -> bool:
        """Whether answers differ by the origin of the request."""
        return bool(self._origins) and "*" not in self._origins

    def preflight(self, method: str, request: Headers) -> Response | None:
        """The answer to a preflight request of an allowed origin, which browsers send without a key; None for others.

        Any header may be sent, since clients add their own (`X-Stainless-...`) and the worker ignores those.
        """
        if method != "OPTIONS" or "access-control-request-method" not in request or not self.headers(request):
            return None
        answer = {"Access-Control-Allow-Methods": _METHODS, "Access-Control-Max-Age": str(PREFLIGHT_MAX_AGE_S)}
        names = request.get("access-control-request-headers", "")
        if _HEADER_NAMES.fullmatch(names):  # a list of names is sent back; `*` would not include Authorization
            answer["Access-Control-Allow-Headers"] = names
        return Response(status_code=204, headers=answer)

    def allows(self, origin: str) -> bool:
        """Whether pages of an origin may read answers."""
        return "*" in self._origins or origin.lower() in self._origins
