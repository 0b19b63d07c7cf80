"""The memory of requests together has a limit, which is checked before the work."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from embedder import InvalidRequest, Overloaded
from service.memory_budget import MemoryBudget, container_memory_bytes
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
