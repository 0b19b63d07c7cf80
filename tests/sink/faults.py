"""What goes wrong between a client and the double, by script: in the server call by call, and on the wire.

`Script` spoils calls inside the server, which then answers with a status, late, or not at all. `Proxy` stands
in front of it and spoils connections: it cuts them in the middle of a request, and refuses new ones. Both
count what they did, so that a test can show that it happened.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]

PATIENCE_S = 30.0
"""After which a test that hangs fails. Nothing is measured by it."""

RETRY_AFTER_S = 0.01
SLOW_S = 0.03
REFUSAL_S = 0.03

_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: on with no time, so that closing sends RST."""


class Kind(Enum):
    """One way in which a call can go wrong."""

    UNAVAILABLE = "the status, nothing done"
    EXHAUSTED = "RESOURCE_EXHAUSTED with retry-after, nothing done"
    DEADLINE = "DEADLINE_EXCEEDED, nothing done"
    SLOW = "done and answered, late"
    LOST = "done, and the answer is another: UNAVAILABLE"
    SILENT = "done, but not before the client has given up"


@dataclass
class Script:
    """One of every `every` calls goes wrong: which one, and how, is drawn from the seed.

    Attributes:
        kinds: each in turn, in an order that is drawn anew for every round.
        every: calls per fault.
        seed: of the draws. With several calls at once their order is not fixed, and so is not who is hit.
        methods: the calls that count.
        happened: faults so far, by kind.
        calls: calls so far that count.
    """

    kinds: Sequence[Kind]
    every: int = 10
    seed: int = 0
    methods: Collection[str] = ("Upsert",)
    happened: Counter[Kind] = field(default_factory=Counter)
    calls: int = 0

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._lock = threading.Lock()
        self._at = 0
        self._bag: list[Kind] = []

    def draw(self, method: str) -> Kind | None:
        """What happens to this call; None: it goes well."""
        if method not in self.methods:
            return None
        with self._lock:
            place = self.calls % self.every
            if place == 0:
                self._at = self._random.randrange(self.every)
            self.calls += 1
            if place != self._at:
                return None
            if not self._bag:
                self._bag = self._random.sample(list(self.kinds), len(self.kinds))
            kind = self._bag.pop()
            self.happened[kind] += 1
            return kind


def spoil(kind: Kind, context: Any, work: Callable[[], Any]) -> Any:
    """Answer a call so; `work` does it."""
    match kind:
        case Kind.EXHAUSTED:
            context.set_trailing_metadata((("retry-after", str(RETRY_AFTER_S)),))
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "Rate limiting exceeded")
        case Kind.DEADLINE:
            context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "scripted")
        case Kind.UNAVAILABLE:
            context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        case Kind.LOST:
            work()
            context.abort(grpc.StatusCode.UNAVAILABLE, "scripted")
        case Kind.SLOW:
            threading.Event().wait(SLOW_S)
        case Kind.SILENT:
            ended = threading.Event()
            if context.add_callback(ended.set):
                ended.wait(PATIENCE_S)
    return work()


class Proxy:
    """A TCP proxy on a loopback port, in front of a server on another one.

    Args:
        target: port of the server.
        gaps: bytes of requests after which all connections are cut, each counted from the cut before it;
            none are cut after the last.
        refuse: after every so many cuts, new connections are refused for a moment; 0: never.
    """

    def __init__(self, target: int, gaps: Iterable[int] = (), *, refuse: int = 0) -> None:
        self._target = target
        self._gaps: Iterator[int] = iter(gaps)
        self._left = next(self._gaps, None)
        self._refuse = refuse
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._sockets: set[socket.socket] = set()
        self.cuts = 0
        self.refusals = 0
        self._listener = self._listen(0)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Cut everything and close the port."""
        self._stopped.set()
        _wake(self._listener)
        self._cut_all()

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen()
        return listener

    def _accept(self) -> None:
        while not self._stopped.is_set():
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # the port was shut, by `stop` or for a moment
                self._listener.close()
                if not self._stopped.wait(REFUSAL_S):
                    self._listener = self._listen(self.port)
                continue
            with self._lock:
                self._sockets |= {client, server}
            for pump in (self._upwards, self._downwards):
                threading.Thread(target=pump, args=(client, server), daemon=True).start()
        self._listener.close()

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        with self._until_closed(client, server):
            while data := client.recv(1 << 16):
                allowed, refuse = self._allowed(len(data))
                server.sendall(data[:allowed])
                if allowed < len(data):
                    if refuse:
                        _wake(self._listener)
                    self._cut_all()

    def _downwards(self, client: socket.socket, server: socket.socket) -> None:
        with self._until_closed(client, server):
            while data := server.recv(1 << 16):
                client.sendall(data)

    def _allowed(self, size: int) -> tuple[int, bool]:
        """How many of these bytes pass before the next cut, which is counted; whether it refuses."""
        with self._lock:
            if self._left is None or self._left >= size:
                self._left = None if self._left is None else self._left - size
                return size, False
            allowed = self._left
            self._left = next(self._gaps, None)
            self.cuts += 1
            refuse = bool(self._refuse) and self.cuts % self._refuse == 0
            self.refusals += refuse
            return allowed, refuse

    @contextlib.contextmanager
    def _until_closed(self, *pair: socket.socket) -> Iterator[None]:
        try:
            with contextlib.suppress(OSError):
                yield
        finally:
            for one in pair:
                _wake(one)
                one.close()
            with self._lock:
                self._sockets -= set(pair)

    def _cut_all(self) -> None:
        with self._lock:
            found = list(self._sockets)
        for one in found:
            with contextlib.suppress(OSError):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _wake(one)


def _wake(one: socket.socket) -> None:
    """End what other threads wait for on this socket."""
    with contextlib.suppress(OSError):
        one.shutdown(socket.SHUT_RDWR)
