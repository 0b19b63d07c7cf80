"""What both clients share of httpx: a step as a request, its answer as a reply, its errors as the package's own."""

from __future__ import annotations

import time
from typing import Any, Final

import httpx

from bge_m3_qdrant_client.errors import ClientError, ConnectionFailed, InvalidOption, TimedOut, UnexpectedAnswer
from bge_m3_qdrant_client.steps import Reply, Send
from bge_m3_qdrant_client.version import __version__

CONNECT_TIMEOUT_S: Final = 10.0

_AGENT: Final = f"bge-m3-qdrant-client/{__version__}"

_UNSENT: Final = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError)
"""Errors before the request was sent."""


def _arguments(step: Send) -> dict[str, Any]:
    """The arguments of httpx's `request`."""
    return {
        "method": step.method,
        "url": step.url,
        "content": step.content,
        "headers": {"User-Agent": _AGENT, **step.headers},
        "timeout": httpx.Timeout(step.timeout_s, connect=min(CONNECT_TIMEOUT_S, step.timeout_s)),
        "follow_redirects": False,
    }


def request(http: httpx.Client, step: Send) -> Reply:
    """Send a request and read the whole answer.

    The timeouts of httpx begin anew with every piece of an answer, so the pieces have a deadline together.

    Raises:
        InvalidOption: the client of httpx is closed.
        httpx.HTTPError: no answer came.
        TimedOut: the answer was not whole in time.
    """
    at = _start(http, step)
    with http.stream(**_arguments(step)) as response:
        content = b"".join(_in_time(piece, at, step) for piece in response.iter_bytes())
    return Reply(response.status_code, response.headers, content)


async def arequest(http: httpx.AsyncClient, step: Send) -> Reply:
    """See `request`."""
    at = _start(http, step)
    async with http.stream(**_arguments(step)) as response:
        content = b"".join([_in_time(piece, at, step) async for piece in response.aiter_bytes()])
    return Reply(response.status_code, response.headers, content)


def client_error(error: httpx.HTTPError, step: Send) -> ClientError:
    """The error of this package for one of httpx, whose message may name the host."""
    kind = type(error).__name__
    if isinstance(error, _UNSENT):
        return ConnectionFailed(f"no connection came about ({kind})", sent=False)
    if isinstance(error, httpx.TimeoutException):
        return TimedOut(f"no answer within {step.limit_s:.3g} s ({kind})")
    if isinstance(error, httpx.TransportError) and not isinstance(error, httpx.UnsupportedProtocol):
        return ConnectionFailed(f"the connection ended before the answer ({kind})")
    return UnexpectedAnswer(f"the answer cannot be read ({kind})")


def _start(http: httpx.Client | httpx.AsyncClient, step: Send) -> float:
    """The time by which the answer must be whole."""
    if http.is_closed:
        raise InvalidOption("the client is closed; make another one, or close it later")
    return time.monotonic() + step.timeout_s


def _in_time(piece: bytes, at: float, step: Send) -> bytes:
    if time.monotonic() > at:
        raise TimedOut(f"the answer was not whole within {step.limit_s:.3g} s")
    return piece
