"""The HTTP server: the operations over HTTP on `PORT`, for load-balancing endpoints and for plain self-hosting.

    PORT=8000 API_KEY=... bge-m3-qdrant serve

`python handler.py` starts it too, where `PORT` is set and no queue is: see `service.transports.queue.worker`.

The port answers at once: `/ping` with 204 while the model loads in the background, 200 when it is ready. On
SIGTERM new requests get 503, those that run are answered, then the process ends with status 0; it ends with
1 when it is unfit to serve or the last device is lost, and with 2 when the settings cannot work.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final

import uvicorn

from embedder import ConfigurationError, WorkerError, whereabouts
from service import logs
from service.operations import Operations
from service.readiness import checks
from service.settings import Settings
from service.shutdown import end_process
from service.transports.http.routes import application
from service.transports.http.state import ServerState

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 8000
"""Port of `bge-m3-qdrant serve` where `PORT` is not set."""

SHUTDOWN_TIMEOUT_S: Final = 30
"""Seconds that clients have to read their answers when the process ends."""

Build = Callable[[Settings], Operations]


def serve(settings: Settings, build: Build, *, shutdown_timeout_s: int = SHUTDOWN_TIMEOUT_S) -> int:
    """Open the port, load the model, and serve until told to stop. Call it in the main thread.

    Args:
        settings: the operator's decisions.
        build: loads the model; called once, in a thread.
        shutdown_timeout_s: a client that has not read its answer by then is left behind.

    Returns:
        The exit status of the process, which has ended by then if the model still loads: no thread can be stopped
        in the middle of that.
    """
    logs.configure_server(settings.log_level, settings.log_format)
    port = settings.port or DEFAULT_PORT
    try:
        listener = listening(port)
    except OSError as error:
        return logs.refuse_to_start(f"PORT={port}: {error.strerror}; choose another")
    if settings.api_key is None:
        log.warning("API_KEY is not set: whoever reaches the port may read, write and delete")
    with listener:
        server = _Server(settings, listener, shutdown_timeout_s)
        status = asyncio.run(server.run(build))
    if server.loading:
        end_process(status)
    return status


def listening(port: int) -> socket.socket:
    """A socket that listens on this port of every interface; what it accepts sends at once.

    Without that, an answer's body waits for the client's delayed acknowledgement of its head, 40 ms: asyncio sets the
    option only on sockets that name their protocol, which those of `socket.create_server` do not.

    Raises:
        OSError: the port is taken or not allowed.
    """
    listener = socket.create_server(("", port), backlog=2048)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


class _Uvicorn(uvicorn.Server):
    """uvicorn without its own signal handlers, which would close the port before the work is done."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class _Server:
    """The port, the model behind it, and their end."""

    def __init__(self, settings: Settings, listener: socket.socket, shutdown_timeout_s: int) -> None:
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._state = ServerState(settings, self._stop)
        self._status = 0
        self._told = False
        self._builder: threading.Thread | None = None
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                application(self._state),
                lifespan="off",
                ws="none",
                access_log=False,
                log_config=None,
                server_header=False,
                timeout_keep_alive=75,  # longer than load balancers keep theirs, so that none meets a closing one
                timeout_graceful_shutdown=shutdown_timeout_s,
            )
        )

    async def run(self, build: Build) -> int:
        """Serve; returns the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # A daemon: a signal while it loads ends the process without waiting for it.
        self._builder = threading.Thread(target=self._load, args=(loop, build), name="build", daemon=True)
        self._builder.start()
        await self._uvicorn.serve(sockets=[self._listener])
        if self._state.operations is not None:
            await asyncio.to_thread(self._state.operations.close)
        return self._exit_status

    @property
    def _exit_status(self) -> int:
        return 1 if self._state.state == "lost" else self._status

    @property
    def loading(self) -> bool:
        """Whether the model is being loaded, or was loaded for nobody."""
        return self._builder is not None and (self._builder.is_alive() or self._state.operations is None)

    def _load(self, loop: asyncio.AbstractEventLoop, build: Build) -> None:
        settings = self._state.settings
        try:
            operations = _checked(build(settings), settings)
        except ConfigurationError as error:
            self._status = logs.refuse_to_start(str(error))
        except WorkerError as error:
            log.critical("unfit to serve: %s", error.message)
            self._status = 1
        except BaseException as error:  # noqa: BLE001 - a port without a model behind it must not stay open
            log.critical("the model could not be loaded: %s", whereabouts(error))
            self._status = 1
        else:
            operations.when_lost(lambda: _call(loop, partial(self._state.close, lost=True)))
            _call(loop, partial(self._state.open, operations))
            log.info("serving %s on port %d", operations.model_label, self._port)
            return
        _call(loop, self._state.close)

    def _on_signal(self) -> None:
        if self._told:
            # What runs is waited for in threads, which nothing else ends.
            log.warning("told to stop again; ending with requests unanswered")
            end_process(self._exit_status)
        self._told = True
        if self._state.closing:  # for a lost device: requests that hang on it are not waited for
            self._uvicorn.force_exit = True
            self._stop()
            return
        log.info("told to stop; finishing what runs")
        self._state.close()

    def _stop(self) -> None:
        self._uvicorn.should_exit = True


def _checked(operations: Operations, settings: Settings) -> Operations:
    """The operations, if they pass the checks of a queue worker too; otherwise they are closed.

    Raises:
        WorkerError: what they cannot do.
    """

    async def each() -> None:
        for check in checks(operations, settings):
            await check()

    try:
        asyncio.run(each())
    except BaseException:
        operations.close()
        raise
    return operations


def _call(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """From another thread; harmless once the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def main() -> int:
    """Serve by the settings of the environment."""
    try:
        settings = Settings.from_environment()
    except ConfigurationError as error:
        return logs.refuse_to_start(str(error))
    return serve(settings, Operations.build)
