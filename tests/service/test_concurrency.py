"""The number of concurrent queue jobs, on a simulated clock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

import pytest

from service.transports.queue.concurrency import Concurrency
from tests.service.client import PATIENCE


@dataclass
class Clock:
    """A clock that the test sets."""

    now: float = 1000.0

    def __call__(self) -> float:
        """The time."""
        return self.now


def concurrency_of(
    clock: Clock, minimum: int = 1, maximum: int = 4, up: float = 0.05, down: float = 0.0
) -> Concurrency:
    """A concurrency with these settings, by default those of the worker."""
    return Concurrency(minimum, maximum, scale_up=up, scale_down=down, clock=clock)


async def pass_through(concurrency: Concurrency) -> None:
    """Run a job that ends immediately."""
    async with concurrency.slot():
        pass


async def run_tasks() -> None:
    """Run all tasks until they wait."""
    for _ in range(20):
        await asyncio.sleep(0)


def run(body: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's coroutine; a test that hangs fails."""

    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE):
            await body()

    asyncio.run(bounded())


class Jobs:
    """Jobs that hold their slots until `finish` is called."""

    def __init__(self, concurrency: Concurrency) -> None:
        self._concurrency = concurrency
        self._finish: dict[int, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []
        self.started: list[int] = []

    async def arrive(self, count: int = 1) -> None:
        """Start jobs one after the other, numbered from 0."""
        for _ in range(count):
            number = len(self.tasks)
            self._finish[number] = asyncio.Event()
            self.tasks.append(asyncio.create_task(self._job(number)))
            await run_tasks()

    async def finish(self, number: int) -> None:
        """End a job."""
        self._finish[number].set()
        await run_tasks()

    async def finish_all(self) -> None:
        """End all jobs."""
        for event in self._finish.values():
            event.set()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _job(self, number: int) -> None:
        async with self._concurrency.slot():
            self.started.append(number)
            await self._finish[number].wait()


def test_it_begins_with_the_minimum() -> None:
    """A new worker runs `MIN_CONCURRENCY` jobs concurrently."""

    async def body() -> None:
        concurrency = concurrency_of(Clock(), minimum=2)
        assert concurrency.limit == 2
        jobs = Jobs(concurrency)
        await jobs.arrive(3)
        assert jobs.started == [0, 1]
        await jobs.finish_all()

    run(body)


def test_it_grows_while_requests_come_faster_than_the_threshold() -> None:
    """Above 0.05 requests per second (three per minute) each job raises the limit, up to the maximum."""

    async def body() -> None:
        concurrency = concurrency_of(Clock())
        limits = []
        for _ in range(10):
            await pass_through(concurrency)
            limits.append(concurrency.limit)
        assert limits == [1, 1, 1, 1, 2, 3, 4, 4, 4, 4]

    run(body)


def test_it_keeps_its_size_between_the_thresholds() -> None:
    """The limit does not change while the rate is between the thresholds."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock, up=0.1, down=0.01)
        for _ in range(9):
            await pass_through(concurrency)
        grown = concurrency.limit
        assert grown > 1
        clock.now += 61
        await pass_through(concurrency)  # the first after a pause finds a rate of zero
        assert concurrency.limit == grown - 1
        for _ in range(6):
            clock.now += 15
            await pass_through(concurrency)
            assert concurrency.limit == grown - 1

    run(body)


def test_it_shrinks_after_quiet_minutes_but_not_below_the_minimum() -> None:
    """A job after a minute without jobs lowers the limit by one."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock, minimum=2)
        for _ in range(10):
            await pass_through(concurrency)
        limits = []
        for _ in range(4):
            clock.now += 120
            await pass_through(concurrency)
            limits.append(concurrency.limit)
        assert limits == [3, 2, 2, 2]

    run(body)


def test_the_rate_is_that_of_the_last_minute() -> None:
    """The rate counts the last minute only."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock)
        for _ in range(6):
            await pass_through(concurrency)
        assert concurrency.rate == pytest.approx(6 / 60)
        clock.now += 59.9
        await pass_through(concurrency)
        assert concurrency.rate == pytest.approx(7 / 60)
        clock.now += 0.2
        assert concurrency.rate == pytest.approx(1 / 60)
        clock.now += 60
        assert concurrency.rate == 0

    run(body)


def test_quick_jobs_are_wanted_by_the_hundred() -> None:
    """A new worker wants at least 64 jobs; after jobs of milliseconds it wants more than a thousand."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock)
        assert 64 <= concurrency.wanted <= 128
        for _ in range(20):
            async with concurrency.slot():
                clock.now += 0.01
        assert concurrency.wanted > 1000

    run(body)


def test_slow_jobs_are_left_to_other_workers() -> None:
    """With jobs of a minute, a worker holds no more jobs than may run concurrently."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock, maximum=4)
        for _ in range(20):
            async with concurrency.slot():
                clock.now += 60
        assert concurrency.wanted == 4

    run(body)


def test_a_slow_job_is_noticed_before_it_ends() -> None:
    """A running job counts for the estimated duration of jobs."""

    async def body() -> None:
        clock = Clock()
        concurrency = concurrency_of(clock, minimum=2, maximum=2)
        jobs = Jobs(concurrency)
        await jobs.arrive(2)
        clock.now += 5
        assert concurrency.wanted == 2 + 4
        clock.now += 55
        assert concurrency.wanted == 2
        await jobs.finish_all()

    run(body)


def test_jobs_over_the_limit_wait_for_a_slot() -> None:
    """Jobs over the limit wait, and start in order when others end."""

    async def body() -> None:
        jobs = Jobs(concurrency_of(Clock(), minimum=2, maximum=2))
        await jobs.arrive(5)
        assert jobs.started == [0, 1]
        await jobs.finish(1)
        assert jobs.started == [0, 1, 2]
        await jobs.finish(0)
        assert jobs.started == [0, 1, 2, 3]
        await jobs.finish_all()
        assert jobs.started == [0, 1, 2, 3, 4]

    run(body)


def test_a_higher_limit_starts_the_job_that_waits_longest() -> None:
    """A new job that raises the limit does not overtake waiting jobs."""

    async def body() -> None:
        jobs = Jobs(concurrency_of(Clock(), minimum=1, maximum=2))
        await jobs.arrive(8)
        assert jobs.started == [0, 1]
        await jobs.finish_all()
        assert jobs.started == list(range(8))

    run(body)


def test_a_cancelled_job_frees_its_slot() -> None:
    """Cancelling a running job starts the next one."""

    async def body() -> None:
        jobs = Jobs(concurrency_of(Clock(), maximum=1))
        await jobs.arrive(2)
        jobs.tasks[0].cancel()
        await run_tasks()
        assert jobs.started == [0, 1]
        assert jobs.tasks[0].cancelled()
        await jobs.finish_all()

    run(body)


def test_a_job_cancelled_while_it_waits_takes_no_slot() -> None:
    """A waiting job that is cancelled does not occupy a slot."""

    async def body() -> None:
        jobs = Jobs(concurrency_of(Clock(), maximum=1))
        await jobs.arrive(3)
        jobs.tasks[1].cancel()
        await run_tasks()
        await jobs.finish(0)
        assert jobs.started == [0, 2]
        await jobs.finish_all()

    run(body)


def test_a_job_that_fails_frees_its_slot() -> None:
    """An exception in a job is raised and frees the slot."""

    async def body() -> None:
        concurrency = concurrency_of(Clock(), maximum=1)

        async def failing() -> None:
            async with concurrency.slot():
                raise LookupError

        with pytest.raises(LookupError):
            await failing()
        await pass_through(concurrency)

    run(body)


def test_hundreds_of_jobs_never_exceed_the_limit() -> None:
    """The limit holds, and every job runs, in any order of arrivals, ends and cancellations."""

    async def body() -> None:
        concurrency = concurrency_of(Clock(), minimum=1, maximum=3)
        running = most = done = 0

        async def job(number: int) -> None:
            nonlocal running, most, done
            async with concurrency.slot():
                running += 1
                most = max(most, running)
                try:
                    for _ in range(number % 5):
                        await asyncio.sleep(0)
                finally:
                    running -= 1
                done += 1

        tasks: list[asyncio.Task[None]] = []
        for number in range(300):
            task = asyncio.create_task(job(number))
            tasks.append(task)
            if number % 7 == 0:
                await asyncio.sleep(0)
                tasks[number // 2].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert most == 3
        assert done == sum(result is None for result in results)
        await pass_through(concurrency)

    run(body)
