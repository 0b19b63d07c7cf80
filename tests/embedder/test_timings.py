"""The time of each stage is summed for its own request, wherever the stage runs."""

from __future__ import annotations

import asyncio
import itertools

import pytest

from embedder import Timings, timed


def ticking() -> Timings:
    """Return timings whose clock gains a second with every reading."""
    seconds = itertools.count(0.0)
    return Timings(clock=lambda: next(seconds))


def test_stages_are_summed() -> None:
    """A stage that runs twice adds both times, and a failed stage counts as well."""
    timings = ticking()
    with timings.current():
        for _ in range(2):
            with timed("embed"):
                pass
        with pytest.raises(ZeroDivisionError), timed("store"):
            raise ZeroDivisionError
    assert timings.seconds == {"embed": 2.0, "store": 1.0}


def test_threads_and_tasks_of_a_request_count_for_it() -> None:
    """Threads and tasks of a request are timed for that request alone."""

    def work() -> None:
        with timed("tokenize"):
            pass

    async def request(timings: Timings, times: int) -> None:
        with timings.current():
            for _ in range(times):
                await asyncio.to_thread(work)

    async def both(first: Timings, second: Timings) -> None:
        await asyncio.gather(request(first, 1), request(second, 3))

    first, second = ticking(), ticking()
    asyncio.run(both(first, second))
    assert (first.seconds, second.seconds) == ({"tokenize": 1.0}, {"tokenize": 3.0})


def test_without_a_request_nothing_is_measured() -> None:
    """Work outside a request records no timings."""
    timings = ticking()
    with timed("embed"):
        pass
    assert timings.seconds == {}
