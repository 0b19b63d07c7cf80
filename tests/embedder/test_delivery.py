"""Results reach the event loop that awaits them, whichever thread completes them and however many there are."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from embedder.scheduling.delivery import delivered, woken_once
from tests.embedder.fakes import WAIT_MAX_S


class Waking(asyncio.SelectorEventLoop):
    """An event loop that counts how often another thread wakes it."""

    def __init__(self) -> None:
        super().__init__()
        self.wakeups = 0

    def _write_to_self(self) -> None:
        self.wakeups += 1
        super()._write_to_self()  # type: ignore[misc]


def run(scenario: Callable[[], Any]) -> Any:
    """Run a coroutine function on a new event loop with a time limit."""
    return asyncio.run(asyncio.wait_for(scenario(), WAIT_MAX_S))


def test_a_result_or_an_error_is_delivered() -> None:
    """The outcome of a future reaches the awaiting task, whether it completes before or during the wait."""

    async def scenario() -> Sequence[object]:
        done, failed, later = Future[int](), Future[int](), Future[int]()
        done.set_result(1)
        failed.set_exception(ValueError("why"))
        threading.Timer(0.01, later.set_result, [2]).start()
        return await asyncio.gather(delivered(done), delivered(failed), delivered(later), return_exceptions=True)

    first, error, last = run(scenario)
    assert (first, last) == (1, 2)
    assert isinstance(error, ValueError)


def test_futures_that_complete_together_wake_a_loop_once() -> None:
    """512 clients whose queries share a batch cost one wake-up of their event loop, not 512."""
    loop = Waking()
    futures = [Future[int]() for _ in range(512)]

    def complete() -> None:
        for number, future in enumerate(futures):
            future.set_result(number)

    async def scenario() -> list[int]:
        waiting = [asyncio.create_task(delivered(future)) for future in futures]
        await asyncio.sleep(0)
        worker = threading.Thread(target=complete)
        worker.start()
        worker.join()  # the loop is busy meanwhile, as with 512 clients
        return await asyncio.gather(*waiting)

    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        assert runner.run(asyncio.wait_for(scenario(), WAIT_MAX_S)) == list(range(512))
    assert loop.wakeups <= 2  # one for the results, and one by asyncio when the runner closes


def test_a_batch_is_complete_before_its_loop_wakes() -> None:
    """A thread completes all the results of a batch before the event loop takes the interpreter for the first."""
    done_at_first: list[int] = []

    async def scenario() -> list[int]:
        futures = [Future[int]() for _ in range(64)]

        async def client(future: Future[int]) -> int:
            result = await delivered(future)
            done_at_first.append(sum(future.done() for future in futures))
            return result

        def complete() -> None:
            with woken_once():
                for number, future in enumerate(futures):
                    future.set_result(number)
                    time.sleep(0.0001)  # lets the loop run

        tasks = [asyncio.create_task(client(future)) for future in futures]
        await asyncio.sleep(0)
        await asyncio.to_thread(complete)
        return await asyncio.gather(*tasks)

    assert run(scenario) == list(range(64))
    assert done_at_first[0] == 64


@pytest.mark.slow
def test_no_result_is_lost_between_two_wake_ups() -> None:
    """Results that arrive one by one, from several threads, while the loop takes others, all arrive."""

    async def scenario() -> int:
        with ThreadPoolExecutor(4) as threads:
            futures = [threads.submit(int, n) for n in range(2000)]
            return sum(await asyncio.gather(*map(delivered, futures)))

    assert run(scenario) == sum(range(2000))


def test_cancelling_the_task_cancels_the_future() -> None:
    """Cancelling a task cancels its future, and another task of the loop is still served."""
    unwanted, wanted = Future[int](), Future[int]()

    async def scenario() -> int:
        tasks = [asyncio.create_task(delivered(future)) for future in (unwanted, wanted)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await tasks[0]
        wanted.set_result(3)
        return await tasks[1]

    assert run(scenario) == 3
    assert unwanted.cancelled()


@pytest.mark.slow
def test_a_result_after_the_loop_has_closed_harms_nobody() -> None:
    """A result that is no longer awaited does not stop its worker thread or keep the loop in memory."""
    futures = [Future[int]()]
    futures[0].set_running_or_notify_cancel()  # a running future is not cancelled with its task
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []

    async def scenario() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        task = asyncio.create_task(delivered(futures[0]))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(scenario())
    futures.pop().set_result(1)
    gc.collect()
    assert loops[0]() is None
