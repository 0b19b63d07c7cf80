"""The store of a worker for tasks of an event loop: opened when it is first needed, called in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, TypeVar

from embedder.errors import ConfigurationError, Overloaded, StoreUnavailable
from embedder.stages import stage
from qdrant_sink.store import Store
from service.settings import Settings
from service.stores import open_store

T = TypeVar("T")

_CALLS: Final = 8
"""Calls to the store at once, beside those of ingests."""

LOADS: Final = 256
"""Ingests at once; more are refused as `overloaded`."""


class StoreCalls:
    """One store and the threads that may wait for it. Usable from any thread and any event loop.

    They are its own threads: calls that wait for a sick server must not keep queries from being tokenized.

    Args:
        settings: name the store.
        store: to use; None opens the one that the settings name when it is first needed.
        retried: called for each call that is repeated.
    """

    def __init__(self, settings: Settings, store: Store | None, retried: Callable[[], None]) -> None:
        self._settings = settings
        self._store = store
        self._retried = retried
        self._opening = threading.Lock()
        self._calls = ThreadPoolExecutor(max_workers=_CALLS, thread_name_prefix="store")
        self._loads = ThreadPoolExecutor(max_workers=LOADS, thread_name_prefix="load")
        self._slots = threading.Semaphore(LOADS)
        self._senders = ThreadPoolExecutor(max_workers=2 * _CALLS, thread_name_prefix="sender")

    def opened(self) -> Store:
        """The store. Opening it may block.

        Raises:
            StoreUnavailable: it cannot be opened.
        """
        with self._opening:
            if self._store is None:
                try:
                    self._store = open_store(self._settings, self._retried)
                except ConfigurationError as error:  # a job opens the store, too late to refuse to start
                    raise StoreUnavailable(str(error)) from error
            return self._store

    @property
    def senders(self) -> Executor:
        """Threads for the batches of ingests."""
        return self._senders

    async def call(self, call: Callable[[], T]) -> T:
        """What the call returns, which blocks for the store."""
        with stage("store"):
            return await _in_thread(self._calls, call)

    @contextmanager
    def slot(self) -> Iterator[None]:
        """One of the ingests that run at once, for the block.

        Raises:
            Overloaded: there is none left.
        """
        if not self._slots.acquire(blocking=False):
            raise Overloaded(f"{LOADS} jobs that store are running, and more do not at once; retry later")
        try:
            yield
        finally:
            self._slots.release()

    async def load(self, call: Callable[[], T]) -> T:
        """As `call`, for a whole job: its thread mostly waits, and must not keep a short call from the store."""
        with stage("ingest"):
            return await _in_thread(self._loads, call)

    def close(self) -> None:
        """Let ingests finish and release the store. Calling it twice is harmless."""
        for threads in (self._loads, self._senders):
            threads.shutdown()
        if self._store is not None:
            self._store.close()  # first: a call that nobody waits for any more would go on trying
        self._calls.shutdown()


async def _in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Run a call there, with the context of this task, so that its log lines have the id of the request."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)
