"""The store of a worker for tasks of an event loop: opened when it is first needed, called in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, TypeVar, cast

from embedder import ConfigurationError, Overloaded, timed
from qdrant_sink import Store, StoreUnavailable, open_edge, open_server
from service.settings import Settings

T = TypeVar("T")

CALLS_MAX: Final = 8
"""Concurrent calls to the store, beside those of ingests."""

INGESTS_MAX: Final = 256
"""Default limit on concurrent ingests."""

SENDERS: Final = 16
"""Threads that send batches of points, for all ingests together."""


def open_store(settings: Settings, on_retry: Callable[[], None] = lambda: None) -> Store:
    """Open the server of `QDRANT_URL`, or where it is not set the embedded store under `QDRANT_PATH`.

    Args:
        settings: name the store.
        on_retry: called for each call that is repeated.

    Raises:
        ConfigurationError: the directory cannot be used, or the URL is not valid.
    """
    names = settings.qdrant_collection_config.names
    if settings.qdrant_url is not None:
        key = settings.qdrant_api_key
        secret = None if key is None else key.get_secret_value()
        return open_server(settings.qdrant_url, secret, names=names, retried=on_retry)
    return open_edge(settings.qdrant_path, names=names)


class StoreAccess:
    """One store and the threads that may wait for it. Usable from any thread and any event loop.

    The threads are its own: calls that wait for a sick server must not keep queries from being tokenized.

    Args:
        settings: name the store.
        store: the store to use; None opens the one that the settings name when it is first needed.
        on_retry: called for each call that is repeated.
        ingests_max: concurrent ingests; more are refused as overloaded.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store | None,
        on_retry: Callable[[], None],
        *,
        ingests_max: int = INGESTS_MAX,
    ) -> None:
        self._settings = settings
        self._store = store
        self._on_retry = on_retry
        self._opening = threading.Lock()
        self._calls = ThreadPoolExecutor(max_workers=CALLS_MAX, thread_name_prefix="store")
        self._ingests = ThreadPoolExecutor(max_workers=ingests_max, thread_name_prefix="ingest")
        self._ingests_max = ingests_max
        self._slots = threading.Semaphore(ingests_max)
        self._senders = ThreadPoolExecutor(max_workers=SENDERS, thread_name_prefix="sender")

    def opened(self) -> Store:
        """The store. Opening it may block.

        Raises:
            StoreUnavailable: it cannot be opened.
        """
        with self._opening:
            if self._store is None:
                try:
                    self._store = open_store(self._settings, self._on_retry)
                except ConfigurationError as error:  # a job opens the store, too late to refuse to start
                    raise StoreUnavailable(str(error)) from error
            return self._store

    @property
    def senders(self) -> Executor:
        """Threads for the batches of ingests."""
        return self._senders

    async def call(self, call: Callable[[], T]) -> T:
        """Run a call which blocks for the store, and return what it returns; `close` ends one that waits."""
        with timed("store"):
            return await in_thread(self._calls, call)

    @contextmanager
    def ingest_slot(self) -> Iterator[IngestSlot]:
        """Count the block as one of the concurrent ingests, and beyond it whatever still runs in its thread.

        Raises:
            Overloaded: there are as many as there may be.
        """
        if not self._slots.acquire(blocking=False):
            most = self._ingests_max
            raise Overloaded(f"{most} jobs that store are already running (limit {most}); retry later")
        slot = IngestSlot(self._ingests)
        try:
            yield slot
        finally:
            slot.when_done(self._slots.release)

    def close(self) -> None:
        """Let ingests finish and release the store. Calling it twice is harmless."""
        for threads in (self._ingests, self._senders):
            threads.shutdown()
        if self._store is not None:
            self._store.close()  # first: a call that nobody waits for any more would go on trying
        self._calls.shutdown()


class IngestSlot:
    """The thread of one ingest. It mostly waits, and must not keep a short call from the store."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._last: Future[object] | None = None

    async def run(self, call: Callable[[], T], *, stage: str) -> T:
        """Run a part of the ingest, timed as this stage; a caller that waits no longer leaves it running."""
        with timed(stage):
            running = self._threads.submit(copy_context().run, call)
            self._last = cast("Future[object]", running)
            return await asyncio.wrap_future(running)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call this when the thread is free again."""
        if self._last is None:
            callback()
        else:
            self._last.add_done_callback(lambda _done: callback())


async def in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Run a call there, with the context of this task, so that its log lines have the id of the request."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)
