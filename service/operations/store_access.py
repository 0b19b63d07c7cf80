"""Access to the store from event loops: it is opened on first use and called in threads of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from typing import Final, Literal, TypeVar, cast

from embedder import ConfigurationError, InvalidRequest, Overloaded, WorkerError, timed
from qdrant_sink import Store, StoreUnavailable, check_server, open_edge, open_server
from service.operations.breaker import Breaker
from service.operations.metered_store import Observe, metered
from service.operations.store_wait import WAIT, StoreWait
from service.settings import Settings

T = TypeVar("T")

StoreState = Literal["ready", "unavailable", "unopened", "none"]
"""Whether the store answers. `unopened` is an embedded store before its first use; `none` means that none is named."""

PROBE_COLLECTION: Final = "fitness-check"
"""Collection name that is looked up to learn whether the store answers."""

CALLS_MAX: Final = 8
"""Maximum concurrent calls to the store, those of ingests excluded, and maximum concurrent patient ones."""

INGESTS_MAX: Final = 256
"""Default maximum of concurrent ingests."""

NO_STORE: Final = (
    "this worker has no store and refuses to store, search, count and delete points: QDRANT_URL is not set, and what a "
    "queue worker writes to its own disk is lost with it; set QDRANT_URL to a Qdrant server, or QDRANT_PATH to a "
    "directory that outlives the worker"
)
"""Message of every operation on points where the settings name no store."""

CONTACT_TIMEOUT_S: Final = 3.0
"""Timeout of the first contact of a command with a server, twice as long where gRPC does not answer."""

SENDER_THREADS: Final = 16
"""Threads that send batches of points, shared by all ingests."""


def open_store(settings: Settings, on_retry: Callable[[], None] = lambda: None) -> Store:
    """Open the server at `QDRANT_URL` or, if that is unset, Qdrant Edge under `QDRANT_PATH`.

    Args:
        settings: the settings.
        on_retry: callback for each retried call.

    Raises:
        ConfigurationError: the directory cannot be used, or the settings name no store.
    """
    if settings.qdrant_url is not None:
        key = settings.qdrant_api_key
        secret = None if key is None else key.get_secret_value()
        return open_server(
            settings.qdrant_url,
            secret,
            transport=settings.qdrant_transport,
            grpc_port=settings.qdrant_grpc_port,
            timeout_s=settings.qdrant_timeout_s,
            retried=on_retry,
        )
    if settings.qdrant_path is None:
        raise ConfigurationError(NO_STORE)
    return open_edge(settings.qdrant_path, reserve_bytes=int(settings.qdrant_path_reserve_mb * 1_000_000))


def check_contact(settings: Settings) -> None:
    """Check that the server of the settings answers, if there is one, before a command begins its work.

    A search waits for a server that restarts, and an ingest under way for longer; a user who has just mistyped an
    address should not.

    Raises:
        ConfigurationError: the address is invalid.
        StoreUnavailable: it does not answer.
    """
    if settings.qdrant_url is None:
        return
    key = settings.qdrant_api_key
    try:
        check_server(
            settings.qdrant_url,
            None if key is None else key.get_secret_value(),
            transport=settings.qdrant_transport,
            grpc_port=settings.qdrant_grpc_port,
            timeout_s=CONTACT_TIMEOUT_S,
        )
    except StoreUnavailable as error:
        raise StoreUnavailable(
            f"{error.message}; check QDRANT_URL and, if it is set, QDRANT_GRPC_PORT, and that the server runs"
        ) from None


class StoreAccess:
    """One store and the threads that wait for it. Usable from any thread and any event loop.

    Calls have threads of their own, so that those to a slow server do not delay tokenization.

    Args:
        settings: the settings.
        store: the store to use; None opens the store of the settings on first use.
        on_retry: callback for each retried call.
        observe: callback for each call.
        breaker: refuses calls while a server does not answer; None for the defaults.
        ingests_max: maximum concurrent ingests; further ones are `Overloaded`.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store | None,
        on_retry: Callable[[], None],
        observe: Observe = lambda _operation, _code, _seconds: None,
        *,
        breaker: Breaker | None = None,
        ingests_max: int = INGESTS_MAX,
    ) -> None:
        self._settings = settings
        self._store = None if store is None else metered(store, observe)
        self._on_retry = on_retry
        self._observe = observe
        self._opening = threading.Lock()
        self._breaker = Breaker() if breaker is None else breaker
        # Only a server can be silent. Calls of the embedded store end, and wait for its optimisation.
        self._limit_s = None if settings.qdrant_url is None else settings.qdrant_timeout_s
        self._calls = ThreadPoolExecutor(max_workers=CALLS_MAX, thread_name_prefix="store")
        self._patient_calls = ThreadPoolExecutor(max_workers=CALLS_MAX, thread_name_prefix="store-patient")
        self._ingests = ThreadPoolExecutor(max_workers=ingests_max, thread_name_prefix="ingest")
        self._ingests_max = ingests_max
        self._slots = threading.Semaphore(ingests_max)
        self._senders = ThreadPoolExecutor(max_workers=SENDER_THREADS, thread_name_prefix="sender")

    def opened(self) -> Store:
        """The store, which the first call opens. Blocks.

        Raises:
            InvalidRequest: the settings name no store, and none was given.
            StoreUnavailable: the store cannot be opened.
        """
        self.check_named()
        with self._opening:
            if self._store is None:
                try:
                    self._store = metered(open_store(self._settings, self._on_retry), self._observe)
                except ConfigurationError as error:  # the worker has started already, so only the job can fail
                    raise StoreUnavailable(str(error)) from error
            return self._store

    def check_named(self) -> None:
        """Check that there is a store, without opening it.

        Raises:
            InvalidRequest: the settings name no store, and none was given.
        """
        if self._store is None and self._settings.qdrant_url is None and self._settings.qdrant_path is None:
            raise InvalidRequest(NO_STORE)

    async def state(self) -> StoreState:
        """Whether the store answers, which a server is asked for as long as a search is retried."""
        if self._settings.qdrant_url is None and self._store is None:
            return "none" if self._settings.qdrant_path is None else "unopened"
        try:
            await self.call(lambda: self.opened().collection_of(PROBE_COLLECTION))
        except StoreUnavailable:
            return "unavailable"
        except WorkerError:  # a key may forbid this call and allow others
            return "ready"
        return "ready"

    @property
    def senders(self) -> Executor:
        """The threads that send the batches of ingests."""
        return self._senders

    async def call(self, call: Callable[[], T]) -> T:
        """Run a blocking read of the store in a thread and return its result. `close` interrupts waiting calls.

        The wait for a server ends after `QDRANT_TIMEOUT_S` seconds without an answer, the turn in the queue of threads
        included. If the caller is cancelled, a call that has not begun is dropped, and one that has begun sends no
        further request to the store.

        Raises:
            StoreUnavailable: the store did not answer, or has not answered several calls before.
        """
        with timed("store"):
            if self._limit_s is None:
                return await self._answered(call, StoreWait(None))
            refusal_s = self._breaker.refusal_s()
            if refusal_s is not None:
                raise StoreUnavailable("the Qdrant server does not answer; retry later", retry_after_s=refusal_s)
            try:
                result = await self._answered(call, StoreWait(self._limit_s))
            except StoreUnavailable as error:
                if error.retry_after_s is None:  # otherwise it has answered that it is busy
                    self._breaker.failed()
                raise
            except WorkerError:
                self._breaker.answered()
                raise
            self._breaker.answered()
            return result

    async def _answered(self, call: Callable[[], T], wait: StoreWait) -> T:
        context = copy_context()
        context.run(WAIT.set, wait)
        answer = asyncio.get_running_loop().run_in_executor(self._calls, context.run, call)
        try:
            if self._limit_s is None:
                return await answer
            while not answer.done():
                remaining_s = wait.remaining_s
                if remaining_s == 0:
                    raise StoreUnavailable(
                        f"the Qdrant server did not answer within {self._limit_s:g} s (QDRANT_TIMEOUT_S); retry later"
                    )
                await asyncio.wait((answer,), timeout=remaining_s)
            return answer.result()
        finally:
            wait.end()
            if not answer.cancel():
                answer.exception()  # retrieved, so that asyncio does not log the error of a call that nobody awaits

    async def patient_call(self, call: Callable[[], T]) -> T:
        """Run a blocking write in a thread of its own kind and return its result, however long it takes."""
        with timed("store"):
            return await in_thread(self._patient_calls, call)

    @contextmanager
    def ingest_slot(self) -> Iterator[IngestSlot]:
        """Occupy one of the slots of concurrent ingests until the block and its thread have ended.

        Raises:
            Overloaded: all slots are occupied.
        """
        if not self._slots.acquire(blocking=False):
            limit = self._ingests_max
            raise Overloaded(f"{limit} ingest jobs are already running (limit {limit}); retry later")
        slot = IngestSlot(self._ingests)
        try:
            yield slot
        finally:
            slot.when_done(self._slots.release)

    def close(self) -> None:
        """Finish running ingests and release the store. Idempotent."""
        for threads in (self._ingests, self._senders):
            threads.shutdown()
        if self._store is not None:
            self._store.close()  # before the threads, since abandoned calls would keep retrying
        for threads in (self._calls, self._patient_calls):
            threads.shutdown()


class IngestSlot:
    """The thread of one ingest. It mostly waits, so it must not occupy the threads of short calls."""

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads
        self._last_call: Future[object] | None = None

    async def run(self, call: Callable[[], T], *, stage: str) -> T:
        """Run a part of the ingest and time it as a stage. It continues if the caller is cancelled."""
        with timed(stage):
            running = self._threads.submit(copy_context().run, call)
            self._last_call = cast("Future[object]", running)
            return await asyncio.wrap_future(running)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Register a callback for the time when the thread is free again."""
        if self._last_call is None:
            callback()
        else:
            self._last_call.add_done_callback(lambda _done: callback())


async def in_thread(threads: ThreadPoolExecutor, call: Callable[[], T]) -> T:
    """Run a call in a thread with the context of this task, so that its log lines have the request id."""
    return await asyncio.get_running_loop().run_in_executor(threads, copy_context().run, call)
