"""Reading of request bodies: limited in size, decompressed, and parsed as strict JSON."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from typing import Any, Final, NoReturn

from starlette.requests import Request

from embedder import BODIES, QUICK, InvalidRequest
from service.transports.http.decoder import Decoder
from service.validation import BYTE_ORDER_MARK, shown
from service.wire.errors import BodyStalled, BodyTooLarge, NotJson

BODY_MAX_BYTES: Final = 30_000_000
"""Maximum request body (RunPod's load balancer limit)."""

BODY_PART_TIMEOUT_S: Final = 30.0
"""Maximum wait for the next part of a body, so that a stalled client does not delay a shutdown."""

_THREAD_MIN_BYTES: Final = 100_000
"""Minimum size of a body that is parsed in a thread."""

_QUICK_PART_MAX_BYTES: Final = 1024
"""Maximum size of a compressed part that is decompressed among quick work."""


async def read_json(request: Request, *, max_bytes: int, part_timeout_s: float) -> Any:
    """Read and parse the body of a request; arguments and errors are those of `read_body` and `parsed`."""
    return await parsed(await read_body(request, max_bytes=max_bytes, part_timeout_s=part_timeout_s))


async def read_body(request: Request, *, max_bytes: int, part_timeout_s: float) -> bytes:
    """Read the body of a request, and decompress it.

    Args:
        request: the request.
        max_bytes: maximum size of the body, before and after it is decompressed.
        part_timeout_s: maximum wait for the next part of the body.

    Raises:
        NotJson: the content type is not JSON. Browsers send JSON to another site only with that site's consent.
        UnknownCoding: the body is compressed in a way that is not understood.
        BodyStalled: the client stopped sending before the end.
        BodyTooLarge: the announced or the received size exceeds the limit.
        InvalidRequest: the compressed data is damaged.
        ClientDisconnect: the client disconnected before the end.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise NotJson(f"Content-Type must be application/json, got {_shown_kind(kind)}")
    decoder = Decoder.of(", ".join(request.headers.getlist("content-encoding")), max_bytes)
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced) > max_bytes:
        raise BodyTooLarge(f"the body must have at most {max_bytes} bytes, got {announced[:20]}")
    parts, size = [], 0
    stream = request.stream()
    while (part := await _next(stream, part_timeout_s)) is not None:
        size += len(part)
        if size > max_bytes:
            raise BodyTooLarge(f"the body must have at most {max_bytes} bytes, got more")
        parts.append(part if decoder is None else await _decoded(decoder, part))
    if decoder is not None:
        decoder.check_complete()
    return b"".join(parts)


async def parsed(raw: bytes) -> Any:
    """Parse a body.

    Raises:
        InvalidRequest: the body is not valid JSON.
    """
    return await BODIES.run(lambda: _parsed(raw)) if len(raw) > _THREAD_MIN_BYTES else _parsed(raw)


async def _decoded(decoder: Decoder, part: bytes) -> bytes:
    """A decompressed part of a body, of which a short one grows to a megabyte at most."""
    return await (QUICK if len(part) <= _QUICK_PART_MAX_BYTES else BODIES).run(lambda: decoder.decode(part))


async def _next(stream: AsyncIterator[bytes], timeout_s: float) -> bytes | None:
    """The next part of a body; None at the end."""
    try:
        async with asyncio.timeout(timeout_s):
            return await anext(stream, None)
    except TimeoutError:
        raise BodyStalled(
            f"the body must not pause for more than {timeout_s:g} seconds; send the request again"
        ) from None


def _shown_kind(kind: str) -> str:
    """A content type for a message, which is no text of a user if it has the form of one."""
    return kind if re.fullmatch(r"[a-z]+/[a-z0-9.+-]{1,64}", kind) else shown(kind) if kind else "none"


def _parsed(raw: bytes) -> Any:
    try:
        return json.loads(raw.decode("utf-8").removeprefix(BYTE_ORDER_MARK), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"the body is not valid UTF-8 (byte {error.start})") from None
    except json.JSONDecodeError as error:
        raise InvalidRequest(f"the body is not valid JSON (line {error.lineno}, column {error.colno})") from None
    except ValueError:  # NaN, Infinity, or an integer of thousands of digits
        raise InvalidRequest("the body is not valid JSON (a number that JSON cannot represent)") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)
