"""Compression of large answers, for clients that ask for it and where it saves enough."""

from __future__ import annotations

import zlib
from collections.abc import Collection
from typing import Final, Protocol

from backports import zstd
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from embedder import BODIES

COMPRESSED_MIN_BYTES: Final = 32_768
"""Minimum size of an answer that is compressed. One embedding as a list of 1024 numbers has 13 kB."""

SAVINGS_MIN: Final = {"zstd": 0.2, "gzip": 0.35}
"""Minimum share of the bytes that is saved, by coding, in the order of preference.

Lists of numbers lose 60 % of their bytes, and base64 a quarter, for which gzip takes longer than a network of 300
Mbit/s. zstd is three times as fast as gzip on lists and thirty times on base64.
"""

_SAMPLE_BYTES: Final = 16_384
"""Size of the sample that shows how much is saved."""

_QUICK_MAX_BYTES: Final = 65_536
"""Maximum size of a part that is compressed in the event loop, which takes less than a millisecond."""

_LEVEL: Final = 1
"""Level of both codings; higher ones save a few per cent more and are several times slower."""


class _Compressor(Protocol):
    """What the two libraries have in common."""

    def compress(self, data: bytes) -> bytes: ...

    def flush(self) -> bytes: ...


class Compression:
    """ASGI middleware that compresses answers.

    Args:
        app: the application, whose messages have whole answers or large parts.
        plain_paths: paths whose answers are not compressed.
    """

    def __init__(self, app: ASGIApp, plain_paths: Collection[str] = ()) -> None:
        self._app = app
        self._plain_paths = frozenset(plain_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        # Before HTTP/1.1 an answer without a length cannot be sent in parts.
        if scope["http_version"] == "1.0" or scope["path"] in self._plain_paths:
            await self._app(scope, receive, send)
        else:
            answer = _Answer(Headers(scope=scope), send, has_body=scope["method"] != "HEAD")
            await self._app(scope, receive, answer.send)


class _Answer:
    """One answer on its way to the client.

    Args:
        request: the headers of the request.
        send: sends a message.
        has_body: whether the client gets the body. HEAD has the headers of GET, and the server drops the body.
    """

    def __init__(self, request: Headers, send: Send, *, has_body: bool) -> None:
        self._request = request
        self._has_body = has_body
        self._send = send
        self._start: Message | None = None
        self._compressor: _Compressor | None = None

    async def send(self, message: Message) -> None:
        """Send a message of the application, whose first part decides whether the answer is compressed."""
        if message["type"] == "http.response.start":
            self._start = message
            return
        body, more = message.get("body", b""), message.get("more_body", False)
        if self._start is not None:
            start, self._start = self._start, None
            self._begin(start, body, more=more)
            await self._send(start)
        if self._compressor is None:
            await self._send(message)
            return
        compressed = await self._compressed(self._compressor, body, more=more)
        if compressed or not more:
            await self._send({**message, "body": compressed})

    def _begin(self, start: Message, body: bytes, *, more: bool) -> None:
        """Decide by the size of the answer, by what the client accepts, and by a sample."""
        headers = MutableHeaders(scope=start)
        length = headers.get("content-length")
        size = int(length) if length is not None else COMPRESSED_MIN_BYTES if more else len(body)
        if size < COMPRESSED_MIN_BYTES or "content-encoding" in headers:
            return
        headers.add_vary_header("Accept-Encoding")
        coding = accepted(", ".join(self._request.getlist("accept-encoding")))
        if coding is None or not _is_worth_it(coding, body):
            return
        if self._has_body:
            self._compressor = _compressor(coding)
        headers["Content-Encoding"] = coding
        if length is not None:
            del headers["content-length"]

    @staticmethod
    async def _compressed(compressor: _Compressor, body: bytes, *, more: bool) -> bytes:
        def compress() -> bytes:
            return compressor.compress(body) + (b"" if more else compressor.flush())

        return compress() if len(body) <= _QUICK_MAX_BYTES else await BODIES.run(compress)


def accepted(header: str) -> str | None:
    """The coding that a client prefers by its `Accept-Encoding`; None for no compression."""
    weights = dict(map(_weighted, header.lower().split(",")))
    coding = max(SAVINGS_MIN, key=lambda name: weights.get(name, weights.get("*", 0.0)))  # the first of equal ones
    weight = weights.get(coding, weights.get("*", 0.0))
    return coding if weight > 0 and weight >= weights.get("identity", 0.0) else None


def _weighted(part: str) -> tuple[str, float]:
    """The coding of one part of the header, and its weight, which is 0 if it is invalid."""
    name, *parameters = (word.strip() for word in part.split(";"))
    weight = next((value for key, _, value in (word.partition("=") for word in parameters) if key.strip() == "q"), "1")
    try:
        return name, max(0.0, float(weight))
    except ValueError:
        return name, 0.0


def _is_worth_it(coding: str, body: bytes) -> bool:
    """Whether a sample from the middle of the first part shrinks enough."""
    start = max(0, (len(body) - _SAMPLE_BYTES) // 2)
    sample = body[start : start + _SAMPLE_BYTES]
    compressor = _compressor(coding)
    size = len(compressor.compress(sample)) + len(compressor.flush())
    return size <= (1 - SAVINGS_MIN[coding]) * len(sample)


def _compressor(coding: str) -> _Compressor:
    if coding == "zstd":
        return zstd.ZstdCompressor(level=_LEVEL)
    return zlib.compressobj(_LEVEL, wbits=zlib.MAX_WBITS + 16)
