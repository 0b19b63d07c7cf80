"""The tools over streamable HTTP: the port, the names under which it may be called, and the keys."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import resource
import signal
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from embedder.errors import WorkerError
from service.api_keys import ApiKeys
from service.connection_errors import BodyStalled, HeadStalled, HeadTooLarge, TargetTooLong, TooManyConnections
from service.transports.http.connections import ConnectionLimits, Connections, connections_max
from service.transports.http.uvicorn_server import UvicornServer
from service.transports.mcp.server import ToolServer

PATH: Final = "/mcp"
"""Path of the endpoint."""

REQUEST_MAX_BYTES: Final = 8_000_000
"""Maximum request in bytes."""

SESSIONS_MAX: Final = 256
"""Maximum clients at the same time."""

SESSION_IDLE_TIMEOUT_S: Final = 1800.0
"""Seconds without a request after which a client's session ends."""

_SHUTDOWN_TIMEOUT_S: Final = 5.0
"""Seconds that running requests have at the end."""

_STATUSES: Final[Mapping[type[WorkerError], int]] = {
    BodyStalled: 408,
    HeadStalled: 408,
    HeadTooLarge: 431,
    TargetTooLong: 414,
    TooManyConnections: 503,
}

_LOOPBACK: Final = ("127.0.0.1", "localhost", "[::1]")


@dataclass(frozen=True, slots=True)
class HttpOptions:
    """Where to listen, and who may call.

    Attributes:
        host: the address to listen on, without brackets.
        port: the port; 0 for a free one.
        keys: the keys, one of which a client must send; None for no key.
        allowed_hosts: further names under which clients may call, with or without a port.
    """

    host: str
    port: int
    keys: ApiKeys | None = None
    allowed_hosts: Sequence[str] = ()

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can call."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def security(self) -> TransportSecuritySettings:
        """Protection against pages that reach the port through the browser of a user, by a name of their own."""
        own = f"[{self.host}]" if ":" in self.host else self.host
        names = dict.fromkeys((*_LOOPBACK, own, *self.allowed_hosts))
        hosts = [form for name in names for form in ((name,) if _has_port(name) else (name, f"{name}:*"))]
        origins = [f"{scheme}://{host}" for host in hosts for scheme in ("http", "https")]
        return TransportSecuritySettings(allowed_hosts=hosts, allowed_origins=origins)


def listening(options: HttpOptions) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address is not of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in options.host else socket.AF_INET
    return socket.create_server((options.host, options.port), family=family)


async def serve(server: ToolServer, listener: socket.socket, options: HttpOptions) -> None:
    """Serve the tools until SIGINT or SIGTERM.

    Args:
        server: the tools.
        listener: the socket.
        options: who may call.
    """
    app: ASGIApp = server.streamable_http_app(
        streamable_http_path=PATH,
        max_request_body_size=REQUEST_MAX_BYTES,
        max_sessions=SESSIONS_MAX,
        session_idle_timeout=SESSION_IDLE_TIMEOUT_S,
        transport_security=options.security,
    )
    if options.keys is not None:
        app = _KeyRequired(app, options.keys)
    limits = ConnectionLimits(connections_max(resource.getrlimit(resource.RLIMIT_NOFILE)[0]), probes=frozenset())
    running = UvicornServer(app, Connections(limits, _Refusals()), _SHUTDOWN_TIMEOUT_S, has_lifespan=True)

    def end() -> None:
        running.should_exit = True

    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    await running.serve(sockets=[listener])


class _Refusals:
    """The answers to clients that are refused before their request is known."""

    def raw(self, error: WorkerError) -> tuple[int, bytes]:
        """The status and the JSON of an error."""
        return _STATUSES.get(type(error), 400), json.dumps({"error": error.message}).encode()

    def response(self, error: WorkerError, _path: str) -> ASGIApp:
        """The application that answers with an error."""
        status, body = self.raw(error)
        return Response(body, status, media_type="application/json")


class _KeyRequired:
    """Refuses requests without one of the keys, before their body is read."""

    def __init__(self, app: ASGIApp, keys: ApiKeys) -> None:
        self._app = app
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one event of the server's life."""
        if scope["type"] == "http" and self._keys.name_of(_bearer(scope)) is None:
            error = {"error": "unauthorized: send one of the server's keys as Authorization: Bearer"}
            await JSONResponse(error, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _bearer(scope: Scope) -> bytes:
    """The key of a request; empty without one."""
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, key = bytes(value).partition(b" ")
            return key.strip() if scheme.lower() == b"bearer" else b""
    return b""


def _has_port(name: str) -> bool:
    return name.rpartition(":")[2].isdecimal() and not name.endswith("]")
