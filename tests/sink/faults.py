"""Scripted faults between a client and the server double, in single calls and in connections.

`Script` makes calls inside of the server fail with a status, late, or without an answer. `Proxy` is in front of the
server: it cuts connections during a request, and refuses new ones. Both count their faults, so that a test can check
that they happened.
"""

from __future__ import annotations

import contextlib
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped,unused-ignore]

PATIENCE_S = 30.0
"""Timeout after which a hanging test fails. It does not affect measurements."""

RETRY_AFTER_S = 0.01
SLOW_S = 0.03
REFUSAL_S = 0.03

_RESET = struct.pack("ii", 1, 0)
"""Value of SO_LINGER with which closing a socket sends RST."""


class Kind(Enum):
    """A kind of fault of a call."""

    UNAVAILABLE = "UNAVAILABLE, nothing done"
    EXHAUSTED = "RESOURCE_EXHAUSTED with retry-after, nothing done"
    DEADLINE = "DEADLINE_EXCEEDED, nothing done"
    SLOW = "done and answered, late"
    LOST = "done, but answered with UNAVAILABLE"
    SILENT = "done, but only after the timeout of the client"


@dataclass
class Script:
    """Script in which one of every `every` calls fails. The call and the kind of fault are drawn at random.

    Attributes:
        kinds: kinds of faults, which are used in rounds of random order.
        every: number of calls per fault.
        seed: seed of the random draws. With concurrent calls their order is not deterministic.
        methods: methods whose calls can fail.
        happened: number of faults so far, by kind.
        calls: number of calls of these methods so far.
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
        self._fault_offset = 0
        self._round: list[Kind] = []

    def draw(self, method: str) -> Kind | None:
        """Draw the fault of a call; None if the call succeeds."""
        if method not in self.methods:
            return None
        with self._lock:
            offset = self.calls % self.every
            if offset == 0:
                self._fault_offset = self._random.randrange(self.every)
            self.calls += 1
            if offset != self._fault_offset:
                return None
            if not self._round:
                self._round = self._random.sample(list(self.kinds), len(self.kinds))
            kind = self._round.pop()
            self.happened[kind] += 1
            return kind


def spoil(kind: Kind, context: Any, work: Callable[[], Any]) -> Any:
    """Answer a call with this fault. `work` executes the call."""
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
    """A TCP proxy on a loopback port, in front of a server on another port.

    Args:
        target: port of the server.
        gaps: numbers of request bytes between two cuts of all connections. After the last one nothing is cut.
        refuse: number of cuts after which new connections are refused for a moment; 0 for never.
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
            except OSError:  # the port was closed, permanently by `stop` or for a moment
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
        """Return how many of these bytes pass before the next cut, and whether connections are then refused."""
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
            for connection in pair:
                _wake(connection)
                connection.close()
            with self._lock:
                self._sockets -= set(pair)

    def _cut_all(self) -> None:
        with self._lock:
            connections = list(self._sockets)
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            _wake(connection)


def _wake(connection: socket.socket) -> None:
    """Wake up threads that wait on this socket."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition that other threads fulfil."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Silent:
    """A port that accepts connections and never answers."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.taken: SimpleQueue[socket.socket] = SimpleQueue()
        self._thread = threading.Thread(target=self._take)
        self._thread.start()

    def _take(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.taken.put(self._listener.accept()[0])

    def stop(self) -> None:
        """Drop all connections and refuse new ones."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(PATIENCE_S)
        self._listener.close()
        while not self.taken.empty():
            self.taken.get().close()
