"""The open connections of the HTTP server: how many there may be, which of them wait, and when they are closed."""

from __future__ import annotations

import asyncio
import resource
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

from starlette.types import ASGIApp

from embedder.errors import WorkerError
from service.memory_plan import Part
from service.transports.http.paths import PROBES
from service.transports.http.refusals import Reason, Refusals
from service.transports.http.turns import Turns

if TYPE_CHECKING:
    from service.metrics import Metrics
    from service.settings import Settings

CONNECTION_BYTES: Final = 524_288
"""Maximum memory of a connection in bytes: what it has sent and nobody has read, one read, and its buffer of answers.
"""

CONNECTIONS_DIVISOR: Final = 6
"""Part of `MEMORY_BUDGET_MB` to which the default of `HTTP_MAX_CONNECTIONS` is lowered: one sixth."""

CONNECTIONS_MAX: Final = 1000
"""Maximum connections where `HTTP_MAX_CONNECTIONS` is unset and the process may open enough descriptors."""

DESCRIPTORS_RESERVED: Final = 256
"""Descriptors that are left to the store, to files and to logs, or half of all where there are few."""

PROBE_CONNECTIONS_MAX: Final = 16
"""Maximum connections beyond the others on which only the probes are answered; the oldest is closed for a new one."""

HEAD_TIMEOUT_S: Final = 10.0
"""Maximum time from the first byte of a request, or from the beginning of a connection, to the end of the head."""

IDLE_TIMEOUT_S: Final = 75
"""Time for which a connection may wait for its next request; longer than that of load balancers, which reuse them."""

PROGRESS_TIMEOUT_S: Final = 30.0
"""Time in which a client must send, or read, `PROGRESS_MIN_BYTES` of a body or an answer, or the rest of it."""

PROGRESS_MIN_BYTES: Final = 16_384
"""Minimum bytes that a client sends or reads in `PROGRESS_TIMEOUT_S`, or in `STOP_PROGRESS_TIMEOUT_S`."""

STOP_PROGRESS_TIMEOUT_S: Final = 2.0
"""The same time during a shutdown, so that a client that has stopped does not delay it."""

DISCARD_TIMEOUT_S: Final = 30.0
"""Time for which the rest of a body is read and dropped after the request has been answered without it."""

LINGER_S: Final = 2.0
"""Time that a refused client has to read the refusal, while what it still sends is dropped."""

EVICTED_MIN_AGE_S: Final = 1.0
"""Minimum time without a request after which a connection may be closed for a new one."""

CHECK_INTERVAL_S: Final = 1.0
"""Time between two checks of the times of all connections."""

_STARVED_EVICTIONS_MAX: Final = 8
"""Connections that are closed, once a second, if the process has no descriptor left for a new one."""

_CLOSING_INTERVAL_S: Final = 0.05

_ACCEPT_FAILED: Final = "socket.accept() out of system resource"
"""Message of asyncio for a connection that it cannot accept. It calls the handler up to `backlog` times a second."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The bounds of connections.

    Attributes:
        connections: maximum number in all.
        per_peer: maximum number of one address; None for any number.
        head_s: maximum time for the head of a request.
        idle_s: maximum time between two requests.
        progress_s: time in which a client must send or read some bytes.
        stop_progress_s: the same during a shutdown.
        discard_s: time for which a body is dropped after its answer.
        linger_s: time that a refused client has to read the refusal.
        evicted_min_age_s: minimum time without a request after which a connection may be closed for a new one.
        check_interval_s: time between two checks of these times.
        probes: the paths that are answered on a connection beyond the maximum.
    """

    connections: int = CONNECTIONS_MAX
    per_peer: int | None = None
    head_s: float = HEAD_TIMEOUT_S
    idle_s: float = IDLE_TIMEOUT_S
    progress_s: float = PROGRESS_TIMEOUT_S
    stop_progress_s: float = STOP_PROGRESS_TIMEOUT_S
    discard_s: float = DISCARD_TIMEOUT_S
    linger_s: float = LINGER_S
    evicted_min_age_s: float = EVICTED_MIN_AGE_S
    check_interval_s: float = CHECK_INTERVAL_S
    probes: frozenset[str] = frozenset(PROBES)

    @property
    def part(self) -> Part:
        """The memory of all connections."""
        count = self.connections + PROBE_CONNECTIONS_MAX
        return Part("connections", count, CONNECTION_BYTES, "HTTP_MAX_CONNECTIONS")

    @classmethod
    def of(cls, settings: Settings) -> ConnectionLimits:
        """The bounds by the settings, by the descriptors that the process may open and by its memory."""
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        connections = settings.http_max_connections or min(
            connections_max(descriptors), settings.memory_budget_bytes // CONNECTIONS_DIVISOR // CONNECTION_BYTES
        )
        probes = frozenset(PROBES) | {f"{settings.root_path or ''}{path}" for path in PROBES}
        return cls(connections, settings.http_max_connections_per_peer, probes=probes)


def connections_max(descriptors: int) -> int:
    """The default maximum of connections for a process that may open so many descriptors (-1 for any number)."""
    if descriptors == resource.RLIM_INFINITY:
        return CONNECTIONS_MAX
    reserved = min(DESCRIPTORS_RESERVED, descriptors // 2)
    return max(1, min(CONNECTIONS_MAX, descriptors - reserved - PROBE_CONNECTIONS_MAX))


Activity = Literal["waiting", "sending", "working", "reading"]
"""What a connection does: it has no request; the client sends one; the worker answers it; the client reads."""


class Client(Protocol):
    """A connection, as far as the others are concerned.

    Attributes:
        peer: the address of the client.
        waits_since: when it began to wait for a request, in the time of the event loop.
    """

    peer: str
    waits_since: float

    @property
    def activity(self) -> Activity:
        """What the connection does."""
        ...

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that are held until they are complete, read or answered."""
        ...

    def check(self, now: float) -> None:
        """Close the connection if the client has exceeded a time."""

    def shutdown(self) -> None:
        """Close the connection after the answer that is under way, or now."""

    def abort(self) -> None:
        """Close the connection now, whatever is under way."""


class Answers(Protocol):
    """How a server answers clients that it refuses."""

    def raw(self, error: WorkerError) -> tuple[int, bytes]:
        """The status and the JSON of an error."""
        ...

    def response(self, error: WorkerError, path: str) -> ASGIApp:
        """The application that answers a request for a path with an error."""
        ...


class Connections:
    """The open connections of a server. All methods must be called in its event loop.

    Args:
        limits: the bounds.
        answers: how clients are refused.
        metrics: returns the metrics; None while the model loads.

    Attributes:
        answers: how clients are refused.
        is_stopping: whether the server shuts down, so that clients that have stopped are cut soon.
        cut: the connections that a shutdown has closed in the middle of something, by what it was.
        turns: the turns of bodies in chunks.
    """

    def __init__(
        self, limits: ConnectionLimits, answers: Answers, metrics: Callable[[], Metrics | None] = lambda: None
    ) -> None:
        self.limits = limits
        self.answers = answers
        self.is_stopping = False
        self.cut: Counter[Activity] = Counter()
        self.turns = Turns()
        self._refusals = Refusals(metrics)
        self._open: dict[Client, None] = {}
        self._waiting: dict[Client, None] = {}  # in the order in which they began to wait
        self._probing: deque[Client] = deque()
        self._peers: Counter[str] = Counter()
        self._starved_at = -float("inf")

    def __len__(self) -> int:
        return len(self._open)

    @property
    def held_bytes(self) -> int:
        """Bytes of requests that are held until they are complete, read or answered."""
        return sum(client.held_bytes for client in list(self._open))

    def add(self, client: Client) -> None:
        """Count a new connection, which waits for its first request."""
        self._open[client] = None
        self._waiting[client] = None
        self._peers[client.peer] += 1

    def remove(self, client: Client) -> None:
        """Forget a connection. Idempotent."""
        if client not in self._open:
            return
        del self._open[client]
        self._waiting.pop(client, None)
        self._unrestrict(client)
        self._peers[client.peer] -= 1
        if not self._peers[client.peer]:
            del self._peers[client.peer]

    def waits(self, client: Client) -> None:
        """Note that a connection has begun to wait for its next request."""
        if client in self._open and client not in self._probing:
            self._waiting[client] = None

    def works(self, client: Client) -> None:
        """Note that a connection has a request, and is not closed for another one."""
        self._waiting.pop(client, None)

    def lacks_room(self, client: Client, now: float) -> Reason | None:
        """Why a connection may only be used for probes; None if it may be used for everything.

        The connection that has waited longest is closed to make room.
        """
        reason = self._exceeded(client)
        if reason is not None:
            peer = client.peer if reason == "connections_per_peer" else None
            if self._evict(now, peer, but=client):
                reason = self._exceeded(client)
        if reason is None:
            self._unrestrict(client)
        return reason

    def restrict(self, client: Client) -> None:
        """Keep a connection for the probes alone, and close the oldest one of those if there are too many."""
        if client in self._probing:
            return
        self._waiting.pop(client, None)
        self._probing.append(client)
        if len(self._probing) > PROBE_CONNECTIONS_MAX:
            oldest = self._probing[0]
            self.remove(oldest)
            oldest.abort()

    def refused(self, reason: Reason) -> None:
        """Count a refused client, and log it, once a minute for each reason."""
        self._refusals.add(reason, asyncio.get_running_loop().time())

    def on_loop_error(self, loop: asyncio.AbstractEventLoop, context: Mapping[str, Any]) -> None:
        """Handle the errors of the event loop: without descriptors some waiting connections are closed."""
        if not str(context.get("message")).startswith(_ACCEPT_FAILED):
            loop.default_exception_handler(dict(context))
            return
        now = loop.time()
        if now - self._starved_at < EVICTED_MIN_AGE_S:
            return
        self._starved_at = now
        self.refused("descriptors")
        for _ in range(_STARVED_EVICTIONS_MAX):
            self._evict(now)

    def stalled(self, client: Client, reason: Reason) -> None:
        """Count a client that sends or reads too slowly, and is closed for it."""
        if self.is_stopping:
            self.cut[client.activity] += 1
        self.refused(reason)

    def check(self, now: float) -> None:
        """Close the connections whose clients have exceeded a time."""
        for client in list(self._open):
            client.check(now)
        self._refusals.report(now)

    async def watch(self) -> None:
        """Check the connections for ever."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(self.limits.check_interval_s)
            self.check(loop.time())

    async def close(self, until: float) -> None:
        """Close all connections after the answers that are under way.

        Args:
            until: when those that are still open are closed whatever is under way, in the time of the event loop.
        """
        loop = asyncio.get_running_loop()
        self.is_stopping = True
        for client in list(self._open):
            client.shutdown()
        while self._open and loop.time() < until:
            await asyncio.sleep(_CLOSING_INTERVAL_S)
            self.check(loop.time())
        self.cut.update(client.activity for client in self._open if client.activity != "waiting")
        for client in list(self._open):
            client.abort()
        await asyncio.sleep(0)  # in which their requests notice it

    def _exceeded(self, client: Client) -> Reason | None:
        if len(self._open) - len(self._probing) + (client in self._probing) > self.limits.connections:
            return "connections"
        per_peer = self.limits.per_peer
        if per_peer is not None and self._peers[client.peer] - self._restricted_of(client) > per_peer:
            return "connections_per_peer"
        return None

    def _restricted_of(self, client: Client) -> int:
        """The restricted connections of the same address, except this one."""
        return sum(other.peer == client.peer and other is not client for other in self._probing)

    def _evict(self, now: float, peer: str | None = None, but: Client | None = None) -> bool:
        """Close the connection that has waited longest, and return whether one has waited long enough."""
        for client in self._waiting:
            if now - client.waits_since < self.limits.evicted_min_age_s:
                return False  # as have all that follow
            if client is not but and (peer is None or client.peer == peer):
                self.remove(client)
                client.abort()
                return True
        return False

    def _unrestrict(self, client: Client) -> None:
        if client in self._probing:
            self._probing.remove(client)
