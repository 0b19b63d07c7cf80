"""The memory of requests together has a limit, which is checked before the work."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path

import pytest

from embedder import InvalidRequest, Overloaded
from service.memory_budget import MemoryBudget, SharedReservation, container_memory_bytes
from service.settings import Settings


def test_what_does_not_fit_now_is_overloaded_and_fits_later() -> None:
    """A request that finds no room is refused as retryable, and the retry succeeds when another has ended."""
    budget = MemoryBudget(100)
    with budget.reserve(60):
        with pytest.raises(Overloaded, match=r"hold 60 of 100 bytes of memory .* needs 41 more"):
            budget.reserve(41)
        with budget.reserve(40):
            assert budget.reserved_bytes == 100
    with budget.reserve(41):
        assert budget.reserved_bytes == 41
    assert budget.reserved_bytes == 0


def test_what_can_never_fit_is_invalid() -> None:
    """A request that needs more than the whole budget is not told to retry, alone or in steps."""
    budget = MemoryBudget(100)
    with pytest.raises(InvalidRequest, match=r"at most 100 bytes of memory .* got 101"):
        budget.reserve(101)
    with budget.reserve(60) as reservation:
        with pytest.raises(InvalidRequest, match="got 101"):
            reservation.grow(41)
        assert budget.reserved_bytes == 60
        reservation.shrink(20)
        assert (reservation.size_bytes, budget.reserved_bytes) == (40, 40)
    reservation.release()
    assert budget.reserved_bytes == 0


def test_threads_never_hold_more_than_the_budget() -> None:
    """However many threads reserve, grow and release, the budget holds and is whole again at the end."""
    budget, seen = MemoryBudget(10), []

    def work(size: int) -> None:
        for _ in range(200):
            try:
                with budget.reserve(size) as reservation:
                    reservation.grow(1)
                    seen.append(budget.reserved_bytes)
            except Overloaded:
                continue

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(1, 9)))
    assert seen
    assert max(seen) <= 10
    assert budget.reserved_bytes == 0


@pytest.mark.parametrize(("text", "limited"), [("1048576\n", True), ("max\n", False), ("", False)])
def test_container_memory(tmp_path: Path, text: str, *, limited: bool) -> None:
    """The limit of a container counts, and the memory of the machine where there is none."""
    file = tmp_path / "memory.max"
    file.write_text(text)
    assert (container_memory_bytes([file, tmp_path / "missing"]) == 1048576) is limited
    assert container_memory_bytes([]) > 1048576


def test_default_is_half_of_the_container() -> None:
    """Without the setting, requests may hold half of the container's memory together."""
    assert Settings.from_environment({}).memory_budget_bytes == container_memory_bytes() // 2
    assert Settings.from_environment({"MEMORY_BUDGET_MB": "512"}).memory_budget_bytes == 512_000_000


def test_work_for_a_request_joins_its_reservation() -> None:
    """What the steps of a request reserve is one reservation, which ends when the transport has sent the answer."""
    budget = MemoryBudget(100)
    with budget.reserve(10) as request:
        with budget.joined() as step:
            step.grow(20)
        with ThreadPoolExecutor(1) as threads:
            threads.submit(copy_context().run, budget.grow, 30).result()
        assert (request.size_bytes, budget.reserved_bytes) == (60, 60)
        with pytest.raises(InvalidRequest, match="got 101"):
            budget.grow(41)
    assert budget.reserved_bytes == 0
    with budget.joined() as alone:
        alone.grow(5)
        with MemoryBudget(100).joined() as other:
            assert other is not alone
    assert budget.reserved_bytes == 0
    with pytest.raises(LookupError, match="no request"):
        budget.grow(1)


def test_an_answer_that_exists_is_counted_and_never_refused() -> None:
    """The memory of a request becomes that of its answer, even if it is more than was expected."""
    budget = MemoryBudget(100)
    others = budget.reserve(90)
    with budget.reserve(10) as request:
        request.settle(30)
        assert budget.reserved_bytes == 120
        request.settle(5)
        assert budget.reserved_bytes == 95
    request.settle(7)  # after its end, which has no effect
    others.release()
    assert budget.reserved_bytes == 0


def test_shared_memory_is_counted_once() -> None:
    """Requests that use the same memory in turns never reserve more than there is of it, however they overlap."""
    budget = MemoryBudget(100)
    window = SharedReservation(budget, 50)
    with window.used(30):
        assert budget.reserved_bytes == 30
        with window.used(40), window.used(1000):
            assert budget.reserved_bytes == 50
        assert budget.reserved_bytes == 30
        with budget.reserve(60), pytest.raises(Overloaded), window.used(20):
            pass
        assert budget.reserved_bytes == 30
    assert budget.reserved_bytes == 0


def test_a_reservation_of_a_task_ends_with_it() -> None:
    """The answer of a job of the queue is counted until its task, which sends it, has ended."""
    budget = MemoryBudget(100)

    async def job() -> None:
        budget.reserve_for_task()
        with budget.joined() as request:
            request.grow(40)
        await asyncio.sleep(0)
        assert budget.reserved_bytes == 40

    async def main() -> None:
        await asyncio.create_task(job())
        await asyncio.sleep(0)

    asyncio.run(main())
    assert budget.reserved_bytes == 0
