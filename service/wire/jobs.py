"""The JSON of an accepted job: its state, its progress, and its answer when it has ended."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, NotRequired

from pydantic import Field
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from service.wire.answer_types import Count, PointsAnswer
from service.wire.body import Body
from service.wire.errors import Error

JobState = Literal["queued", "running", "done", "failed", "cancelled"]

SETTLED: Final = "settled"
POINTS: Final = "points"


class JobAnswer(TypedDict):
    """A job that was accepted with `Prefer: respond-async`."""

    id: str
    state: Annotated[JobState, Field(description="queued also while the worker's queue is full")]
    settled: Annotated[Count, Field(description="points that are stored, skipped or rejected so far")]
    points: Annotated[Count | None, Field(description="points of the job; null until the texts are read")]
    status: NotRequired[Annotated[int, Field(description="HTTP status of the answer; only when the job has ended")]]
    answer: NotRequired[
        Annotated[PointsAnswer | Error, Field(description="what POST would have answered; only when the job has ended")]
    ]


def job_answer(
    identity: str, state: JobState, progress: dict[str, int], *, status: int | None = None, answer: bytes | None = None
) -> Body:
    """The JSON of a job.

    Args:
        identity: the id.
        state: the state.
        progress: the last report of the progress, as `Progress` gives it; empty before the first one.
        status: the HTTP status of the answer; None while the job has not ended.
        answer: the JSON of the answer; None while the job has not ended.
    """
    described: dict[str, Any] = {
        "id": identity,
        "state": state,
        SETTLED: progress.get(SETTLED, 0),
        POINTS: progress.get(POINTS),
    }
    if status is not None:
        described["status"] = status
    body = Body.of(described)
    return body if answer is None else body.with_member("answer", Body((), answer))
