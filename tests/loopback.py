"""A RunPod job queue on loopback, and a worker process that the real runpod SDK drives against it.

Nothing of the SDK is replaced: it reads the addresses of the queue from its environment, as on the platform.

    with JobQueue() as queue, Worker(queue, cwd=repository) as worker:
        worker.wait_for_first_poll(30)
        job = queue.submit({"texts": ["hello"]})
        assert queue.result(job, timeout=5) == {"output": ...}
        worker.terminate()
        assert worker.wait(10) == 0

The wire, as runpod 1.12.0 speaks it (`rp_job.py`, `rp_http.py`, `rp_ping.py`):

    GET  /v2/EP/job-take/POD?...                 200 one job, or 204
    GET  /v2/EP/job-take-batch/POD?...           200 a list of at most `batch_size` jobs, or 204
    GET  /v2/EP/job-stop/POD?...                 200 {"jobsToStop": [ids]}, or 204
    POST /v2/EP/job-done/POD/JOB?...             200; 400 for a body over the platform's limit
    GET  /v2/EP/ping/POD?...                     200

Every time here is in seconds of `time.monotonic()`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self, TypeVar

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from types import TracebackType

T = TypeVar("T")

ENDPOINT: Final = "loopback"
POD: Final = "pod-loopback"
API_KEY: Final = "loopback-key"

_CALLER_PREFIXES: Final = ("QDRANT_", "MODEL_", "RUNPOD_")  # variables of the caller that a worker never sees
_READ_MAX_BYTES: Final = 1 << 30  # the queue refuses large bodies itself, before aiohttp's limit
_CHECK_INTERVAL_S: Final = 0.02  # for conditions that no change of the queue announces
_OUTPUT_WAIT_S: Final = 30.0  # for the output of a worker that has ended
_OUTPUT_TAIL_CHARACTERS: Final = 4_000  # the part of a worker's output in an error message


@dataclass(frozen=True, slots=True)
class Poll:
    """One request for jobs: `batch_size` is 1 for the single route; `busy` is the SDK's `job_in_progress`."""

    at: float
    pod: str
    batch_size: int
    busy: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """One job that was handed over: `id` is empty for a raw job without an id."""

    at: float
    id: str
    pod: str


@dataclass(frozen=True, slots=True)
class Post:
    """One attempt to answer a job or to report its progress: `size` in bytes, `status` as answered to it."""

    at: float
    id: str
    size: int
    status: int
    progress: bool


@dataclass(frozen=True, slots=True)
class Refused:
    """One answer that the platform would reject: such a job is never answered."""

    at: float
    id: str
    size: int
    reason: str


@dataclass(frozen=True, slots=True)
class Ping:
    """One ping: `job_ids` are the jobs that the worker holds; `query` is the whole query string."""

    at: float
    pod: str
    job_ids: tuple[str, ...]
    query: dict[str, str]


class JobQueue:
    """The platform's job queue on 127.0.0.1, in a thread with its own event loop.

    A job is handed over once, to the first open poll, in the order of submission; a poll whose client has
    disconnected takes none. Posted bodies are kept byte for byte.

    Args:
        max_body: maximum answer in bytes; a larger one is answered 400 and recorded in `refused` (10 MB, as for /run).
        hold: seconds that a poll without a job is held open before 204. A worker exits only after its open
            polls have returned, so this is about the minimum time from SIGTERM to exit.
    """

    def __init__(self, *, max_body: int = 10_000_000, hold: float = 0.5) -> None:
        self._max_body = max_body
        self._hold = hold
        self._changed = threading.Condition()  # guards everything below; re-entrant
        self._waiting: deque[dict[str, Any]] = deque()
        self._submitted: set[str] = set()
        self._cancelled: set[str] = set()
        self._stops: list[str] = []
        self._taken: list[Taken] = []
        self._polls: list[Poll] = []
        self._posts: list[Post] = []
        self._pings: list[Ping] = []
        self._refused: list[Refused] = []
        self._results: dict[str, Any] = {}
        self._raw_results: dict[str, bytes] = {}
        self._progress: dict[str, list[Any]] = {}
        self._post_failures: deque[int] = deque()
        self._take_failures: deque[int] = deque()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._wake = asyncio.Event()  # set and replaced on every change; the loop's thread only
        self._runner: web.AppRunner | None = None
        self._port = 0
        self._thread = threading.Thread(target=self._loop.run_forever, name="job-queue", daemon=True)

    def __enter__(self) -> Self:
        """Listen on every address of `environment`."""
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._open(), self._loop).result(10)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Answer the open polls with 204 and stop listening. The records stay readable."""
        self._closing = True
        self._announce()
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    @property
    def url(self) -> str:
        """The queue's root URL, `http://127.0.0.1:PORT/v2/ENDPOINT`."""
        return f"http://127.0.0.1:{self._port}/v2/{ENDPOINT}"

    def environment(self, *, pod: str = POD) -> dict[str, str]:
        """Return the variables that make an unmodified worker of runpod 1.12.0 work for this queue as `pod`.

        Each address contains the `?` to which the SDK appends. The SDK's own checks of GPU, memory, disk and
        network are off; checks that the worker registers itself still run.
        """
        return {
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/job-take/$ID?gpu=loopback",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/job-done/$RUNPOD_POD_ID/$ID?gpu=loopback",
            # No handler here streams: the route is not served, so one that did would log an error.
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/job-stream/$RUNPOD_POD_ID/$ID?gpu=loopback",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/ping/$RUNPOD_POD_ID?gpu=loopback",
            "RUNPOD_PING_INTERVAL": "1000",  # ms; the SDK floors it to whole seconds and must not reach 0
            "RUNPOD_AI_API_KEY": API_KEY,
            "RUNPOD_POD_ID": pod,
            "RUNPOD_POD_HOSTNAME": f"{pod}-host",
            "RUNPOD_ENDPOINT_ID": ENDPOINT,
            "RUNPOD_LOG_LEVEL": "INFO",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
            # The ping goes through `requests`, which would honour a proxy of the caller's.
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }

    # ------------------------------------------------------------------ the client's side

    def submit(self, input: dict[str, Any], id: str | None = None) -> str:  # noqa: A002 - the wire's own names
        """Queue one job and return its id, which is random by default."""
        job = id if id is not None else uuid.uuid4().hex
        self._queue([{"id": job, "input": input}])
        return job

    def submit_many(self, inputs: Iterable[dict[str, Any]]) -> list[str]:
        """Queue several jobs in one step, so that a single poll may take them all; return their ids."""
        jobs = [{"id": uuid.uuid4().hex, "input": job_input} for job_input in inputs]
        self._queue(jobs)
        return [str(job["id"]) for job in jobs]

    def submit_raw(self, job: dict[str, Any]) -> None:
        """Queue `job` unchanged, even with further fields or without `id` or `input`."""
        self._queue([job])

    def cancel(self, id: str) -> None:  # noqa: A002
        """Withdraw a waiting job; otherwise name it in the next answer to `job-stop`."""
        with self._changed:
            self._cancelled.add(id)
            waiting = [job for job in self._waiting if job.get("id") == id]
            for job in waiting:
                self._waiting.remove(job)
            if not waiting:
                self._stops.append(id)
        self._announce()

    def result(self, id: str, timeout: float) -> Any:  # noqa: A002
        """Wait for the job's answer and return it: the posted body, decoded, with nothing added or removed.

        Raises:
            TimeoutError: not answered within `timeout` seconds; the message tells how far the job came.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: id in self._results, timeout):
                message = f"job {id!r} was not answered within {timeout:g} s: {self._progress_of(id)}"
                raise TimeoutError(message)
            return self._results[id]

    def until(self, condition: Callable[[], bool], timeout: float, what: str) -> None:
        """Wait until `condition` holds, which may be about the queue or about a worker's output.

        Raises:
            TimeoutError: it did not hold within `timeout` seconds; the message says `what` was awaited.
        """
        deadline = time.monotonic() + timeout
        with self._changed:
            while not condition():
                if time.monotonic() > deadline:
                    seen = f"polls {len(self._polls)}, the last posts {self._posts[-5:]}"
                    message = f"no {what} within {timeout:g} s; {seen}"
                    raise TimeoutError(message)
                self._changed.wait(_CHECK_INTERVAL_S)

    def fail_next_posts(self, status: int, n: int) -> None:
        """Answer the next `n` posts to `job-done`, progress included, with `status`, and keep no body."""
        with self._changed:
            self._post_failures.extend([status] * n)

    def fail_next_takes(self, status: int, n: int) -> None:
        """Answer the next `n` polls for jobs that arrive with `status`; one already open is not disturbed."""
        with self._changed:
            self._take_failures.extend([status] * n)

    # ------------------------------------------------------------------ what happened

    @property
    def polls(self) -> list[Poll]:
        """All requests for jobs so far, in order."""
        with self._changed:
            return list(self._polls)

    @property
    def taken(self) -> list[Taken]:
        """All jobs handed over so far, in order."""
        with self._changed:
            return list(self._taken)

    @property
    def posts(self) -> list[Post]:
        """All posts to `job-done` so far, in order: retries, refusals, scripted failures, progress."""
        with self._changed:
            return list(self._posts)

    @property
    def results(self) -> dict[str, Any]:
        """The decoded answer of every answered job; the latest one if a job is answered twice."""
        with self._changed:
            return dict(self._results)

    @property
    def raw_results(self) -> dict[str, bytes]:
        """The answers of `results` as the bytes that were posted."""
        with self._changed:
            return dict(self._raw_results)

    @property
    def refused(self) -> list[Refused]:
        """All refused answers so far: over `max_body`, or not JSON (NaN and Infinity are not JSON)."""
        with self._changed:
            return list(self._refused)

    @property
    def pings(self) -> list[Ping]:
        """All pings so far, in order."""
        with self._changed:
            return list(self._pings)

    def progress(self, id: str) -> list[Any]:  # noqa: A002
        """Return what the worker passed to `progress_update` for the job, in the order of arrival."""
        with self._changed:
            return list(self._progress.get(id, []))

    # ------------------------------------------------------------------ the loop's side

    async def _open(self) -> None:
        """Bind to a free port."""
        app = web.Application(client_max_size=_READ_MAX_BYTES)
        root = f"/v2/{ENDPOINT}"
        app.router.add_get(f"{root}/job-take/{{pod}}", self._take)
        app.router.add_get(f"{root}/job-take-batch/{{pod}}", self._take_batch)
        app.router.add_get(f"{root}/job-stop/{{pod}}", self._stop)
        app.router.add_post(f"{root}/job-done/{{pod}}/{{job:.+}}", self._done)
        app.router.add_get(f"{root}/ping/{{pod}}", self._ping)
        # Without handler_cancellation the poll of a killed worker would live on and swallow the next job.
        self._runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=1.0)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self._port = int(self._runner.addresses[0][1])

    async def _close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def _announce(self) -> None:
        """Notify waiting threads and open polls of a change, from any thread."""
        with self._changed:
            self._changed.notify_all()
        self._loop.call_soon_threadsafe(self._rouse)

    def _rouse(self) -> None:
        self._wake.set()
        self._wake = asyncio.Event()

    def _queue(self, jobs: list[dict[str, Any]]) -> None:
        with self._changed:
            self._waiting.extend(jobs)
            self._submitted.update(str(job.get("id", "")) for job in jobs)
        self._announce()

    async def _long_poll(self, ready: Callable[[], list[T]]) -> list[T]:
        """Return the first non-empty result of `ready`, or an empty list after `hold` seconds."""
        deadline = self._loop.time() + self._hold
        while True:
            wake = self._wake
            result = ready()
            remaining_s = deadline - self._loop.time()
            if result or remaining_s <= 0 or self._closing:
                return result
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(remaining_s):
                    await wake.wait()

    async def _jobs(self, request: web.Request, batch_size: int) -> list[dict[str, Any]] | int:
        """Record the poll and return its jobs, none after `hold`, or the status of a scripted failure."""
        pod = request.match_info["pod"]
        busy = request.query.get("job_in_progress") == "1"
        with self._changed:
            self._polls.append(Poll(time.monotonic(), pod, batch_size, busy))
            self._changed.notify_all()
            if self._take_failures:
                return self._take_failures.popleft()

        def ready() -> list[dict[str, Any]]:
            with self._changed:
                jobs = [self._waiting.popleft() for _ in range(min(batch_size, len(self._waiting)))]
                now = time.monotonic()
                self._taken.extend(Taken(now, str(job.get("id", "")), pod) for job in jobs)
                self._changed.notify_all()
                return jobs

        return await self._long_poll(ready)

    async def _take(self, request: web.Request) -> web.Response:
        jobs = await self._jobs(request, 1)
        if isinstance(jobs, int):
            return web.Response(status=jobs)
        return web.json_response(jobs[0]) if jobs else web.Response(status=204)

    async def _take_batch(self, request: web.Request) -> web.Response:
        jobs = await self._jobs(request, int(request.query["batch_size"]))
        if isinstance(jobs, int):
            return web.Response(status=jobs)
        return web.json_response(jobs) if jobs else web.Response(status=204)

    async def _stop(self, _request: web.Request) -> web.Response:
        def ready() -> list[str]:
            with self._changed:
                stops, self._stops = self._stops, []
                return stops

        stops = await self._long_poll(ready)
        return web.json_response({"jobsToStop": stops}) if stops else web.Response(status=204)

    async def _done(self, request: web.Request) -> web.Response:
        job = request.match_info["job"]
        raw = await request.read()
        body, refusal = self._checked_body(raw)
        with self._changed:
            progress = isinstance(body, dict) and body.get("status") == "IN_PROGRESS"
            now = time.monotonic()
            if self._post_failures:
                status = self._post_failures.popleft()
            elif refusal:
                status = 400
                self._refused.append(Refused(now, job, len(raw), refusal))
            else:
                status = 200
                if progress:
                    self._progress.setdefault(job, []).append(body.get("output"))
                else:
                    self._results[job] = body
                    self._raw_results[job] = raw
            self._posts.append(Post(now, job, len(raw), status, progress))
        self._announce()
        return web.Response(status=status)

    def _checked_body(self, raw: bytes) -> tuple[Any, str]:
        """Return the body and no error, or no body and the reason why the platform would refuse it."""
        if len(raw) > self._max_body:
            return None, f"{len(raw)} bytes, the limit is {self._max_body}"
        try:
            return json.loads(raw, parse_constant=_no_constant), ""
        except ValueError as error:
            return None, f"not JSON: {error}"

    async def _ping(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        ids = tuple(filter(None, query.get("job_id", "").split(",")))
        with self._changed:
            self._pings.append(Ping(time.monotonic(), request.match_info["pod"], ids, query))
        self._announce()
        return web.Response()

    def _progress_of(self, job: str) -> str:
        """Describe in a sentence how far the job came."""
        taken = next((record for record in reversed(self._taken) if record.id == job), None)
        if taken is None and job in self._cancelled:
            return "it was cancelled before a worker took it"
        if taken is None and job in self._submitted:
            return f"it still waits, not taken; the queue has seen {len(self._polls)} polls"
        if taken is None:
            return "it was never submitted"
        parts = [f"taken by {taken.pod} {time.monotonic() - taken.at:.2f} s ago"]
        if job in self._cancelled:
            parts.append("cancelled")
        parts += [f"answer refused ({record.reason})" for record in self._refused if record.id == job]
        parts += [f"a post of {record.size} bytes got {record.status}" for record in self._posts if record.id == job]
        if updates := self._progress.get(job):
            parts.append(f"{len(updates)} progress updates, the last {updates[-1]!r}")
        return "; ".join(parts)


class Worker:
    """One worker process: `python SCRIPT ARGS` under the real SDK, alone in a process group.

    Promise: the process sees no QDRANT_*, MODEL_* or RUNPOD_* variable of the caller, only those of the queue
    and `env`; its output is read all the time, so that it never blocks on it; and leaving the context kills
    the whole group, the SDK's ping process included, and never raises.

    Args:
        queue: the queue that it polls; None for a run without one, as with `--test_input`.
        cwd: the directory it runs in.
        script: the program, relative to `cwd`.
        args: the arguments of the program.
        env: further variables; they win over the queue's.
        pod: the name under which it polls.
    """

    def __init__(
        self,
        queue: JobQueue | None,
        *,
        cwd: Path | str,
        script: Path | str = "handler.py",
        args: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        pod: str = POD,
    ) -> None:
        self._queue = queue
        self._command = [sys.executable, str(script), *args]
        self._cwd = Path(cwd)
        self._pod = pod
        self._environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith(_CALLER_PREFIXES)},
            "PYTHONUNBUFFERED": "1",
            **(queue.environment(pod=pod) if queue is not None else {}),
            **(env or {}),
        }
        self._output = bytearray()
        self._output_lock = threading.Lock()
        self._polls_before = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._reader = threading.Thread(target=self._drain, name="worker-output", daemon=True)

    def __enter__(self) -> Self:
        """Start the process without waiting for its first poll."""
        self._polls_before = self._polls()
        self._process = subprocess.Popen(
            self._command,
            cwd=self._cwd,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._reader.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill the process group."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._running.wait(10)
        self._reader.join(2)

    @property
    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            message = "the worker has not been started: use it as a context manager"
            raise RuntimeError(message)
        return self._process

    @property
    def pid(self) -> int:
        """The process id, which is also the id of its process group."""
        return self._running.pid

    @property
    def output(self) -> str:
        """The worker's output so far, stdout and stderr together."""
        with self._output_lock:
            return self._output.decode(errors="replace")

    def wait_for_first_poll(self, timeout: float) -> float:
        """Wait until the worker asks for a job, and return the time of that poll.

        Raises:
            RuntimeError: it ended first; the message ends with its output.
            TimeoutError: it did neither within `timeout` seconds; the message ends with its output.
        """
        if self._queue is None:
            message = "a worker without a queue never polls"
            raise ValueError(message)
        deadline = time.monotonic() + timeout
        while self._polls() == self._polls_before:
            if (code := self._running.poll()) is not None:
                self._reader.join(1)
                message = f"the worker ended with exit code {code} before its first poll{self._tail()}"
                raise RuntimeError(message)
            if time.monotonic() > deadline:
                message = f"the worker did not poll within {timeout:g} s{self._tail()}"
                raise TimeoutError(message)
            time.sleep(0.01)
        return [poll for poll in self._queue.polls if poll.pod == self._pod][self._polls_before].at

    @property
    def has_ended(self) -> bool:
        """Whether the process has ended."""
        return self._running.poll() is not None

    def terminate(self) -> None:
        """Send SIGTERM to the process alone, as the platform does to a container's first process."""
        self._running.send_signal(signal.SIGTERM)

    def wait(self, timeout: float) -> int:
        """Wait for the end and return the exit code: negative where a signal ended it.

        Raises:
            TimeoutError: still running after `timeout` seconds; the message ends with its output.
        """
        try:
            code = self._running.wait(timeout)
        except subprocess.TimeoutExpired as expired:
            message = f"the worker still runs after {timeout:g} s{self._tail()}"
            raise TimeoutError(message) from expired
        self._reader.join(_OUTPUT_WAIT_S)  # the pipe closes with the last process of the group
        return code

    def _polls(self) -> int:
        polls = self._queue.polls if self._queue is not None else []
        return sum(poll.pod == self._pod for poll in polls)

    def _tail(self) -> str:
        return f"; the end of its output:\n{self.output[-_OUTPUT_TAIL_CHARACTERS:]}"

    def _drain(self) -> None:
        pipe = self._running.stdout
        if pipe is None:
            return
        with pipe:
            while chunk := os.read(pipe.fileno(), 65_536):
                with self._output_lock:
                    self._output += chunk


def free_port() -> int:
    """Return a port that is currently free."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _no_constant(name: str) -> NoReturn:
    """Reject constants that Python's JSON reader accepts and the platform's does not."""
    message = f"{name} is no JSON value"
    raise ValueError(message)
