"""Reading of request bodies: limited in size and in memory, decompressed, and parsed as strict JSON."""

from __future__ import annotations

import asyncio
import ctypes
import re
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any, Final

from starlette.requests import Request

from embedder import BODIES, QUICK, Threads
from service.connection_errors import BodyStalled
from service.memory_budget import Reservation
from service.transports.http.decoder import Decoder
from service.validation import shown
from service.wire.errors import BodyTooLarge, NotJson
from service.wire.json_limits import JsonLimits
from service.wire.json_parts import parse_json
from service.wire.json_scan import scan

BODY_MAX_BYTES: Final = 30_000_000
"""Maximum request body (RunPod's load balancer limit)."""

BODY_PART_TIMEOUT_S: Final = 30.0
"""Maximum wait for the next part of a body, so that a stalled client does not delay a shutdown."""

BODY_TIMEOUT_S: Final = 600.0
"""Maximum time for a whole body, so that clients that send a byte now and then do not hold the memory of others."""

_THREAD_MIN_BYTES: Final = 100_000
"""Minimum size of a body that is parsed in a thread."""

_PARSER: Final = Threads("json", 1)
"""The thread that parses large bodies, one after another: several would keep the interpreter from the event loop."""

_QUICK_PART_MAX_BYTES: Final = 1024
"""Maximum size of a compressed part that is decompressed among quick work."""


class Received:
    """The body of a request, and the memory that it and its values take.

    Args:
        content: the body, decompressed.
        memory: the reservation of the request, which holds the memory of the content already.
        limits: the limits of its JSON.
    """

    def __init__(self, content: bytearray, memory: Reservation, limits: JsonLimits) -> None:
        self.content = content
        self._memory = memory
        self._limits = limits

    async def parsed(self) -> Any:
        """Parse the body, and reserve the memory of its values before they are created.

        Raises:
            InvalidRequest: the body is not valid JSON, or exceeds a limit.
            Overloaded: the values do not fit into memory beside those of other requests.
        """
        if len(self.content) <= _THREAD_MIN_BYTES:
            return self._parsed()
        return await _PARSER.run(self._parsed)

    def discard(self) -> None:
        """Give back the memory of the body, which is parsed."""
        self._memory.shrink(len(self.content))
        self.content = bytearray()

    def _parsed(self) -> Any:
        scanned = scan(self.content, self._limits)
        self._memory.grow(scanned.size.max_bytes)
        return parse_json(self.content, scanned)


async def read_body(
    request: Request,
    memory: Reservation,
    *,
    max_bytes: int,
    max_nodes: int,
    part_timeout_s: float,
    also: Callable[[int], None] | None = None,
) -> Received:
    """Read the body of a request, and decompress it.

    Args:
        request: the request.
        memory: the reservation of the request, which grows as the body arrives.
        max_bytes: maximum size of the body, before and after it is decompressed.
        max_nodes: maximum number of values and field names in the body.
        part_timeout_s: maximum wait for the next part of the body.
        also: called with the size of each part before it is kept; an error ends the reading. None for nothing.

    Raises:
        NotJson: the content type is not JSON. Browsers send JSON to another site only with that site's consent.
        UnknownCoding: the body is compressed in a way that is not understood.
        BodyStalled: the client stopped sending before the end, or was too slow.
        BodyTooLarge: the announced or the received size exceeds the limit.
        InvalidRequest: the compressed data is damaged.
        Overloaded: the body does not fit into memory beside those of other requests.
        ClientDisconnect: the client disconnected before the end.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJson(f"Content-Type must be application/json, got {_shown_kind(kind)}")

    def hold(size: int) -> None:
        if also is not None:
            also(size)
        memory.grow(size)

    decoder = Decoder.of(", ".join(request.headers.getlist("content-encoding")), max_bytes)
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > max_bytes:
        raise BodyTooLarge(f"the body must have at most {max_bytes} bytes, got {announced[:20]}")
    content, size = _unwritten(int(announced) if decoder is None else 0), 0
    stream, deadline = request.stream(), asyncio.get_running_loop().time() + BODY_TIMEOUT_S
    while (part := await _next(stream, part_timeout_s, deadline)) is not None:
        start, size = size, size + len(part)
        if size > max_bytes:
            raise BodyTooLarge(f"the body must have at most {max_bytes} bytes, got more")
        if decoder is None:
            hold(len(part))
            content[start:size] = part  # at the end, where nothing is announced
        else:
            threads = QUICK if len(part) <= _QUICK_PART_MAX_BYTES else BODIES
            await threads.run(partial(_decompress, decoder, part, content, hold))
    if decoder is not None:
        decoder.check_complete()
        size = len(content)
    del content[size:]  # never what was in the memory before
    return Received(content, memory, JsonLimits.of(max_nodes, max_bytes))


def _unwritten(size: int) -> bytearray:
    """A bytearray of any content, whose memory is taken as it is written.

    Bodies that grow beside each other would leave holes in the heap, which are not given back. `bytearray(size)` writes
    zeros, so that a client takes the memory of a body that it has only announced.
    """
    new = ctypes.pythonapi.PyByteArray_FromStringAndSize
    new.argtypes, new.restype = (ctypes.c_char_p, ctypes.c_ssize_t), ctypes.py_object
    content: bytearray = new(None, size)
    return content


def _decompress(decoder: Decoder, part: bytes, content: bytearray, hold: Callable[[int], None]) -> None:
    for piece in decoder.pieces(part):
        hold(len(piece))
        content += piece


async def _next(stream: AsyncIterator[bytes], timeout_s: float, deadline: float) -> bytes | None:
    """The next part of a body, which must come before a time of the event loop's clock; None at the end."""
    pause_end = asyncio.get_running_loop().time() + timeout_s
    try:
        async with asyncio.timeout_at(min(pause_end, deadline)):
            return await anext(stream, None)
    except TimeoutError:
        if deadline <= pause_end:  # the event loop may wake up a moment before the time
            raise BodyStalled(
                f"the body must arrive within {BODY_TIMEOUT_S:g} seconds; send it in parts, or compressed"
            ) from None
        raise BodyStalled(
            f"the body must not pause for more than {timeout_s:g} seconds; send the request again"
        ) from None


def _shown_kind(kind: str) -> str:
    """A content type for a message, which is no text of a user if it has the form of one."""
    return kind if re.fullmatch(r"[a-z]+/[a-z0-9.+-]{1,64}", kind) else shown(kind) if kind else "none"
