"""The intake of the queue worker: constant while serving, closed while stopping."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from types import FrameType

import pytest

from service.intake import Intake


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Signals that reached the handler which was there before, as the SDK's would be."""
    received: list[int] = []

    def sdk(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    previous = signal.signal(signal.SIGTERM, sdk)
    yield received
    signal.signal(signal.SIGTERM, previous)


def test_the_limit_never_changes_while_serving(stopped: list[int]) -> None:
    """Every change of the limit would stop the SDK's intake, so there is none."""
    held: set[str] = set()
    intake = Intake(9, lambda: held)
    limits = []
    for job in ("a", "b", "c"):
        held.add(job)
        intake.begin(job)
        limits.append(intake(9))
    assert limits == [9, 9, 9]
    assert stopped == []


def test_stopping_waits_for_every_job_that_was_taken(stopped: list[int]) -> None:
    """After SIGTERM, queued jobs are started, running ones finish, and only then does the SDK stop."""
    held = {"running", "queued"}
    intake = Intake(9, lambda: held)
    intake.begin("running")
    assert intake(1) == 9
    signal.raise_signal(signal.SIGTERM)
    assert intake(9) == 1, "a limit of 0 would leave the queued job unstarted"
    intake.begin("queued")
    assert intake(1) == 0, "no further poll"
    assert stopped == []
    held.clear()
    assert intake(0) == 0
    assert stopped == [signal.SIGTERM]


def test_an_idle_worker_stops_at_its_next_poll(stopped: list[int]) -> None:
    """With nothing taken, the signal is passed on at once."""
    intake = Intake(9, set)
    assert intake(1) == 9
    signal.raise_signal(signal.SIGTERM)
    assert intake(9) == 0
    assert stopped == [signal.SIGTERM]
