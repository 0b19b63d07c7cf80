"""A pass leaves the cores to other processes that keep them busy, and takes them back when those have ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.engines.shared_cores import (
    SAMPLE_INTERVAL_S,
    TRIAL_INTERVAL_MAX_S,
    SharedCores,
    waited_s,
)

PIECE_S = 0.05
"""Time of a piece of a pass."""


class Machine:
    """A machine of some cores, some of which other processes keep busy, with a clock of its own.

    Attributes:
        busy: cores on which another process computes.
        threads: number of threads of the last pass.
    """

    def __init__(self, cores: int) -> None:
        self.cores, self.busy = cores, 0
        self.threads = cores
        self.now = 100.0
        self._waited = 0.0
        self.shared = SharedCores(cores, waited=lambda: self._waited, use=self._use, clock=lambda: self.now)

    def _use(self, threads: int) -> None:
        self.threads = threads

    def run(self, seconds: float) -> None:
        """Let time pass: threads that share their core wait half of it."""
        self.now += seconds
        self._waited += 0.5 * seconds * max(0, self.threads + self.busy - self.cores)

    def passes(self, seconds: float, length: float = 0.02) -> list[int]:
        """Passes of this length for so many seconds; the threads of each piece, which takes at most `PIECE_S`."""
        until, threads = self.now + seconds, []
        while self.now < until:
            with self.shared.measured(lambda: None) as yield_point:
                for _ in range(max(1, round(length / PIECE_S))):
                    threads.append(self.threads)
                    self.run(min(length, PIECE_S))
                    yield_point()
        return threads


def test_a_worker_with_cores_of_its_own_uses_all_of_them() -> None:
    """Where no other process computes, each pass has all threads."""
    assert set(Machine(4).passes(30)) == {4}


@pytest.mark.parametrize("length", [0.001, 0.02, 1.0])
@pytest.mark.parametrize(("cores", "busy", "left"), [(2, 1, 1), (2, 3, 1), (16, 1, 15), (16, 5, 11)])
def test_busy_cores_are_left_to_the_other_processes(cores: int, busy: int, left: int, length: float) -> None:
    """Beside busy processes passes soon have a thread less for each, and at least one; sometimes one more is tried."""
    machine = Machine(cores)
    machine.busy = busy
    machine.passes(5, length)
    threads = machine.passes(60, length)
    assert set(threads) <= {left, left + 1}
    assert threads.count(left + 1) <= 0.15 * len(threads)


def test_the_cores_are_taken_back_when_the_other_processes_have_ended() -> None:
    """Passes have all threads again within seconds per core, however long the others computed."""
    machine = Machine(4)
    machine.busy = 2
    machine.passes(300)
    machine.busy = 0
    machine.passes(TRIAL_INTERVAL_MAX_S + 3)
    assert set(machine.passes(10)) == {4}


def test_a_single_wait_does_not_cost_a_core() -> None:
    """Two threads that begin on the same core, until the system moves one, are not taken for another process."""
    machine = Machine(2)
    for _ in range(20):
        machine.busy = 1
        machine.passes(0.05)
        machine.busy = 0
        assert set(machine.passes(1)) == {2}


def test_a_long_pass_adapts_before_its_end() -> None:
    """A pass over passages that takes seconds leaves a core that becomes busy at one of its yield points."""
    machine = Machine(2)
    yielded = []
    with machine.shared.measured(lambda: yielded.append(machine.threads)) as yield_point:
        for number in range(100):
            machine.busy = number // 20
            machine.run(0.05)
            yield_point()
    assert yielded[:20] == [2] * 20
    assert 1 in yielded[20:40]
    assert len(yielded) == 100


def test_a_pass_inside_another_is_a_part_of_it() -> None:
    """Queries that are computed at a yield point of passages run, and the passages go on as before."""
    machine = Machine(2)
    machine.busy = 1

    def query() -> None:
        with machine.shared.measured(lambda: None) as inner:
            machine.run(0.02)
            inner()

    with machine.shared.measured(query) as yield_point:
        for _ in range(50):
            machine.run(0.02)
            yield_point()
    assert machine.shared.threads == 1


@given(st.lists(st.tuples(st.integers(0, 5), st.floats(0.01, 20)), max_size=12), st.integers(1, 4))
def test_there_is_always_a_thread_and_never_more_than_cores(changes: list[tuple[int, float]], cores: int) -> None:
    """Whatever other processes do, a pass has from one to all threads."""
    machine = Machine(cores)
    for busy, seconds in changes:
        machine.busy = busy
        assert set(machine.passes(seconds, 0.05)) <= set(range(1, cores + 1))


def test_a_user_keeps_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """`OMP_DYNAMIC=false`, OpenMP's own variable for it, keeps all threads beside busy processes."""
    monkeypatch.setenv("OMP_DYNAMIC", "FALSE")
    machine = Machine(2)
    machine.busy = 1
    assert set(machine.passes(10)) == {2}


def test_an_error_in_a_pass_leaves_the_next_one_measured() -> None:
    """A pass that fails is raised as it is, and the passes behind it still adapt."""
    machine = Machine(2)
    with pytest.raises(MemoryError), machine.shared.measured(lambda: None):
        raise MemoryError
    machine.run(2 * SAMPLE_INTERVAL_S)
    machine.busy = 1
    assert 1 in machine.passes(2)


def test_the_time_that_threads_wait_is_the_sum_of_the_systems(tmp_path: Path) -> None:
    """The waits of all threads are added up; a thread that has ended in between, or another form, counts nothing."""
    for name, content in (("1", "5 1500000000 7\n"), ("2", "5 250000000 7\n"), ("3", ""), ("4", "no numbers here")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(content)
    (tmp_path / "5").mkdir()
    assert waited_s(tmp_path) == 1.75
    assert waited_s(tmp_path / "missing") == 0.0
