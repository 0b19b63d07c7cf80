"""The exchange of a call for its answer: the target behind a seam, and the retries above it."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, Final, Protocol

from bge_m3_qdrant_client.calls import Call, Deadline
from bge_m3_qdrant_client.errors import ClientError, TransportError
from bge_m3_qdrant_client.replies import parsed
from bge_m3_qdrant_client.report import Health
from bge_m3_qdrant_client.steps import Send, Steps, Wait

BACK_OFF_MIN_S: Final = 0.25
BACK_OFF_MAX_S: Final = 15.0

POLL_FAILURES_MAX: Final = 5
"""Polls in a row that may fail in a retryable way before a job is given up."""

TIDY_UP_TIMEOUT_S: Final = 5.0
"""Timeout of the request that cancels or forgets a job."""


class Target(Protocol):
    """Where calls go: a worker over HTTP, or an endpoint on RunPod."""

    @property
    def name(self) -> str:
        """The target in a representation, without a key."""
        ...

    @property
    def request_max_bytes(self) -> int:
        """Size in bytes up to which texts are put into one request."""
        ...

    def answer(self, call: Call, attempt: int, deadline: Deadline) -> Steps[Any]:
        """The steps to the JSON of an answer.

        Args:
            call: the call.
            attempt: number of attempts before this one.
            deadline: the time by which the call must be answered.

        Raises:
            ClientError: the call failed.
        """
        ...

    def health(self, deadline: Deadline) -> Steps[Health]:
        """The steps to the state of the target."""
        ...


@dataclass(frozen=True)
class Policy:
    """How long a call may take, and how often it is repeated.

    Attributes:
        timeout_s: maximum seconds of a request, with its retries and waits.
        retries: maximum repetitions of a request whose error is retryable.
    """

    timeout_s: float
    retries: int


def exchange(target: Target, call: Call, policy: Policy) -> Steps[Any]:
    """The steps of a call with its retries; the result is the JSON of the answer.

    An error that is not retryable is raised at once, and so is one whose `Retry-After` ends after the timeout.
    """
    deadline = Deadline(policy.timeout_s)
    for attempt in count():
        try:
            return (yield from target.answer(call, attempt, deadline))
        except ClientError as error:
            seconds = max(error.retry_after_s or 0.0, back_off_s(attempt))
            if attempt >= policy.retries or not _may_repeat(call, error) or seconds >= deadline.remaining_s:
                raise
        yield Wait(seconds)
    raise AssertionError("count() does not end")


def back_off_s(attempt: int) -> float:
    """Seconds to wait after a failure, which double and vary by half, so that clients do not come back together."""
    return min(BACK_OFF_MAX_S, BACK_OFF_MIN_S * 2.0**attempt) * random.uniform(0.5, 1.0)  # noqa: S311 - no secret


def polled(send: Callable[[], Send], deadline: Deadline) -> Steps[Any]:
    """The steps of asking for a job, which outlasts failures that are retryable; the result is its JSON.

    Raises:
        ClientError: the job is unknown, or asking fails again and again.
    """
    for failures in count():
        try:
            return parsed((yield send()))
        except ClientError as error:
            seconds = max(error.retry_after_s or 0.0, back_off_s(failures))
            if not error.retryable or failures >= POLL_FAILURES_MAX or seconds >= deadline.remaining_s:
                raise
        yield Wait(seconds)
    raise AssertionError("count() does not end")


def report_progress(call: Call, progress: Any) -> None:
    """Tell the caller how far a job has come, `{"settled"}`; null and absent before its first report."""
    settled = progress.get("settled") if isinstance(progress, dict) else None
    if call.notify is not None and isinstance(settled, int):
        call.notify(settled)


def tidied(send: Send) -> Steps[None]:
    """The step that cancels or forgets a job, whose failure changes nothing for the caller."""
    try:
        yield send
    except ClientError:
        return


def _may_repeat(call: Call, error: ClientError) -> bool:
    """Whether the same request is sent again: a lost answer to a deletion would be 0 the second time."""
    lost = isinstance(error, TransportError) and error.sent
    return error.retryable and (call.repeatable or not lost)
