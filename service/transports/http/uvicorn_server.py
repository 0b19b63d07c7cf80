"""uvicorn with bounded connections, and with a shutdown that ends in a bounded time."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, Final, cast

import uvicorn
from starlette.types import ASGIApp

from service.transports.http.connection import HEAD_MAX_BYTES, Connection
from service.transports.http.connections import IDLE_TIMEOUT_S, Connections

BACKLOG: Final = 2048
"""Connections that the kernel keeps until the server accepts them."""

_ACCEPTED_TOGETHER_MAX: Final = 100
"""Connections that asyncio accepts at a time. It repeats a failed accept as often, and logs each one."""


class UvicornServer(uvicorn.Server):
    """uvicorn without its own signal handlers, which would close the port before running requests are answered.

    Args:
        app: the application.
        connections: the connections of the server.
        grace_s: time that clients have to read their answers after `should_exit` is set; see `stop_by`.
        has_lifespan: whether the application is told of the start and the end of the server.

    Attributes:
        stop_by: when the connections are closed whatever is under way, in the time of the event loop; None for
            `grace_s` after the port was closed.
    """

    def __init__(self, app: ASGIApp, connections: Connections, grace_s: float, *, has_lifespan: bool = False) -> None:
        super().__init__(
            uvicorn.Config(
                cast(Any, app),
                http=cast(Any, partial(Connection, connections)),
                h11_max_incomplete_event_size=HEAD_MAX_BYTES,
                lifespan="on" if has_lifespan else "off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=IDLE_TIMEOUT_S,
                backlog=_ACCEPTED_TOGETHER_MAX,
            )
        )
        self.stop_by: float | None = None
        self._connections = connections
        self._grace_s = grace_s
        self._watching: asyncio.Task[None] | None = None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the port, and begin to check the connections."""
        asyncio.get_running_loop().set_exception_handler(self._connections.on_loop_error)
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(BACKLOG)  # asyncio has taken the number that it accepts at a time for it
        self._watching = asyncio.create_task(self._connections.watch())

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the port, and the connections after the answers that are under way."""
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        stop_by = self.stop_by
        if stop_by is None:
            stop_by = asyncio.get_running_loop().time() + self._grace_s
        await self._connections.close(0.0 if self.force_exit else stop_by)
        if self._watching is not None:
            self._watching.cancel()
        await self.lifespan.shutdown()
