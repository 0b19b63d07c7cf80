"""Scripted REST server, for calls over HTTP when gRPC is not reachable."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class RestDouble:
    """Answers by "METHOD /path": a list of (status, headers, JSON or text), of which the last one is repeated.

    A function in `before` is called once before the next such call is answered.
    """

    answers: dict[str, list[tuple[int, dict[str, str], Any]]] = field(default_factory=dict)
    requests: list[tuple[str, Any]] = field(default_factory=list)
    before: dict[str, Callable[[], None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        double = self

        class Handler(BaseHTTPRequestHandler):
            def _serve(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                call = f"{self.command} {self.path.split('?')[0]}"
                double.requests.append((call, json.loads(body) if body else None))
                double.before.pop(call, lambda: None)()
                script = double.answers.get(call, [(404, {}, {"status": {"error": "Not found"}})])
                status, headers, content = script.pop(0) if len(script) > 1 else script[0]
                data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_PUT = do_POST = do_PATCH = _serve  # noqa: N815

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port."""
        self._server.shutdown()
        self._server.server_close()


def result(value: Any) -> dict[str, Any]:
    """Wrap a result in the envelope of an answer."""
    return {"time": 0.0, "status": "ok", "result": value}


def refusal(message: str) -> dict[str, Any]:
    """Wrap a message in the envelope of an error."""
    return {"time": 0.0, "status": {"error": message}, "result": None}
