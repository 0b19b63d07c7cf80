"""An HTTP server on a loopback port whose answers a test decides."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace, TracebackType
from typing import Any

from typing_extensions import Self


@dataclass(frozen=True)
class Request:
    """A request that arrived."""

    method: str
    path: str
    headers: Mapping[str, str]
    content: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)


@dataclass(frozen=True)
class Answer:
    """An answer: a JSON value, or bytes as they are.

    Attributes:
        body: the value or the bytes.
        status: the HTTP status.
        headers: further headers.
        pause_s: seconds before each byte of the body.
    """

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


Respond = Callable[[Request], Answer | None]
"""The answer to a request; None closes the connection without one."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep silent about a client that waits no longer."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class LoopbackServer:
    """A server that listens within the context and answers as `respond` says.

    Attributes:
        requests: the requests so far, in the order of their arrival.
    """

    def __init__(self, respond: Respond) -> None:
        self.requests: list[Request] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_: object) -> None:
                """Keep silent."""

            def _answer(self) -> None:
                length = int(self.headers.get("content-length", 0))
                headers = {name.lower(): value for name, value in self.headers.items()}
                request = Request(self.command, self.path, headers, self.rfile.read(length))
                owner.requests.append(request)
                answer = respond(request)
                if answer is None:
                    self.close_connection = True
                    return
                content = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(content)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                for piece in [content] if not answer.pause_s else map(bytes, zip(content)):
                    time.sleep(answer.pause_s)
                    self.wfile.write(piece)

            do_GET = do_POST = do_DELETE = _answer  # noqa: N815 - the names are those of the base class

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join(10)
        self._server.server_close()


def clock_ahead(begun: Callable[[], bool]) -> SimpleNamespace:
    """The module `time` of a client whose calls are out of time as soon as this is true, and not before."""
    return SimpleNamespace(monotonic=lambda: time.monotonic() + 1000 * begun())


def scripted(*answers: Answer | None) -> Respond:
    """Give these answers in order, and the last one again and again."""
    remaining = list(answers)
    return lambda _request: remaining.pop(0) if len(remaining) > 1 else remaining[0]
