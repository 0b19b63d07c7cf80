"""The intake of the queue worker takes the wanted number of jobs, and none during a shutdown."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import count
from types import FrameType

import pytest

from service.transports.queue.intake import Intake


@pytest.fixture
def stopped() -> Iterator[list[int]]:
    """Signals that reached the previous handler, which stands for the SDK's."""
    received: list[int] = []

    def sdk(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    previous = signal.signal(signal.SIGTERM, sdk)
    yield received
    signal.signal(signal.SIGTERM, previous)


def taken(intake: Intake, held: set[str], queued: int) -> int:
    """The number of jobs that the SDK would take now; it counts waiting jobs twice."""
    limit = intake(0)
    assert limit == intake.capacity, "the SDK would stop until every job is answered"
    return int(limit) - len(held) - queued


@pytest.mark.parametrize(("most", "capacity"), [(1, 128), (4, 128), (500, 625)])
def test_the_first_limit_sizes_the_queue_of_the_sdk(stopped: list[int], most: int, capacity: int) -> None:
    """The first limit sizes the SDK's queue: a quarter more than the concurrent jobs, and at least 128."""
    assert Intake(most, set, lambda: 1)(1) == capacity


def test_the_limit_changes_without_stopping_the_sdk(stopped: list[int]) -> None:
    """The limit always equals the size of the SDK's queue, and the SDK takes the missing jobs."""
    held: set[str] = set()
    wanted = 10
    intake = Intake(4, lambda: held, lambda: wanted, clock=count().__next__)
    intake(1)
    assert taken(intake, held, 0) == 10
    held |= {"a", "b", "c"}
    assert taken(intake, held, 3) == 7, "three that queue count once"
    intake.begin("a", 1)
    intake.begin("b", 1)
    assert taken(intake, held, 1) == 7
    wanted = 2
    assert taken(intake, held, 1) == 0
    wanted = 10**9
    assert taken(intake, held, 1) == 128 - 3
    assert stopped == []


def test_large_inputs_close_the_intake_until_they_are_done(stopped: list[int]) -> None:
    """The bytes of held inputs limit the memory, whatever the number of jobs."""
    held = {"a", "b"}
    intake = Intake(4, lambda: held, lambda: 100, max_bytes=1000)
    intake(1)
    intake.begin("a", 600)
    intake.begin("b", 600)
    assert taken(intake, held, 0) == 0
    held.remove("a")
    assert taken(intake, held, 0) == 99


def test_jobs_that_fill_the_memory_close_the_intake(stopped: list[int]) -> None:
    """While running requests leave no memory for another job, none is taken."""
    full = False
    intake = Intake(4, set, lambda: 100, is_full=lambda: full)
    intake(1)
    assert taken(intake, set(), 0) == 100
    full = True
    assert taken(intake, set(), 0) == 0


def test_a_queue_that_fails_immediately_is_polled_less(stopped: list[int]) -> None:
    """After a few short polls without a job, the worker reports that it is full, so that the SDK pauses."""
    now = 0.0
    held: set[str] = set()
    intake = Intake(4, lambda: held, lambda: 10, clock=lambda: now)
    intake(1)
    asked = []
    for pause in (1.0, 0.001, 0.001, 0.001, 1.0, 0.001, 0.001, 20.0, 0.001, 0.001):
        now += pause
        asked.append(taken(intake, held, 0))
    assert asked == [10, 10, 10, 0, 10, 10, 10, 10, 10, 10]
    for n in range(9):  # quick polls that bring jobs are welcome
        now += 0.001
        held = {str(n)}
        intake.begin(str(n), 1)
        assert taken(intake, held, 0) == 9


def test_stopping_waits_for_every_job_that_was_taken(stopped: list[int]) -> None:
    """After SIGTERM waiting jobs start, running jobs finish, and only then the SDK stops."""
    held = {"running", "queued"}
    intake = Intake(4, lambda: held, lambda: 100)
    intake(1)
    intake.begin("running", 1)
    signal.raise_signal(signal.SIGTERM)
    limit = intake(128)
    assert int(limit) >= len(held), "the SDK starts no more jobs than its limit, so both must fit"
    assert taken(intake, held, 1) == 0, "no further poll"
    intake.begin("queued", 1)
    assert taken(intake, held, 0) == 0
    assert stopped == []
    held.clear()
    assert taken(intake, held, 0) == 0
    assert stopped == [signal.SIGTERM]


def test_the_signal_begins_the_time_of_the_shutdown(stopped: list[int]) -> None:
    """The signal calls `on_close` immediately, not at the next poll, which may be a minute away."""
    closed: list[bool] = []
    intake = Intake(4, set, lambda: 100, on_close=lambda: closed.append(True))
    intake(1)
    assert closed == []
    signal.raise_signal(signal.SIGTERM)
    assert closed == [True]


def test_an_idle_worker_stops_at_its_next_poll(stopped: list[int]) -> None:
    """A worker without jobs passes the signal on at its next poll."""
    intake = Intake(4, set, lambda: 100)
    intake(1)
    signal.raise_signal(signal.SIGTERM)
    assert int(intake(128)) == 0
    assert stopped == [signal.SIGTERM]
