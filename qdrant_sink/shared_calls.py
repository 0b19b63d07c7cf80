"""Calls whose results are shared by concurrent callers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from qdrant_sink.errors import CallAbandoned

T = TypeVar("T")


class _AbandonedByOtherError(Exception):
    """The caller that made the shared call has gone."""


@dataclass(slots=True, eq=False)
class _Queue(Generic[T]):
    """The calls of one key: the lock of the running one, and the result of the next one if somebody waits for it."""

    running: threading.Lock = field(default_factory=threading.Lock)
    following: Future[T] | None = None
    callers: int = 0


class SharedCalls(Generic[T]):
    """Shares one call per key among all callers that ask while an earlier call of that key is still running.

    Every caller gets the result of a call that began after it asked, so that no result is outdated, and at most one
    call per key runs at a time, however many callers there are. It is thread-safe, and calls block.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()  # guards the queues; not held during calls
        self._queues: dict[str, _Queue[T]] = {}

    def __call__(self, key: str, call: Callable[[], T]) -> T:
        """Return the result of `call`, or of the same call by a concurrent caller. Raises what the call raises.

        If the other caller has gone and its call was abandoned, the call is made anew.
        """
        while True:
            try:
                return self._shared(key, call)
            except _AbandonedByOtherError:
                continue

    def _shared(self, key: str, call: Callable[[], T]) -> T:
        with self._guard:
            queue = self._queues.setdefault(key, _Queue())
            queue.callers += 1
            shared = queue.following
            result: Future[T] = Future() if shared is None else shared
            queue.following = result
        try:
            if shared is None:
                self._run(queue, result, call)
            return result.result()
        except CallAbandoned:
            if shared is None:
                raise
            raise _AbandonedByOtherError from None
        finally:
            with self._guard:
                queue.callers -= 1
                if not queue.callers:
                    del self._queues[key]

    def _run(self, queue: _Queue[T], result: Future[T], call: Callable[[], T]) -> None:
        with queue.running:
            with self._guard:
                queue.following = None  # callers from now on need a call that begins later
            try:
                result.set_result(call())
            except BaseException as error:  # noqa: BLE001 - every caller raises it
                result.set_exception(error)
