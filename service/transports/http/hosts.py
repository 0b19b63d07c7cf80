"""Which hosts a request may name, and which origins its page may have.

Both protect a worker that people reach with a browser. A page of another site may name its own host for the address of
the worker (DNS rebinding), so that the browser takes the worker for that site.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers

from service.settings import Settings
from service.wire.errors import ForeignOrigin, WrongHost

LOOPBACK_HOSTS: Final = ("localhost", "127.0.0.1", "[::1]")
"""Hosts that a request may name if the server listens on the loopback interface and `ALLOWED_HOSTS` is unset."""

_USUAL_PORTS: Final = (":80", ":443")
"""Ports that clients leave out."""


class Hosts:
    """The hosts that requests may name.

    Args:
        allowed: names with an optional port, without which any port is allowed; `*` allows every host.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = frozenset(allowed)

    @classmethod
    def of(cls, settings: Settings) -> Hosts:
        """The hosts by the settings: those of the loopback interface if the server listens there alone, else all."""
        if settings.allowed_hosts:
            return cls(settings.allowed_hosts)
        if settings.host is None or not ipaddress.ip_address(settings.host).is_loopback:
            return cls(["*"])
        return cls([*LOOPBACK_HOSTS, f"[{settings.host}]" if ":" in settings.host else settings.host])

    def check(self, request: Headers) -> None:
        """Check the host that a request names.

        Raises:
            WrongHost: it is another one, or missing.
        """
        if "*" in self._allowed:
            return
        names = request.getlist("host")
        if len(names) != 1 or not self._allows(names[0]):
            raise WrongHost(
                "the Host of the request must be one of ALLOWED_HOSTS; add the name by which clients reach the worker "
                "(ALLOWED_HOSTS=worker.example.org,localhost), or * for any name"
            )

    def _allows(self, host: str) -> bool:
        address, bracket, end = host.lower().rpartition("]")  # of IPv6, whose colons separate no port
        name, _, port = end.partition(":")
        name = address + bracket + name
        name = name.removesuffix(".")
        ports = [":" + port] if port else _USUAL_PORTS
        return name in self._allowed or any(name + port in self._allowed for port in ports)


def check_origin(request: Headers, *, is_allowed: bool) -> None:
    """Check that the page that sends a request is one of the worker itself or of an allowed origin.

    Args:
        request: the headers.
        is_allowed: whether its origin is allowed by `CORS_ORIGINS`.

    Raises:
        ForeignOrigin: it is the page of another site.
    """
    origin = request.get("origin")
    if origin is None or is_allowed or request.get("sec-fetch-site") == "same-origin":
        return
    host = origin.lower().partition("://")[2]
    if not host or _without_usual_port(host) != _without_usual_port(request.get("host", "").lower()):
        raise ForeignOrigin(
            "the Origin of the request must be that of the worker, or one of CORS_ORIGINS, since the worker has no "
            "API_KEY; add the origin to CORS_ORIGINS, or set API_KEY"
        )


def _without_usual_port(host: str) -> str:
    return next((host.removesuffix(port) for port in _USUAL_PORTS if host.endswith(port)), host)
