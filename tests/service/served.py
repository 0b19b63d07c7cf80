"""The HTTP server on a loopback port, in a thread, over operations of the test."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from types import TracebackType
from typing import Any, Self

import httpx

from service.operations import Operations
from service.settings import Settings
from service.transports.http.body import BODY_MAX_BYTES, BODY_PART_TIMEOUT_S
from service.transports.http.connections import ConnectionLimits, Connections
from service.transports.http.gate import ErrorResponses
from service.transports.http.routes import application
from service.transports.http.state import ServerState
from service.transports.http.uvicorn_server import UvicornServer
from tests.service.client import ENVIRONMENT, PATIENCE


class Served:
    """A server that listens within the context.

    Args:
        operations: the operations; None for a model that is still loading.
        settings: the settings; None for those of the operations.
        body_max_bytes: maximum size of a request body.
        body_part_timeout_s: maximum wait for the next part of a body.
        port: the port; 0 for a free one.
        limits: the bounds of connections; None for those of the settings.
    """

    def __init__(
        self,
        operations: Operations | None,
        *,
        settings: Settings | None = None,
        body_max_bytes: int = BODY_MAX_BYTES,
        body_part_timeout_s: float = BODY_PART_TIMEOUT_S,
        port: int = 0,
        limits: ConnectionLimits | None = None,
    ) -> None:
        own = settings or (operations.settings if operations else Settings.from_environment(ENVIRONMENT))
        self.emptied = threading.Event()
        self._state = ServerState(own, self.emptied.set)
        if operations is not None:
            self._state.open(operations)
        self._listener = socket.create_server(("127.0.0.1", port))
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as that of the process has it
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        self.connections = Connections(
            limits or ConnectionLimits.of(own), ErrorResponses(), lambda: operations.metrics if operations else None
        )
        app = application(self._state, body_max_bytes=body_max_bytes, body_part_timeout_s=body_part_timeout_s)
        self._server = UvicornServer(app, self.connections, grace_s=PATIENCE / 2)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="http")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self._thread.join(PATIENCE)
        self._listener.close()

    @property
    def is_alive(self) -> bool:
        """Whether the server still runs."""
        return self._thread.is_alive()

    @property
    def running(self) -> Counter[str]:
        """The number of running requests by route."""
        return Counter(running.kind for running in list(self._state._running))

    def stop(self) -> None:
        """Begin a stop without waiting for its end."""
        self._server.should_exit = True

    def client(self, **headers: str) -> httpx.Client:
        """A client that sends these headers."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False)

    def do(self, method: str, *args: Any, **more: Any) -> None:
        """Call a method of the server's state in its event loop, and wait for it."""

        async def call() -> None:
            getattr(self._state, method)(*args, **more)

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
