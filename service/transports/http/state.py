"""The state of the HTTP server: model loaded, running requests, shutdown."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, Literal

from service.operations import Operations
from service.settings import Settings
from service.wire import Codec
from service.wire.errors import Loading, ShuttingDown

State = Literal["loading", "ready", "draining", "lost"]

RESPONSE_MB: Final = 30.0
"""Maximum answer in megabytes where `MAX_RESPONSE_MB` is unset (RunPod's load balancer limit)."""


@dataclass(slots=True, eq=False)
class Running:
    """A running request or job, for which a shutdown waits.

    Attributes:
        kind: its route, or `job`.
        task: the task that does its work, which is cancelled at the end of `SHUTDOWN_GRACE_S`.
    """

    kind: str
    task: asyncio.Task[Any] | None


class ServerState:
    """The state of the HTTP server. All methods must be called in its event loop.

    Args:
        settings: the settings.
        on_empty: callback for the end of the last running request during a shutdown.
    """

    def __init__(self, settings: Settings, on_empty: Callable[[], None] = lambda: None) -> None:
        self.settings = settings
        self._on_empty = on_empty
        self._codec: Codec | None = None
        self._running: dict[Running, None] = {}
        self._closing = False
        self._cut = False
        self._lost = False

    @property
    def state(self) -> State:
        """The state; `lost` means that the last device is lost."""
        if self._lost:
            return "lost"
        if self._closing:
            return "draining"
        return "loading" if self._codec is None else "ready"

    @property
    def closing(self) -> bool:
        """Whether new requests are rejected, for a shutdown or a lost device."""
        return self._closing

    @property
    def is_cut(self) -> bool:
        """Whether the time of a shutdown is over, so that running requests are cancelled."""
        return self._cut

    @property
    def operations(self) -> Operations | None:
        """The operations; None while the model loads."""
        return None if self._codec is None else self._codec.core

    def ready(self) -> Codec:
        """The codec over the loaded operations.

        Raises:
            Loading: the model is still loading.
        """
        if self._codec is None:
            raise Loading("the model is still loading; retry later")
        return self._codec

    def open(self, operations: Operations) -> None:
        """Serve the loaded operations."""
        self._codec = Codec(operations, RESPONSE_MB)

    @contextmanager
    def admitted(self, kind: str) -> Iterator[Running]:
        """Count the block as a running request, for which a shutdown waits.

        Args:
            kind: the route of the request, or `job`.

        Raises:
            ShuttingDown: the server is shutting down.
        """
        if self._closing:
            raise ShuttingDown("the worker is shutting down; retry on another worker")
        running = Running(kind, asyncio.current_task())
        self._running[running] = None
        try:
            yield running
        finally:
            del self._running[running]
            if self._closing and not self._running:
                self._on_empty()

    def close(self, *, lost: bool = False) -> None:
        """Reject new requests and finish running ones. Idempotent.

        Args:
            lost: whether the reason is the loss of the last device.
        """
        self._lost = self._lost or lost
        self._closing = True
        if not self._running:
            self._on_empty()

    def cut(self) -> Counter[str]:
        """Cancel the running requests at the end of a shutdown's time, and return their number by kind."""
        self._cut = True
        running = list(self._running)
        for one in running:
            if one.task is not None:
                one.task.cancel()
        return Counter(one.kind for one in running)
