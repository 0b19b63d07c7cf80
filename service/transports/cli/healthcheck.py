"""Whether this container serves, for Docker's HEALTHCHECK.

Asks the HTTP server, which answers 204 while the model loads and 503 while it shuts down. A process without one
is healthy as long as it runs. Imports next to nothing but the standard library, since it starts every few seconds.
"""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from service.variables import plain

_ANY_HOST: Final[Mapping[str, str]] = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104
"""Addresses of this machine by the value of `HOST` that stands for all of its interfaces."""


@dataclass(frozen=True, slots=True)
class Health:
    """Whether this container serves.

    Attributes:
        healthy: whether it does, or has no HTTP server to ask.
        reason: what was asked, and what the answer was.
    """

    healthy: bool
    reason: str


def check(environment: Mapping[str, str], *, timeout_s: float = 3.0) -> Health:
    """Ask the HTTP server.

    Args:
        environment: `PORT`, `HOST`, and whether a RunPod queue is served instead.
        timeout_s: time to wait for the answer.
    """
    port = plain(environment.get("PORT", ""))
    if environment.get("RUNPOD_WEBHOOK_GET_JOB"):
        return Health(healthy=True, reason="this process serves a RunPod queue and no port")
    if not port:
        return Health(healthy=True, reason="PORT is unset, so no server is asked")
    if not (port.isascii() and port.isdigit() and 1 <= int(port) <= 65_535):
        return Health(healthy=False, reason=f"PORT must be an integer from 1 to 65535, got {port!r}")
    host = plain(environment.get("HOST", "")).strip("[]")
    connection = http.client.HTTPConnection(_ANY_HOST.get(host, host), int(port), timeout=timeout_s)
    try:
        connection.request("GET", "/ping")
        status = connection.getresponse().status
    except (OSError, http.client.HTTPException) as error:
        return Health(healthy=False, reason=f"port {port} gives no answer ({type(error).__name__})")
    finally:
        connection.close()
    return Health(healthy=status == http.HTTPStatus.OK, reason=f"/ping on port {port} answered {status}")
