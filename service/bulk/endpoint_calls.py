"""The calls of an endpoint, each a job of the platform, which an interruption cancels."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from threading import Lock, Thread
from time import monotonic
from typing import Any, Final, TypeVar

from bge_m3_qdrant_client import AsyncClient, JobFailed

from embedder import Overloaded
from service.operations.load_values import INTERRUPTED

T = TypeVar("T")

JOB_TIMEOUT_S: Final = 3600.0
"""Maximum time of a job with its retries, the time in the queue of the endpoint included."""

FINISH_TIMEOUT_S: Final = 24 * 3600.0
"""Maximum time of the jobs that build the graph."""

JOB_RETRIES: Final = 8
"""Repetitions of a job whose error is retryable."""

LOST_JOBS_MAX: Final = 4
"""Jobs of the same lines that may end without an answer of a worker before the load ends."""

_LOST: Final = frozenset({"FAILED", "TIMED_OUT", "EXPIRED"})
"""States in which the platform leaves a job whose worker died, ran too long, or never came. All jobs are repeatable."""


class EndpointCalls:
    """The calls of an endpoint in an event loop of a thread of its own, which any event loop can wait for.

    Args:
        client: makes a client of the endpoint, for jobs that may take so many seconds.
    """

    def __init__(self, client: Callable[[float], AsyncClient]) -> None:
        self._client, self._finishing = client(JOB_TIMEOUT_S), client(FINISH_TIMEOUT_S)
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()
        self._running: set[Future[Any]] = set()
        self._guard = Lock()
        self._is_cancelled = False

    async def run(self, call: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> T:
        """The answer to a call. A job that is lost is sent again.

        Args:
            call: a call that does no harm if it is made again.

        Raises:
            ClientError: the call failed.
            Overloaded: the jobs were cancelled.
        """
        return await self._ran(self._repeated(self._client, call, lost_max=LOST_JOBS_MAX, until_s=0.0))

    async def finish(self, call: Callable[[AsyncClient], Coroutine[Any, Any, T]], stopping: asyncio.Event) -> T | None:
        """The answer to a call that may take longer than the platform lets a job run; None after an interruption.

        Args:
            call: a call that goes on where an earlier one was ended.
            stopping: event that cancels the job.

        Raises:
            ClientError: the call failed.
            Overloaded: the jobs were cancelled.
        """
        until_s = monotonic() + FINISH_TIMEOUT_S
        repeated = self._repeated(self._finishing, call, lost_max=LOST_JOBS_MAX, until_s=until_s)
        finishing = asyncio.create_task(self._ran(repeated))
        stopped = asyncio.create_task(stopping.wait())
        try:
            await asyncio.wait({finishing, stopped}, return_when=asyncio.FIRST_COMPLETED)
            return await finishing if finishing.done() else None
        finally:
            finishing.cancel()
            stopped.cancel()

    def cancel(self) -> None:
        """Cancel all jobs on the platform, those in its queue as well. Thread-safe."""
        with self._guard:
            self._is_cancelled = True
            running = list(self._running)
        for future in running:
            future.cancel()

    def close(self) -> None:
        """Wait for the requests that cancel jobs, and close the connections. Idempotent."""
        if self._loop.is_closed():
            return
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()
        await self._finishing.aclose()

    async def _ran(self, call: Coroutine[Any, Any, T]) -> T:
        with self._guard:
            if self._is_cancelled:
                call.close()
                raise _cancelled()
            future = asyncio.run_coroutine_threadsafe(call, self._loop)
            self._running.add(future)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            if self._is_cancelled:
                raise _cancelled() from None
            raise
        finally:
            with self._guard:
                self._running.discard(future)

    @staticmethod
    async def _repeated(
        client: AsyncClient, call: Callable[[AsyncClient], Coroutine[Any, Any, T]], *, lost_max: int, until_s: float
    ) -> T:
        """The answer, with lost jobs sent again.

        Args:
            client: the client.
            call: the call.
            lost_max: lost jobs that are not sent again any more.
            until_s: time on the monotonic clock until which jobs that ran too long do not count as lost.
        """
        lost = 0
        while True:
            try:
                return await call(client)
            except JobFailed as error:
                lost += not (error.status == "TIMED_OUT" and monotonic() < until_s)
                if error.status not in _LOST or lost >= lost_max:
                    raise


def _cancelled() -> Overloaded:
    """The error of a job that was cancelled, after which nothing is known of its lines."""
    return Overloaded(INTERRUPTED)
