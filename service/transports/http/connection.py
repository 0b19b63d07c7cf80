"""The connection of one client: what it sends, what is held of it and how long it may take are bounded.

uvicorn's protocol over h11 does the work. h11 takes 30 microseconds more for a request than httptools, but stops at the
end of a request, refuses a head or a chunk without an end, and keeps the body of a request that offers an upgrade
(`Upgrade: h2c`, as Java's HttpClient does).
"""

from __future__ import annotations

import asyncio
import http
import logging
import re
import sys
from contextlib import suppress
from typing import Any, Final

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.h11_impl import H11Protocol

from embedder.errors import InvalidRequest, WorkerError
from service.connection_errors import BodyStalled, HeadStalled, HeadTooLarge, TargetTooLong, TooManyConnections
from service.transports.http.connections import PROGRESS_MIN_BYTES, Activity, Connections
from service.transports.http.refusals import Reason

HEAD_MAX_BYTES: Final = 32_768
"""Maximum head of a request: its first line and its headers. The trailers and the head of a chunk have the same."""

HEADERS_MAX: Final = 256
"""Maximum number of headers of a request."""

TARGET_MAX_BYTES: Final = 8192
"""Maximum target of a request: its path and its query."""

HELD_MAX_BYTES: Final = 65_536
"""Bytes of further requests that are held while one is answered, beyond which no more are read."""

_PART_BYTES: Final = 8192
"""Size of the parts in which h11 gets what a client sends, since it bounds what is incomplete after a part."""

_CHUNKED_PART_BYTES: Final = 512
"""The same for a body in small chunks, of which h11 takes 4 microseconds each."""

_PART_MAX_LINES: Final = 64
"""Lines of a part of a body in chunks beyond which its chunks may be small; each has two."""

_EMPTY_LINES: Final = re.compile(rb"(?:\r\n)*+")
_HEAD_END: Final = re.compile(rb"\n\r?\n")
_TOO_MANY_HEADERS: Final = f"a request must have at most {HEADERS_MAX} headers"

_PARSER_LOG: Final = logging.getLogger("uvicorn.error.requests")
_PARSER_LOG.setLevel(logging.ERROR)  # invalid requests are counted, and logged once a minute


class _Flow(FlowControl):
    """Reading is paused for a body, as uvicorn does, and for further requests until the one before is answered."""

    def __init__(self, transport: asyncio.Transport) -> None:
        super().__init__(transport)
        self._is_held = False

    def hold(self) -> None:
        """Read nothing until `release`."""
        self._is_held = True
        self.pause_reading()

    def release(self) -> None:
        """Read on, if `hold` was called."""
        if self._is_held:
            self._is_held = False
            self.resume_reading()

    def resume_reading(self) -> None:
        """Read on, unless further requests are held."""
        if not self._is_held:
            super().resume_reading()


class Connection(H11Protocol):
    """A connection of the HTTP server.

    When the client goes away, the task of its request is cancelled.

    Args:
        registry: the connections of the server.
        given: the arguments of uvicorn.
    """

    flow: _Flow

    def __init__(self, registry: Connections, **given: Any) -> None:
        super().__init__(**given)
        self.peer = ""
        self.waits_since = 0.0
        self._registry = registry
        self._application, self.app = self.app, self._answer
        self.tasks = set()  # of this connection alone
        self.logger = _PARSER_LOG
        self._task: asyncio.Task[Any] | None = None
        self._held = bytearray()
        self._head_since: float | None = 0.0
        self._is_restricted = False
        self._is_chunked = False
        self._is_over = False
        self._refused_at: float | None = None
        self._received = 0  # bytes
        self._received_before = (0.0, 0)  # the time and the bytes of the last progress
        self._unread_before = (0.0, 0)  # the same for an answer, with the bytes that wait to be sent

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self.flow = _Flow(transport)
        self.peer = self.client[0] if self.client else ""
        self._head_since = self.waits_since = self.loop.time()
        self._registry.add(self)
        self._restrict(self._registry.lacks_room(self, self.waits_since))

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request that is under way."""
        self._registry.remove(self)
        self._held.clear()
        super().connection_lost(exc)
        self._end()

    def data_received(self, data: bytes) -> None:
        """Take what the client sends."""
        if self._refused_at is not None:
            return
        self._received += len(data)
        self._held += data
        self._feed()

    def handle_events(self) -> None:
        """Parse what h11 has, and note the beginning of a request."""
        before = self.cycle
        super().handle_events()
        if self.cycle is not before:
            self._head_since = None
            names = {name for name, _ in self.headers}
            self._is_chunked = b"transfer-encoding" in names
            self._received_before = (self.loop.time(), self._received)
            self._registry.works(self)
            if self._is_chunked and (b"content-length" in names or self.scope["http_version"] == "1.0"):
                self._registry.refused("invalid_http")
                self._refuse(
                    InvalidRequest(
                        "a request with Transfer-Encoding must be HTTP/1.1 and have no Content-Length, since a proxy "
                        "in between may read another body; send one of the two"
                    )
                )

    def on_response_complete(self) -> None:
        """Begin to wait for the next request, or begin one that has arrived already."""
        further = self.conn.trailing_data[0]
        if further and self.conn.their_state is self.conn.our_state is h11.DONE:
            self._held[:0] = further  # for `_feed`, which h11 would parse without a pause
            self.conn = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_MAX_BYTES)
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if not self._is_serving:
            self.waits_since = self.loop.time()
            self._registry.waits(self)
        self._feed()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's text
        """Refuse what h11 does not understand, which was sent where a request or a part of its body should be."""
        error = sys.exc_info()[1]
        if isinstance(error, h11.RemoteProtocolError) and error.error_status_hint == 431:
            self._refuse_head(
                f"the head of a request, and of a chunk of its body, must have at most {HEAD_MAX_BYTES} bytes, got "
                "more; send fewer and shorter headers"
            )
        else:
            self._registry.refused("invalid_http")
            self._refuse(InvalidRequest("the request is not valid HTTP/1.1; send plain HTTP/1.1 to this port"))

    @property
    def activity(self) -> Activity:
        """What the connection does."""
        if self._refused_at is not None:
            return "waiting"
        if self._is_receiving:
            return "sending"
        if self._is_serving and not self.cycle.response_started and not self.flow.write_paused:
            return "working"
        return "reading" if self._is_serving or self._unread_bytes else "waiting"

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that are held until they are complete, read or answered."""
        body = len(self.cycle.body) if self._is_serving else 0
        return len(self._held) + len(self.conn.trailing_data[0]) + body

    def check(self, now: float) -> None:
        """Close the connection if the client has exceeded a time."""
        limits = self._registry.limits
        progress_s = limits.stop_progress_s if self._registry.is_stopping else limits.progress_s
        if self._refused_at is not None:
            if now - self._refused_at >= min(limits.linger_s, progress_s):
                self.abort()
        elif self._reads_too_slowly(now, progress_s):
            self._registry.stalled(self, "answer_timeout")
            self.abort()
        elif self._is_receiving:
            if self._sends_too_slowly(now, progress_s):
                self._registry.stalled(self, "body_timeout")
                message = f"the body must bring {PROGRESS_MIN_BYTES} bytes in {progress_s:g} seconds, or its end"
                self._refuse(BodyStalled(f"{message}; send the request again"))
        elif self._is_discarding:
            if now - self.waits_since >= limits.discard_s:
                self.transport.close()
        elif not self._is_serving:
            self._check_wait(now)

    def proceed(self) -> None:
        """Parse a part of a body in chunks, whose turn it is."""
        self._feed(has_turn=True)

    def shutdown(self) -> None:
        """Close the connection after the answer that is under way, or now."""
        if not self._is_receiving:
            self._held.clear()
        super().shutdown()

    def abort(self) -> None:
        """Close the connection now, and cancel its request."""
        self._registry.remove(self)
        self.transport.abort()

    @property
    def _is_serving(self) -> bool:
        """Whether a request is under way."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def _is_receiving(self) -> bool:
        """Whether the body of the request that is under way has not ended."""
        return self._is_serving and self.cycle.more_body

    @property
    def _is_discarding(self) -> bool:
        """Whether a request has been answered before the end of its body."""
        return not self._is_serving and self.conn.their_state is h11.SEND_BODY

    @property
    def _unread_bytes(self) -> int:
        """Bytes of answers that wait for the client."""
        return self.transport.get_write_buffer_size()

    def _feed(self, *, has_turn: bool = False) -> None:
        """Parse what was received, up to the end of a request, and hold the rest until it is answered.

        Args:
            has_turn: whether one part of a body in chunks may be parsed now.
        """
        while self._held and not self.transport.is_closing() and self._refused_at is None:
            if self._is_serving and not self._is_receiving:
                break
            part_bytes = _PART_BYTES
            if self.conn.their_state is h11.IDLE:
                if not self._is_head_next():
                    break
            elif self._is_chunked:
                if not has_turn:
                    self._registry.turns.wait(self)
                    break
                has_turn = False
                if self._held.count(b"\n", 0, _PART_BYTES) > _PART_MAX_LINES:
                    part_bytes = _CHUNKED_PART_BYTES
            part = bytes(self._held[:part_bytes])
            del self._held[:part_bytes]
            super().data_received(part)
        if len(self._held) > HELD_MAX_BYTES:
            self.flow.hold()
        else:
            self.flow.release()
        if self._is_serving and not self._is_receiving:
            self.flow.resume_reading()  # which h11 pauses at a further request; the client may go away meanwhile
        elif not self._is_serving and not self._is_discarding:
            has_begun = bool(self.conn.trailing_data[0])
            self._head_since = (self._head_since or self.loop.time()) if has_begun else None

    def _is_head_next(self) -> bool:
        """Leave out empty lines, and return whether a part of a head follows, which is refused if it is too large."""
        begun = self.conn.trailing_data[0]
        if not begun:
            empty = _EMPTY_LINES.match(self._held)  # some clients send one after a body (RFC 9112, 2.2)
            del self._held[: empty.end() if empty else 0]
            if bytes(self._held[:2]) in (b"", b"\r"):
                return False
        headers = _headers_in(begun + self._held[:_PART_BYTES])
        if headers > HEADERS_MAX:
            self._refuse_head(f"{_TOO_MANY_HEADERS}, got {headers} or more; send fewer")
            return False
        return True

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request by the application, or refuse it for its head."""
        if self._is_over:  # before the task began
            return
        task = self._task = asyncio.current_task()
        error = self._objection(scope)

        async def send_to_client(message: Message) -> None:
            if self.transport.is_closing():  # it is lost, which the event loop has not said yet
                await asyncio.sleep(0)
            await send(message)

        try:
            if error is None:
                await self._application(scope, receive, send_to_client)
            else:
                await self._registry.answers.response(error, scope["path"])(scope, receive, send_to_client)
        except asyncio.CancelledError:
            if not self._is_over:
                raise
        finally:
            if self._task is task:
                self._task = None

    def _objection(self, scope: Scope) -> WorkerError | None:
        """Why a request is refused before the application sees it."""
        if len(scope["headers"]) > HEADERS_MAX:
            self._registry.refused("head_too_large")
            return HeadTooLarge(f"{_TOO_MANY_HEADERS}, got {len(scope['headers'])}; send fewer")
        target = len(scope["raw_path"]) + len(scope["query_string"])
        if target > TARGET_MAX_BYTES:
            self._registry.refused("target_too_long")
            return TargetTooLong(
                f"path and query must have at most {TARGET_MAX_BYTES} bytes, got {target}; operations take a body"
            )
        if not self._is_restricted:
            return None
        reason = self._registry.lacks_room(self, self.loop.time())
        self._restrict(reason)
        limits = self._registry.limits
        if reason is None or scope["path"] in limits.probes:
            return None
        self._registry.refused(reason)
        if reason == "connections_per_peer":
            limit, setting = limits.per_peer, "HTTP_MAX_CONNECTIONS_PER_PEER"
        else:
            limit, setting = limits.connections, "HTTP_MAX_CONNECTIONS"
        return TooManyConnections(
            f"all {limit} connections ({setting}) are in use; retry later, over connections that are open already"
        )

    def _restrict(self, reason: Reason | None) -> None:
        self._is_restricted = reason is not None
        if reason is not None:
            self._registry.restrict(self)

    def _check_wait(self, now: float) -> None:
        """Close a connection whose head has taken too long, or that has waited too long for a request."""
        limits = self._registry.limits
        if self._head_since is None:
            if now - self.waits_since >= limits.idle_s:
                self.transport.close()
        elif now - self._head_since >= limits.head_s:
            if self.conn.trailing_data[0]:
                message = f"the head of a request must arrive within {limits.head_s:g} seconds; send the request again"
                self._registry.refused("head_timeout")
                self._refuse(HeadStalled(message))
            else:
                self.transport.close()

    def _sends_too_slowly(self, now: float, timeout_s: float) -> bool:
        since, received = self._received_before
        is_asked_to_wait = self._held or self.flow.read_paused or self.cycle.waiting_for_100_continue
        if is_asked_to_wait or self._received - received >= PROGRESS_MIN_BYTES:
            self._received_before = (now, self._received)
            return False
        return now - since >= timeout_s

    def _reads_too_slowly(self, now: float, timeout_s: float) -> bool:
        since, unread = self._unread_before
        now_unread = self._unread_bytes
        # Nothing is written while more than the buffer waits, so that a larger number means that it had been read.
        if not now_unread or now_unread > unread or unread - now_unread >= PROGRESS_MIN_BYTES:
            self._unread_before = (now, now_unread)
            return False
        return now - since >= timeout_s

    def _refuse(self, error: WorkerError) -> None:
        """Answer with an error unless an answer has begun, cancel the request, and read no further one."""
        self._registry.works(self)  # it is closed soon
        self._refused_at = self.loop.time()
        self._held.clear()
        self.flow.release()
        has_begun = self._is_serving and self.cycle.response_started
        if self.cycle is not None:
            self.cycle.disconnected = True
        self._end()
        if has_begun or self.transport.is_closing():
            self.abort()
            return
        self.flow.resume_reading()
        self.transport.write(_response(*self._registry.answers.raw(error)))
        with suppress(OSError):  # the client has reset the connection, which the event loop has not said yet
            self.transport.write_eof()

    def _refuse_head(self, message: str) -> None:
        """Refuse a head that is too large."""
        self._registry.refused("head_too_large")
        self._refuse(HeadTooLarge(message))

    def _end(self) -> None:
        """Cancel the task of the request that is under way."""
        self._is_over = True
        if self._task is not None and not self.cycle.response_complete:
            self._task.cancel()

    def _unsupported_upgrade_warning(self) -> None:
        """Serve a request that offers another protocol without a line in the log."""


def _headers_in(begun: bytes) -> int:
    """The lines of the first head in what was received, without its first line; fewer if they are not too many."""
    count = begun.count(b"\n")
    if count - 1 > HEADERS_MAX:
        end = _HEAD_END.search(begun)
        count = begun.count(b"\n", 0, end.start() + 1) if end else count
    return count - 1


def _response(status: int, body: bytes) -> bytes:
    """The response for an error that is sent without the application, and closes the connection."""
    head = (
        f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n"
        "x-content-type-options: nosniff\r\ncache-control: no-store\r\nconnection: close\r\n\r\n"
    )
    return head.encode("ascii") + body
