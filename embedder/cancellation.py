"""Whether the caller of a request has gone, for the threads that work for it, which nothing can interrupt."""

from __future__ import annotations

import threading
from contextvars import ContextVar, Token
from types import TracebackType
from typing import Final, Self

from embedder.errors import Cancelled

_CURRENT: Final[ContextVar[Cancellation | None]] = ContextVar("cancellation", default=None)


class Cancellation:
    """A flag that ends the work of one request, or of a part of it, before its next step. Thread-safe.

    It is set, too, if the flag of the context in which it was created is. As a context manager it is the flag of the
    current context, which threads copy, and it is set at the end of the block: whatever still works for the request
    then works for nobody.
    """

    def __init__(self) -> None:
        self._outer = _CURRENT.get()
        self._event = threading.Event()
        self._tokens: list[Token[Cancellation | None]] = []

    def cancel(self) -> None:
        """End the work before its next step. Idempotent."""
        self._event.set()

    @property
    def cancelled(self) -> bool:
        """Whether the work is to end."""
        return self._event.is_set() or (self._outer is not None and self._outer.cancelled)

    def check(self) -> None:
        """Raise `Cancelled` if the work is to end."""
        if self.cancelled:
            raise Cancelled("nobody waits for this request any more")

    def enter(self) -> None:
        """Make it the flag of the current context."""
        self._tokens.append(_CURRENT.set(self))

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        _CURRENT.reset(self._tokens.pop())
        self.cancel()


def check_cancelled() -> None:
    """Raise `Cancelled` if the request of the current context has no caller any more."""
    cancellation = _CURRENT.get()
    if cancellation is not None:
        cancellation.check()
