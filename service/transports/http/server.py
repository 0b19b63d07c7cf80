"""The HTTP server on `PORT`, for RunPod's load-balancing endpoints and for self-hosting.

    PORT=8000 API_KEY=... bge-m3-qdrant serve

`python handler.py` also starts it if `PORT` is set and there is no queue; see `service.transports.queue.worker`.

The port answers immediately: `/ping` with 204 while the model loads in the background, and with 200 when it is ready.
After SIGTERM new requests get 503, running requests are answered, and the process ends with status 0, after
`SHUTDOWN_GRACE_S` at the latest. The status is 1 if a readiness check fails or the last device is lost, and 2 if the
settings cannot work.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import signal
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import Final

from embedder import ConfigurationError, WorkerError, in_own_thread, whereabouts
from service import logs
from service.memory_plan import Part
from service.metrics import Metrics
from service.operations import Operations
from service.readiness import checks
from service.settings import Settings
from service.shutdown import end_process, end_process_after
from service.transports.http.connections import ConnectionLimits, Connections
from service.transports.http.gate import ErrorResponses
from service.transports.http.jobs import jobs_part
from service.transports.http.routes import application
from service.transports.http.state import ServerState
from service.transports.http.uvicorn_server import BACKLOG, UvicornServer

log = logging.getLogger(__name__)

DEFAULT_PORT: Final = 8000
"""Port of `bge-m3-qdrant serve` where `PORT` is not set."""

_CLOSING_SHARE: Final = 0.1
"""Share of `SHUTDOWN_GRACE_S` that is left to answer the requests that are cut, and as much again to end."""

_CLOSING_MAX_S: Final = 1.0
"""Maximum of the same time."""

Build = Callable[[Settings], Operations]


def serve(settings: Settings, build: Build) -> int:
    """Open the port, load the model, and serve until a signal. Must be called in the main thread.

    Args:
        settings: the settings.
        build: loads the model; called once, in a thread.

    Returns:
        The exit status of the process. If the model is still loading, the process ends here instead, since the thread
        that loads it cannot be stopped.
    """
    logs.configure_server(settings.log_level, settings.log_format)
    port = settings.port or DEFAULT_PORT
    try:
        listener = listening(port, settings.host)
    except OSError as error:
        return logs.refuse_to_start(_unusable(settings, port, error))
    if settings.api_key is None:
        log.warning("API_KEY is not set: anyone who can reach the port can read, write and delete points")
    with listener:
        server = _Server(settings, listener)
        status = asyncio.run(server.run(build))
    if server.loading:
        end_process(status)
    return status


def listening(port: int, host: str | None = None) -> socket.socket:
    """A socket that listens on a port, with TCP_NODELAY.

    Without TCP_NODELAY the body of an answer waits 40 ms for the client's delayed acknowledgement of the head. asyncio
    sets the option only on sockets with an explicit protocol, which `socket.create_server` does not set.

    Args:
        port: the port.
        host: the IP address of an interface; None for all of IPv4, `::` for all of both.

    Raises:
        OSError: the port is in use or not permitted, or no interface has the address.
    """
    family = socket.AF_INET6 if host is not None and ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    listener = socket.create_server((host or "", port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _unusable(settings: Settings, port: int, error: OSError) -> str:
    """The message for a port that cannot be opened."""
    if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
        return f"HOST must be the address of an interface of this machine, got {settings.host} ({error.strerror})"
    return f"PORT must be a free port, got {port} ({error.strerror}); choose another port"


class _Server:
    """The server process: its port, its model and its shutdown."""

    def __init__(self, settings: Settings, listener: socket.socket) -> None:
        self._listener = listener
        self._port = listener.getsockname()[1]
        self._state = ServerState(settings, self._stop)
        self._status = 0
        self._signalled = False
        self._builder: threading.Thread | None = None
        self._cut: Counter[str] = Counter()
        limits = ConnectionLimits.of(settings)
        self._parts = (limits.part, jobs_part(settings))
        self._connections = Connections(limits, ErrorResponses(), self._metrics)
        self._uvicorn = UvicornServer(application(self._state), self._connections, settings.shutdown_grace_s)

    async def run(self, build: Build) -> int:
        """Serve until a shutdown, and return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        # A daemon thread, so that a signal during loading can end the process.
        self._builder = threading.Thread(target=self._load, args=(loop, build), name="build", daemon=True)
        self._builder.start()
        await self._uvicorn.serve(sockets=[self._listener])
        self._report_cut()
        if self._state.operations is not None:
            await in_own_thread(self._state.operations.close)
        return self._exit_status

    @property
    def _exit_status(self) -> int:
        return 1 if self._state.state == "lost" else self._status

    @property
    def loading(self) -> bool:
        """Whether the model is loading, or has been loaded after the shutdown began."""
        return self._builder is not None and (self._builder.is_alive() or self._state.operations is None)

    def _load(self, loop: asyncio.AbstractEventLoop, build: Build) -> None:
        settings = self._state.settings
        try:
            operations = _checked(build(settings), settings, self._parts)
        except ConfigurationError as error:
            self._status = logs.refuse_to_start(str(error))
        except WorkerError as error:
            log.critical("a readiness check failed: %s", error.message)
            self._status = 1
        except BaseException as error:  # noqa: BLE001 - the port must not stay open without a model
            log.critical("the model could not be loaded: %s", whereabouts(error))
            self._status = 1
        else:
            operations.metrics.count_connections(lambda: len(self._connections))
            operations.when_lost(lambda: _call(loop, partial(self._shut_down, lost=True)))
            _call(loop, partial(self._state.open, operations))
            log.info("serving %s on port %d", operations.model_label, self._port)
            return
        _call(loop, self._shut_down)

    def _on_signal(self) -> None:
        if self._signalled:
            # Threads wait for the running requests, and only the end of the process ends them.
            log.warning("second signal: ending with unanswered requests")
            end_process(self._exit_status)
        self._signalled = True
        if self._state.closing:  # the device is lost: do not wait for requests that hang on it
            self._uvicorn.force_exit = True
            self._stop()
            return
        log.info("shutting down: finishing running requests")
        self._shut_down()

    def _shut_down(self, *, lost: bool = False) -> None:
        """Finish the running requests, and end the process in `SHUTDOWN_GRACE_S`. Idempotent."""
        if not self._state.closing:
            grace_s = self._state.settings.shutdown_grace_s
            closing_s = min(_CLOSING_MAX_S, _CLOSING_SHARE * grace_s)
            loop = asyncio.get_running_loop()
            self._uvicorn.stop_by = loop.time() + grace_s - closing_s
            self._connections.is_stopping = True
            loop.call_later(grace_s - 2 * closing_s, self._cut_requests)
            end_process_after(grace_s, lambda: self._exit_status)
        self._state.close(lost=lost)

    def _cut_requests(self) -> None:
        self._cut = self._state.cut()

    def _report_cut(self) -> None:
        """Log what the shutdown has not finished."""
        requests, connections = _counts(self._cut.items()), _counts(self._connections.cut.items())
        if requests or connections:
            log.warning(
                "the shutdown has cut requests: %s; and connections: %s", requests or "none", connections or "none"
            )

    def _metrics(self) -> Metrics | None:
        operations = self._state.operations
        return None if operations is None else operations.metrics

    def _stop(self) -> None:
        self._uvicorn.should_exit = True


def _counts(counts: Iterable[tuple[str, int]]) -> str:
    return ", ".join(f"{kind} {count}" for kind, count in sorted(counts))


def _checked(operations: Operations, settings: Settings, parts: Sequence[Part]) -> Operations:
    """Set memory aside and run the readiness checks, and close the operations if one fails.

    Raises:
        ConfigurationError: too little memory is left for requests.
        WorkerError: a check failed.
    """

    async def run_checks() -> None:
        for check in checks(operations, settings):
            await check()

    try:
        operations.set_aside(parts)
        asyncio.run(run_checks())
    except BaseException:
        operations.close()
        raise
    return operations


def _call(loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
    """Call a function in the loop from another thread; has no effect after the loop has ended."""
    with suppress(RuntimeError):
        loop.call_soon_threadsafe(call)


def main() -> int:
    """Serve with the settings of the environment, and return the exit status."""
    logs.configure_start()
    try:
        settings = Settings.from_environment()
    except ConfigurationError as error:
        return logs.refuse_to_start(str(error))
    return serve(settings, Operations.build)
