"""An endpoint on RunPod, whose workers take jobs from a queue."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from http import HTTPStatus
from math import inf
from typing import Any, Final
from urllib.parse import quote

from bge_m3_qdrant_client.calls import Call, Deadline, encoded
from bge_m3_qdrant_client.credentials import authorization, shown_url
from bge_m3_qdrant_client.errors import (
    ConnectionFailed,
    InvalidOption,
    JobFailed,
    TimedOut,
    UnexpectedAnswer,
    worker_error,
)
from bge_m3_qdrant_client.exchange import TIDY_UP_TIMEOUT_S, polled, report_progress, tidied
from bge_m3_qdrant_client.replies import parsed
from bge_m3_qdrant_client.report import Health
from bge_m3_qdrant_client.steps import Send, Steps, Wait

BASE_URL: Final = "https://api.runpod.ai/v2"

RUN_MAX_BYTES: Final = 10_000_000
"""Maximum request of `/run` in bytes."""

RUNSYNC_MAX_BYTES: Final = 20_000_000
"""Maximum request of `/runsync` in bytes."""

RUNSYNC_TIMEOUT_S: Final = 150.0
"""Seconds after which an answer to `/runsync` is late: RunPod itself answers with the state of the job before."""

POLL_INTERVAL_MIN_S: Final = 0.2
POLL_INTERVAL_MAX_S: Final = 5.0

_ENDED: Final = frozenset({"COMPLETED", "FAILED", "CANCELLED", "TIMED_OUT"})
"""States of a job that stay. A job in any other state goes on: a worker has it in `IN_PROGRESS`, or in `RUNNING`."""


class RunPodTarget:
    """An endpoint on RunPod.

    A call is a `/runsync` request. If its answer is late or lost, or the call may take long, the call is a `/run` job,
    which is asked for with `/status` and ended with `/cancel` where nobody waits for it any more.

    Args:
        endpoint_id: the id of the endpoint.
        api_key: the key of RunPod.
        base_url: the address of RunPod's API.

    Raises:
        InvalidOption: the address is not one of HTTP, the id is empty, or the key cannot be a header.
    """

    def __init__(self, endpoint_id: str, *, api_key: str, base_url: str = BASE_URL) -> None:
        if not endpoint_id:
            raise InvalidOption("endpoint_id must not be empty")
        self._url = f"{base_url.rstrip('/')}/{quote(endpoint_id, safe='')}"
        self.name = shown_url(self._url)
        self._headers = authorization(api_key)
        self.request_max_bytes = RUN_MAX_BYTES * 9 // 10

    def answer(self, call: Call, attempt: int, deadline: Deadline) -> Steps[Any]:
        """See `Target.answer`."""
        content = encoded({"input": _input(call)})
        if len(content) > RUNSYNC_MAX_BYTES:
            raise InvalidOption(
                f"the request has {len(content)} bytes, more than {RUNSYNC_MAX_BYTES}; send less at once"
            )
        if (call.job or attempt > 0) and len(content) <= RUN_MAX_BYTES:
            job = _job(parsed((yield self._send("POST", "/run", deadline, content))))
        else:
            job = yield from self._runsync(content, deadline)
        if job["status"] not in _ENDED and not isinstance(job.get("id"), str):
            raise UnexpectedAnswer("the answer is the state of a job without its id")
        identity = quote(str(job.get("id")), safe="")
        interval_s = POLL_INTERVAL_MIN_S

        def asked() -> Send:
            return self._send("GET", f"/status/{identity}", deadline)

        try:
            while job["status"] not in _ENDED:
                yield Wait(min(interval_s * random.uniform(0.75, 1.25), deadline.timeout_s()))  # noqa: S311
                interval_s = min(POLL_INTERVAL_MAX_S, interval_s * 1.5)
                job = yield from _asked_for(asked, deadline)
                if job["status"] not in _ENDED:
                    report_progress(call, job.get("output"))
        except GeneratorExit:
            raise
        except BaseException:
            yield from tidied(self._send("POST", f"/cancel/{identity}", Deadline(TIDY_UP_TIMEOUT_S)))
            raise
        return _output(job)

    def health(self, deadline: Deadline) -> Steps[Health]:
        """See `Target.health`."""
        state = parsed((yield self._send("GET", "/health", deadline)))
        jobs, workers = (_counts(state.get(key)) if isinstance(state, dict) else {} for key in ("jobs", "workers"))
        ready = any(workers.get(key, 0) > 0 for key in ("idle", "ready", "running"))
        reason = None if ready else "no worker runs; the first request starts one"
        return Health(ready=ready, status="ready" if ready else "cold", reason=reason, jobs=jobs, workers=workers)

    def _runsync(self, content: bytes, deadline: Deadline) -> Steps[dict[str, Any]]:
        seconds = deadline.timeout_s()
        try:
            return _job(parsed((yield self._send("POST", "/runsync", deadline, content, RUNSYNC_TIMEOUT_S))))
        except TimedOut:
            if seconds <= RUNSYNC_TIMEOUT_S:
                raise
        raise ConnectionFailed(f"no answer to /runsync within {RUNSYNC_TIMEOUT_S:g} s")

    def _send(
        self, method: str, path: str, deadline: Deadline, content: bytes | None = None, max_s: float = inf
    ) -> Send:
        headers = {**self._headers, **({"Content-Type": "application/json"} if content else {})}
        timeout_s, limit_s = min(deadline.timeout_s(), max_s), min(deadline.limit_s, max_s)
        return Send(method, self._url + path, timeout_s, limit_s, content, headers)


def _input(call: Call) -> dict[str, Any]:
    """The input of the job. The worker knows an ingest as an embed request, and a rerank as one of OpenAI's proxy."""
    if call.operation == "rerank":
        return {"openai_route": "/v1/rerank", "openai_input": call.body}
    if call.operation == "ingest":
        return {"operation": "embed", "isPassage": True, **call.body}
    return {"operation": call.operation, **call.body}


def _job(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict) or not isinstance(value.get("status"), str):
        raise UnexpectedAnswer("the answer is not the state of a job")
    return value


def _asked_for(asked: Callable[[], Send], deadline: Deadline) -> Steps[dict[str, Any]]:
    """The steps of asking for the state of a job.

    Raises:
        JobFailed: the platform has forgotten the job.
    """
    try:
        return _job((yield from polled(asked, deadline)))
    except UnexpectedAnswer as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise
    raise JobFailed("RunPod does not know the job any more, whose time to live has ended", status="EXPIRED")


def _output(job: Mapping[str, Any]) -> Any:
    """The answer of a job that has ended."""
    output, status = job.get("output"), job["status"]
    if isinstance(output, list) and len(output) == 1:
        output = output[0]
    if isinstance(output, dict) and "error_code" in output:
        raise worker_error({"error": job.get("error"), **output}, request_id=str(job.get("id")))
    if status != "COMPLETED":
        raise JobFailed(f"the job ended with {status} on RunPod, without an answer of the worker", status=status)
    return output


def _counts(value: Any) -> dict[str, int]:
    return {key: count for key, count in value.items() if isinstance(count, int)} if isinstance(value, dict) else {}
