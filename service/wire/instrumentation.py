"""Counting and timing of every request, for all operations and transports."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from embedder import Cancelled, Internal, Timings, WorkerError, whereabouts
from service.error_frames import forget_frames
from service.memory_budget import MemoryBudget
from service.metrics import Metrics
from service.operations import IngestFailed
from service.wire.body import Body
from service.wire.errors import code_for, code_of, retry_after_s, wire_error
from service.wire.outcome import Answer, Content, Outcome
from service.wire.rendered_memory import CHUNKS_BYTES
from service.wire.size import SizeLimit
from service.wire.streamed import Streamed
from service.wire.values import Values

log = logging.getLogger(__name__)

RenderError = Callable[[WorkerError], Mapping[str, Any]]
"""Renders an error as JSON, in the worker's own form or in OpenAI's."""


ErrorStatus = Callable[[WorkerError], int]
"""The HTTP status of an error."""


def own_status(error: WorkerError) -> int:
    """The HTTP status of an error, unless a dialect has another."""
    return wire_error(error).status


def error_reply(error: WorkerError, render: RenderError, status: ErrorStatus = own_status) -> Answer:
    """The answer for an error."""
    return Answer(Body.of(render(error)), status(error), wire_error(error).code, retry_after_s(error))


def defect(error: Exception) -> Internal:
    """The error that a caller gets for an unexpected exception, whose own message may quote a text."""
    return Internal(f"internal error ({type(error).__name__}); see the log of the worker")


def log_defect(error: Exception) -> None:
    """Log the type and the origin of an unexpected exception, but not its message."""
    log.error("internal error: %s", whereabouts(error))


class Instrumentation:
    """Answers requests, and counts and times them.

    Args:
        metrics: the metrics to update.
        memory: the memory that requests may hold together.
        max_bytes: maximum size of an answer.
    """

    def __init__(self, metrics: Metrics, memory: MemoryBudget, max_bytes: int) -> None:
        self._metrics = metrics
        self._memory = memory
        self._limit = SizeLimit(max_bytes, "")

    async def answer(
        self,
        operation: str,
        work: Callable[[], Awaitable[Outcome]],
        render_error: RenderError,
        *,
        error_status: ErrorStatus = own_status,
        with_timings: bool = False,
    ) -> Answer:
        """Do the work of a request and return its answer, which may be an error.

        What the work has reserved is given back but for the memory of the answer, which the transport gives back.

        Args:
            operation: name of the operation, from a fixed set.
            work: does the work of the request.
            render_error: renders an error.
            error_status: returns the HTTP status of an error.
            with_timings: whether to add the seconds of each stage to the answer.

        Raises:
            asyncio.CancelledError: the call was cancelled. All other errors become answers.
        """
        with self._memory.joined() as held:
            answer = await self._answered(operation, work, render_error, error_status, with_timings=with_timings)
            if not isinstance(answer.content, Values):
                size = answer.content.held_bytes
                held.settle(size + CHUNKS_BYTES * (size > CHUNKS_BYTES))
            return answer

    async def _answered(
        self,
        operation: str,
        work: Callable[[], Awaitable[Outcome]],
        render_error: RenderError,
        error_status: ErrorStatus,
        *,
        with_timings: bool,
    ) -> Answer:
        timings = Timings()
        started = time.perf_counter()
        try:
            with timings.current():
                outcome = await work()
        except asyncio.CancelledError:
            code = code_for(Cancelled)
            self._metrics.answered(operation, code, timings.seconds, time.perf_counter() - started)
            raise
        except Exception as error:  # noqa: BLE001 - a request must not take the worker down
            if isinstance(error, WorkerError):
                failure = error
            else:
                log_defect(error)
                failure = defect(error)
            rejected = failure.report.rejected if isinstance(failure, IngestFailed) else ()
            self._metrics.answered(
                operation,
                wire_error(failure).code,
                timings.seconds,
                time.perf_counter() - started,
                rejected=[code_of(point.cause) for point in rejected],
            )
            reply = error_reply(failure, render_error, error_status)
            forget_frames(failure)
            forget_frames(error)
            return reply
        seconds = time.perf_counter() - started
        self._metrics.answered(
            operation, "ok", timings.seconds, seconds, tokens=outcome.tokens, rejected=outcome.rejected
        )
        content = self._timed(outcome, {**timings.seconds, "total": seconds}) if with_timings else outcome.content
        return Answer(content, warnings=outcome.warnings)

    def _timed(self, outcome: Outcome, seconds: Mapping[str, float]) -> Content | Streamed:
        """The content with its timings, or without them if it would exceed the size limit or is streamed."""
        if isinstance(outcome.content, Streamed):
            return outcome.content
        timings = Body.of({stage: round(spent, 6) for stage, spent in seconds.items()})
        content = outcome.content.with_member("timings", timings)
        try:
            self._limit.check(content)
        except WorkerError:
            return outcome.content
        return content
