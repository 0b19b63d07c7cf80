"""The RunPod queue worker: it loads the model, runs the readiness checks, and then takes jobs.

If `PORT` is set, the platform names no queue and the SDK's own arguments are absent, it starts the HTTP server instead
(`service.transports.http.server`). In all other cases the SDK runs: the queue, `--test_input` or `--rp_serve_api`.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, nullcontext
from typing import Any, Protocol

import orjson

from embedder import ConfigurationError
from service import logs
from service.memory_plan import Part
from service.operations import Operations
from service.operations.store_access import NO_STORE
from service.readiness import checks
from service.settings import Settings
from service.shutdown import end_process_after, exit_on_signals
from service.transports.queue import local_run
from service.transports.queue.concurrency import Concurrency
from service.transports.queue.intake import HELD_INPUTS_MAX_BYTES, Intake
from service.transports.queue.local_run import QUEUE
from service.transports.queue.pings import watched_pings
from service.transports.queue.processor_name import ask_ahead
from service.transports.queue.progress import POST_INTERVAL_S, Post, posting
from service.transports.queue.sdk_log import log_through_logging
from service.wire import Progress

log = logging.getLogger(__name__)

_INPUT_MAX_BYTES = 20_000_000
"""Maximum input of a job in bytes (the platform's limit), which an input of unknown size counts as."""

_HELD_INPUTS_DIVISOR = 8
"""Part of `MEMORY_BUDGET_MB` to which the inputs of held jobs are lowered: one eighth."""

_RESERVED_MAX_SHARE = 0.5
"""Share of the memory of requests beyond which no further job is taken, so that those taken find room."""

_SDK_LOG_LEVELS = {"DEBUG": "INFO", "INFO": "INFO", "WARNING": "WARN", "ERROR": "ERROR", "CRITICAL": "ERROR"}

_PR_SET_PDEATHSIG = 1


JobAnswer = dict[str, Any] | list[dict[str, Any]]
"""The answer to a job; for an OpenAI route it is a list that holds one object."""


class Unprinted(dict[str, Any]):
    """An answer whose `repr` is short.

    The SDK formats every answer twice for its log, at any level, which takes a second of the event loop per 10 MB of
    numbers. At level DEBUG it would also log the texts and vectors.
    """

    def __repr__(self) -> str:
        return "{...}"


class Handler(Protocol):
    """Answers a job, and reports its progress."""

    def __call__(self, job: dict[str, Any], progress: Progress | None = None, /) -> Awaitable[JobAnswer]:
        """Answer a job with JSON values."""
        ...


def serve(handler: Handler, build: Callable[[Settings], Operations], *, progress_s: float = POST_INTERVAL_S) -> int:
    """Serve the queue, HTTP or a local run, by the environment and the arguments, until a signal.

    Args:
        handler: answers a job.
        build: loads the model that the handler uses; called before the first poll.
        progress_s: seconds between two progress posts of a job.

    Returns:
        The exit status of the process: 2 if the settings or the arguments cannot work, 1 if the last device is lost.
    """
    exit_on_signals()  # until the SDK installs its own handler: nothing is in flight
    logs.configure_start()
    try:
        settings = Settings.from_environment()
        logs.configure_server(settings.log_level, settings.log_format)
        if settings.port is not None and is_http(os.environ, sys.argv[1:]):
            from service.transports.http.server import serve as serve_http

            return serve_http(settings, build)
        sys.argv[1:] = local_run.check(os.environ, sys.argv[1:])
        if settings.port is not None:
            log.warning("PORT is set, but this process serves the RunPod queue and opens no HTTP port")
        polls = local_run.polls(os.environ, sys.argv[1:])
        if polls:
            settings = settings.without_default_store()
        ask_ahead()
        operations = build(settings)
        operations.set_aside([Part("jobs that wait", 1, held_inputs_max_bytes(settings))])
    except ConfigurationError as error:
        return logs.refuse_to_start(str(error))
    # The SDK logs at DEBUG by default, and then every answer, which is the user's data.
    if not os.environ.get("RUNPOD_LOG_LEVEL"):
        os.environ["RUNPOD_LOG_LEVEL"] = _SDK_LOG_LEVELS[settings.log_level]
    if polls and not settings.names_store:
        log.warning(NO_STORE)
    try:
        return _run_sdk(handler, operations, settings, progress_s, polls=polls)
    finally:
        operations.close()


def is_http(environment: Mapping[str, str], arguments: Sequence[str]) -> bool:
    """Whether a process with `PORT` serves HTTP: no queue is named, and no argument is the SDK's."""
    return not environment.get(QUEUE) and not any(argument.startswith(("--rp_", "--test_")) for argument in arguments)


def held_inputs_max_bytes(settings: Settings) -> int:
    """Maximum bytes of the inputs of held jobs, lowered to a share of the memory budget where that is small."""
    return min(HELD_INPUTS_MAX_BYTES, settings.memory_budget_bytes // _HELD_INPUTS_DIVISOR)


def _run_sdk(handler: Handler, operations: Operations, settings: Settings, progress_s: float, *, polls: bool) -> int:
    """Run the SDK's worker, which polls the queue or runs locally, and return the exit status."""
    started = time.perf_counter()
    import runpod
    from runpod.serverless.modules.worker_state import JobsProgress

    if settings.log_format == "json":
        log_through_logging()
    log.info("SDK ready; seconds: SDK %.2f", time.perf_counter() - started)

    concurrency = Concurrency(
        settings.min_concurrency,
        settings.max_concurrency,
        scale_up=settings.scale_up_threshold,
        scale_down=settings.scale_down_threshold,
    )
    closing, lost = threading.Event(), threading.Event()
    intake = Intake(
        settings.max_concurrency,
        lambda: {job.id for job in JobsProgress()},
        lambda: concurrency.wanted,
        max_bytes=held_inputs_max_bytes(settings),
        is_full=lambda: operations.memory.reserved_bytes > _RESERVED_MAX_SHARE * operations.memory.total_bytes,
        on_close=closing.set,
    )
    end_process_after(
        settings.shutdown_grace_s,
        lambda: 1 if lost.is_set() else 0,
        begun=closing,
        rest=lambda: f"{JobsProgress().get_job_count()} jobs, which the platform gives to another worker",
    )

    def stop() -> None:
        lost.set()
        os.kill(os.getpid(), signal.SIGTERM)

    # Also for a device that is lost before the SDK installs its own handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(1 if lost.is_set() else 0))
    operations.when_lost(stop)

    async def handle(job: dict[str, Any]) -> JobAnswer:
        intake.begin(job.get("id", ""), _size(job.get("input")))
        logs.REQUEST_ID.set(job.get("id"))  # the SDK runs each job in its own task
        logs.CALLER.set("queue")
        operations.memory.reserve_for_task()  # which also sends the answer
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(concurrency.slot())
            progress = await stack.enter_async_context(posting(_post(job), interval_s=progress_s)) if polls else None
            answer = await handler(job, progress)
        return unprinted(answer) if polls else answer  # local runs print the answer

    if polls:
        _end_children_with_parent()
        for check in checks(operations, settings):
            runpod.serverless.register_fitness_check(check)
    with watched_pings() if polls else nullcontext():
        runpod.serverless.start({"handler": handle, "concurrency_modifier": intake})
    return 1 if lost.is_set() else 0


def unprinted(answer: JobAnswer) -> JobAnswer:
    """The same JSON with a short `repr`."""
    return [Unprinted(body) for body in answer] if isinstance(answer, list) else Unprinted(answer)


def _post(job: dict[str, Any]) -> Post:
    """A function that posts a report of this job like the SDK, and that can be awaited."""
    from runpod.http_client import AsyncClientSession
    from runpod.serverless.modules.rp_http import send_result

    async def post(report: dict[str, Any]) -> None:
        async with AsyncClientSession() as session:
            await send_result(session, {"status": "IN_PROGRESS", "output": report}, job)

    return post


def _size(raw: object) -> int:
    """The size of a job's input in bytes."""
    try:
        return len(orjson.dumps(raw))
    except TypeError:
        return _INPUT_MAX_BYTES


def _end_children_with_parent() -> None:
    """Let the kernel end forked processes (the SDK's pings) if this process is killed."""
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    parent = os.getpid()

    def end_with_parent() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # the parent was killed before the prctl call
            os._exit(1)

    os.register_at_fork(after_in_child=end_with_parent)
