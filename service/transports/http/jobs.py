"""Jobs that are answered before they have ended (202), and asked for later.

A job lives in the memory of this process: its request until it has ended, and its answer for some time after that.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Final

from starlette.datastructures import Headers

from embedder import BODIES, NotFound, Overloaded
from service.logs import CALLER
from service.memory_budget import MemoryBudget
from service.memory_plan import Part
from service.metrics import Metrics
from service.settings import Settings
from service.transports.http.state import ServerState
from service.wire import Answer, Progress, error_answer, error_reply
from service.wire.body import Body
from service.wire.errors import BodyTooLarge
from service.wire.instrumentation import defect, log_defect
from service.wire.jobs import JobState, job_answer

RUNNING_MAX: Final = 8
"""Maximum jobs that run at the same time; the others wait in the order in which they came."""

_FULL_STATUS: Final = 429
"""Status of an answer that says that the queue of the worker is full."""

Work = Callable[[Progress], Awaitable[Answer]]
"""Does the work of a job. It may be called again while it answers 429, because the queue of the worker is full."""


@dataclass(slots=True, eq=False)
class Job:
    """One accepted job.

    Attributes:
        id: a random id.
        owner: the name of the key that it came with.
        size: bytes that it occupies: those of its request until it has ended, and those of its answer afterwards.
        state: the state.
        progress: the last report of its progress.
        status: the HTTP status of its answer; None while it has not ended.
        answer: the JSON of its answer; None while it has not ended.
        task: the task that does its work; None when it has ended.
    """

    id: str
    owner: str
    size: int
    state: JobState = "queued"
    progress: dict[str, int] = field(default_factory=dict)
    status: int | None = None
    answer: bytes | None = None
    task: asyncio.Task[None] | None = None

    @property
    def has_ended(self) -> bool:
        """Whether it has an answer."""
        return self.state in ("done", "failed")

    @property
    def content(self) -> Body:
        """The JSON of the job."""
        return job_answer(self.id, self.state, self.progress, status=self.status, answer=self.answer)


def jobs_part(settings: Settings) -> Part:
    """The memory of the jobs that have not ended or are kept."""
    return Part("jobs", 1, settings.jobs_max_bytes, "JOBS_MAX_MB")


class Jobs:
    """The jobs of a worker. All methods must be called in the event loop of the server.

    Args:
        state: the state of the server, for whose shutdown jobs count as running requests.
    """

    def __init__(self, state: ServerState) -> None:
        settings = state.settings
        self._state = state
        self._jobs_max = settings.jobs_max
        self._max_bytes = settings.jobs_max_bytes
        self._keep_s = settings.jobs_keep_s
        self._jobs: dict[str, Job] = {}  # those that have ended in the order of their ends
        self._turns = asyncio.Semaphore(RUNNING_MAX)

    def accept(self, work: Work, size: int, metrics: Metrics, memory: MemoryBudget) -> Job:
        """Begin a job, and forget the oldest ended ones if there is no more room.

        Args:
            work: does the work.
            size: size of the request in bytes.
            metrics: the metrics that count jobs by state.
            memory: the memory of all requests, which those of jobs share while they run.

        Raises:
            BodyTooLarge: the request exceeds the memory of all jobs.
            Overloaded: the jobs that have not ended leave no room. No answer is forgotten then.
            ShuttingDown: the server is shutting down. No answer is forgotten then either.
        """
        if size > self._max_bytes:
            limit = f"{self._max_bytes} bytes (JOBS_MAX_MB)"
            raise BodyTooLarge(f"with Prefer: respond-async the body must have at most {limit}, got {size}")
        self._check_room(size)
        running = ExitStack()
        counted = running.enter_context(self._state.admitted("job"))
        while len(self._jobs) >= self._jobs_max or self._bytes + size > self._max_bytes:
            self._forget(self._oldest_ended().id, metrics)
        job = Job(uuid.uuid4().hex, CALLER.get(), size)
        self._jobs[job.id] = job
        metrics.job_moved(None, job.state)
        job.task = counted.task = asyncio.create_task(self._run(job, work, metrics, memory))
        job.task.add_done_callback(lambda _task: running.close())
        return job

    def get(self, identity: str) -> Job:
        """A job of the caller.

        Raises:
            NotFound: the caller has no such job.
        """
        job = self._jobs.get(identity)
        if job is None or job.owner != CALLER.get():
            raise NotFound(
                f"the job is unknown: a job is kept for {self._keep_s} seconds after its end (JOBS_KEEP_S) unless "
                "newer ones need its room, is lost when the worker restarts, and is shown to the key that it came "
                "with; send the request again if you need its outcome"
            )
        return job

    async def cancel(self, identity: str, metrics: Metrics) -> Job:
        """Cancel a job of the caller, if it has not ended, and forget it.

        Raises:
            NotFound: the caller has no such job.
        """
        job = self.get(identity)
        if job.task is not None:
            job.task.cancel()
            await asyncio.wait([job.task])
            if not job.has_ended:  # it may have ended meanwhile
                self._move(job, "cancelled", metrics)
        self._forget(job.id, metrics)
        return job

    @property
    def _bytes(self) -> int:
        return sum(job.size for job in self._jobs.values())

    def _check_room(self, size: int) -> None:
        """Check that a job with this many bytes has room beside those that have not ended.

        Raises:
            Overloaded: it has not.
        """
        sizes = [job.size for job in self._jobs.values() if not job.has_ended]
        if len(sizes) >= self._jobs_max or sum(sizes) + size > self._max_bytes:
            raise Overloaded(
                f"there is no room for a job of {size} bytes beside the {len(sizes)} with {sum(sizes)} bytes that have "
                f"not ended (limits {self._jobs_max} and {self._max_bytes}: JOBS_MAX and JOBS_MAX_MB); retry later"
            )

    def _oldest_ended(self) -> Job:
        return next(job for job in self._jobs.values() if job.has_ended)

    def _move(self, job: Job, state: JobState, metrics: Metrics) -> None:
        metrics.job_moved(job.state, state)
        job.state = state

    def _forget(self, identity: str, metrics: Metrics) -> None:
        job = self._jobs.pop(identity, None)
        if job is not None:
            metrics.job_moved(job.state, None)

    async def _run(self, job: Job, work: Work, metrics: Metrics, memory: MemoryBudget) -> None:
        try:
            async with self._turns:
                answer, content = await self._answered(job, work, metrics, memory)
        except Exception as error:  # noqa: BLE001 - a job must not stay without an end
            log_defect(error)
            answer = error_reply(defect(error), error_answer)
            content = answer.body
        job.answer, job.size, job.status, job.task = content, len(content), answer.status, None
        self._move(job, "done" if answer.code is None else "failed", metrics)
        self._jobs[job.id] = self._jobs.pop(job.id)
        while self._bytes > self._max_bytes and (oldest := self._oldest_ended()) is not job:
            self._forget(oldest.id, metrics)
        # The timer has the id alone, since the job and its answer may go before.
        asyncio.get_running_loop().call_later(self._keep_s, self._forget, job.id, metrics)

    async def _answered(self, job: Job, work: Work, metrics: Metrics, memory: MemoryBudget) -> tuple[Answer, bytes]:
        """The answer of a job and its JSON. It waits while the queue or the memory of the worker is full."""

        def report(progress: dict[str, int]) -> None:
            job.progress = progress

        while True:
            self._move(job, "running", metrics)
            with memory.reserve():  # not that of the request that brought the job
                answer = await work(report)
                if answer.status != _FULL_STATUS:
                    return answer, await BODIES.run(partial(_written, answer))
            self._move(job, "queued", metrics)
            await asyncio.sleep(answer.retry_after_s or 1)


def _written(answer: Answer) -> bytes:
    return answer.body


def prefers_async(request: Headers) -> bool:
    """Whether a request has the preference `respond-async` (RFC 7240)."""
    preferences = ",".join(request.getlist("prefer")).split(",")
    return any(preference.partition(";")[0].strip().lower() == "respond-async" for preference in preferences)
