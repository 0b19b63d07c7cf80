"""The HTTP door on loopback, in a thread of the test, over operations that the test has made."""

from __future__ import annotations

import asyncio
import socket
import threading
from types import TracebackType
from typing import Any, Self

import httpx
import uvicorn

from service.door import Door
from service.operations import Operations
from service.routes import BODY_PATIENCE, MOST_BYTES, application
from service.settings import Settings
from tests.service.client import ENVIRONMENT, PATIENCE


class Served:
    """A door that is open within the context.

    Args:
        operations: None: the model still loads.
        settings: those of the operations unless given.
        most_bytes: of a body.
        patience: seconds between two parts of a body.
    """

    def __init__(
        self,
        operations: Operations | None,
        *,
        settings: Settings | None = None,
        most_bytes: int = MOST_BYTES,
        patience: float = BODY_PATIENCE,
    ) -> None:
        own = settings or (operations.settings if operations else Settings.from_environment(ENVIRONMENT))
        self.emptied = threading.Event()
        self._door = Door(own, self.emptied.set)
        if operations is not None:
            self._door.open(operations)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        self.url = f"http://127.0.0.1:{self.port}"
        config = uvicorn.Config(
            application(self._door, most_bytes=most_bytes, patience=patience),
            lifespan="off",
            ws="none",
            log_config=None,
            access_log=False,
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="door")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        self._listener.close()

    def client(self, **headers: str) -> httpx.Client:
        """Sends requests with these headers."""
        return httpx.Client(base_url=self.url, headers=headers, timeout=PATIENCE, trust_env=False)

    def do(self, method: str, *args: Any, **more: Any) -> None:
        """Call a method of the door in its loop, and wait for it."""

        async def call() -> None:
            getattr(self._door, method)(*args, **more)

        asyncio.run_coroutine_threadsafe(call(), self._loop).result(PATIENCE)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._server.serve(sockets=[self._listener]))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
