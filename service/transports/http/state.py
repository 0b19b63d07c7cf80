"""The state of the HTTP server: whether the model is there, what runs, and whether it is closing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from service.wire.errors import Loading, ShuttingDown

State = Literal["loading", "ready", "draining", "lost"]


class ServerState:
    """The state, of one event loop; every method is called there.

    Args:
        settings: the operator's decisions.
        on_empty: called when the server is closing and nothing runs any more.
    """

    def __init__(self, settings: Settings, on_empty: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._on_empty = on_empty
        self._codec: Codec | None = None
        self._running = 0
        self._closing = False
        self._lost = False

    @property
    def state(self) -> State:
        """`lost`: no device computes any more."""
        if self._lost:
            return "lost"
        if self._closing:
            return "draining"
        return "loading" if self._codec is None else "ready"

    @property
    def closing(self) -> bool:
        """Whether nothing more is admitted, for whatever reason."""
        return self._closing

    @property
    def operations(self) -> Operations | None:
        """The operations; None while the model loads."""
        return None if self._codec is None else self._codec.core

    def ready(self) -> Codec:
        """The codec of the operations.

        Raises:
            Loading: the model is not there yet.
        """
        if self._codec is None:
            raise Loading("the model is still loading; retry later")
        return self._codec

    def open(self, operations: Operations) -> None:
        """The model is loaded: serve."""
        self._codec = Codec(operations)

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """Count the block as a request that runs; the server stays until it is answered.

        Raises:
            ShuttingDown: the server is closing.
        """
        if self._closing:
            raise ShuttingDown("the worker is shutting down; retry on another")
        self._running += 1
        try:
            yield
        finally:
            self._running -= 1
            if self._closing and not self._running:
                self._on_empty()

    def close(self, *, lost: bool = False) -> None:
        """Admit nothing more, finish what runs. Calling it twice is harmless.

        Args:
            lost: because no device is left that computes.
        """
        self._lost = self._lost or lost
        self._closing = True
        if not self._running:
            self._on_empty()
