"""A client that sends any bytes."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tests.service.client import PATIENCE


@dataclass(frozen=True)
class RawAnswer:
    """An answer.

    Attributes:
        status: the HTTP status.
        head: the head as text.
        body: the body.
    """

    status: int
    head: str
    body: bytes

    @property
    def code(self) -> str | None:
        """The error code in the body."""
        return json.loads(self.body).get("error_code") if self.body else None


class RawClient:
    """A connection on the loopback interface.

    Args:
        port: the port of the server.
        receive_buffer: size of the kernel's buffer for what is not read; None for the default.
    """

    def __init__(self, port: int, receive_buffer: int | None = None) -> None:
        self._socket = socket.socket()
        self._socket.settimeout(PATIENCE)
        if receive_buffer is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.connect(("127.0.0.1", port))
        self._buffered = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def close(self) -> None:
        """Go away."""
        self._socket.close()

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._socket.sendall(data)

    def send_up_to(self, part: bytes, max_bytes: int) -> int:
        """Send a part again and again until the server takes no more for half a second, or has closed.

        Returns:
            The number of bytes that were sent, at most `max_bytes`.
        """
        sent = 0
        self._socket.settimeout(0.5)
        try:
            while sent < max_bytes:
                sent += self._socket.send(part)
        except OSError:
            pass
        finally:
            self._socket.settimeout(PATIENCE)
        return sent

    def answer(self) -> RawAnswer:
        """Read one answer.

        Raises:
            ConnectionError: the server has closed the connection before its end.
        """
        while b"\r\n\r\n" not in self._buffered:
            self._read()
        head, _, self._buffered = self._buffered.partition(b"\r\n\r\n")
        text = head.decode()
        lines = dict(line.lower().split(": ", 1) for line in text.split("\r\n")[1:])
        size = int(lines.get("content-length", "0"))
        while len(self._buffered) < size:
            self._read()
        body, self._buffered = self._buffered[:size], self._buffered[size:]
        return RawAnswer(int(text.split(" ", 2)[1]), text, body)

    def begins_to_answer(self) -> bool:
        """Wait for the first bytes of an answer, which stay unread."""
        return self._socket.recv(8, socket.MSG_PEEK) == b"HTTP/1.1"

    def is_closed(self) -> bool:
        """Wait until the server sends something, and return whether it has closed the connection instead."""
        try:
            return not self._socket.recv(1)
        except ConnectionError:
            return True

    def _read(self) -> None:
        data = self._socket.recv(65_536)
        if not data:
            raise ConnectionError("closed")
        self._buffered += data


def head(method: str = "GET", path: str = "/livez", *headers: str) -> bytes:
    """The head of a request."""
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(path: str, body: Any, *headers: str) -> bytes:
    """A request with a JSON body."""
    content = json.dumps(body).encode()
    return head("POST", path, "Content-Type: application/json", f"Content-Length: {len(content)}", *headers) + content


UNFINISHED = head("POST", "/embed", "Content-Type: application/json", "Content-Length: 1000") + b'{"texts": ['
"""A request whose body is to be continued."""
