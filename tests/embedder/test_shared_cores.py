"""A pass leaves the cores to other processes that keep them busy, and takes them back when those have ended."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from embedder.engines.core_waits import TEAM_NAME, join_team, others_computed_s, team_waited_s
from embedder.engines.shared_cores import (
    BLIND_TRIAL_INTERVAL_S,
    SAMPLE_INTERVAL_S,
    TRIAL_INTERVAL_MAX_S,
    SharedCores,
    System,
    shared_cores,
)

PIECE_S = 0.05
"""Time of a piece of a pass."""


class Machine:
    """A machine of some cores, some of which other processes keep busy, with a clock of its own.

    Args:
        cores: their number.
        tells: whether the system says what other processes compute.

    Attributes:
        busy: cores on which another process computes.
        threads: number of threads of the last pass.
    """

    def __init__(self, cores: int, *, tells: bool = True) -> None:
        self.cores, self.busy = cores, 0
        self.threads = cores
        self.now = 100.0
        self._tells = tells
        self._waited = self._others = 0.0
        system = System(lambda: self._waited, lambda: self._others, self._use, lambda: self.now)
        self.shared = SharedCores(cores, cores, system)

    def _use(self, threads: int) -> None:
        self.threads = threads

    def run(self, seconds: float) -> None:
        """Let time pass: threads that share their core wait half of it."""
        shared = max(0, self.threads + self.busy - self.cores)
        self.now += seconds
        self._waited += 0.5 * seconds * shared
        self._others += seconds * max(0.0, self.busy - 0.5 * shared) * self._tells

    def rest(self, seconds: float) -> None:
        """Let time pass in which nothing is asked for."""
        self.now += seconds
        self._others += seconds * self.busy * self._tells

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


@pytest.mark.parametrize("tells", [True, False])
@pytest.mark.parametrize("length", [0.001, 0.02, 1.0])
@pytest.mark.parametrize(("cores", "busy", "left"), [(2, 1, 1), (2, 3, 1), (16, 1, 15), (16, 5, 11)])
def test_busy_cores_are_left_to_the_other_processes(
    cores: int, busy: int, left: int, length: float, tells: bool
) -> None:
    """Beside busy processes passes soon have a thread less for each, and at least one; one more is tried rarely."""
    machine = Machine(cores, tells=tells)
    machine.busy = busy
    machine.passes(7, length)
    threads = machine.passes(100, length)
    assert set(threads) <= {left, left + 1}
    assert threads.count(left + 1) <= (0.02 if tells else 0.15) * len(threads)


def test_a_rare_query_is_not_the_one_that_tries_a_busy_core() -> None:
    """With a query per second beside a busy process, nearly all of them are computed with the threads that fit."""
    machine = Machine(2)
    machine.busy = 1
    machine.passes(5)
    threads = []
    for _ in range(200):
        threads += machine.passes(0.02)
        machine.rest(1.0)
    assert threads.count(2) <= 0.05 * len(threads)


def test_cores_whose_users_give_way_are_tried_now_and_then() -> None:
    """A core that others keep busy only while nobody else wants it is used again within a minute."""
    machine = Machine(2)
    machine.busy = 1
    machine.passes(5)
    assert machine.shared.threads == 1

    def give_way(seconds: float) -> None:
        machine.now += seconds
        machine._others += seconds

    machine.run = give_way  # type: ignore[method-assign]
    machine.passes(BLIND_TRIAL_INTERVAL_S + 1)
    assert set(machine.passes(10)) == {2}


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


def test_another_thread_computes_with_the_same_number() -> None:
    """OpenMP keeps a number for each thread; a pass of any thread has the one that fits."""
    machine = Machine(2)
    machine.busy = 1
    machine.passes(5)
    machine.threads = 2  # what a new thread has

    def compute() -> None:
        with machine.shared.measured(lambda: None):
            pass

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert machine.threads == 1


def test_a_model_that_is_loaded_beside_a_busy_process_gets_all_threads_later() -> None:
    """All models of a process share the number of threads, and none takes a lowered one for the most."""
    cores = shared_cores()
    torch.set_num_threads(1)
    try:
        assert shared_cores() is cores
    finally:
        torch.set_num_threads(cores.threads)


def test_the_time_that_passes_wait_is_that_of_their_threads(tmp_path: Path) -> None:
    """The waits of the threads of passes are added up: not those of a tokenizer's, nor of a thread that has ended."""
    team = f"{TEAM_NAME}\n"
    threads = [
        ("1", team, "5 1500000000 7\n"),
        ("2", team, "5 250000000 7\n"),
        ("3", "tokenizer\n", "5 9000000000 7\n"),
        ("4", team, ""),
        ("5", team, "no numbers here"),
    ]
    for number, name, waits in threads:
        (tmp_path / number).mkdir()
        (tmp_path / number / "comm").write_text(name)
        (tmp_path / number / "schedstat").write_text(waits)
    (tmp_path / "6").mkdir()
    assert team_waited_s(tmp_path) == 1.75
    assert team_waited_s(tmp_path / "missing") == 0.0


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="Linux says of each thread how long it waited")
def test_threads_that_openmp_starts_belong_to_the_pass(tmp_path: Path) -> None:
    """Each thread that multiplies for a pass has its name, so its waits count; the main thread keeps its own."""
    names: list[str] = []

    def compute() -> None:
        join_team()
        torch.set_num_threads(2)
        torch.ones(512, 512) @ torch.ones(512, 512)
        names.extend(task.read_text().strip() for task in Path("/proc/self/task").glob("*/comm"))

    thread = threading.Thread(target=compute)
    thread.start()
    thread.join()
    assert names.count(TEAM_NAME) >= 2
    join_team(tmp_path)
    assert Path(f"/proc/self/task/{os.getpid()}/comm").read_text().strip() != TEAM_NAME


def test_what_other_processes_compute_is_read_of_the_usable_processors(tmp_path: Path) -> None:
    """Users', system's and interrupts' time of the usable processors counts, not that of processes of low priority."""
    stat = tmp_path / "stat"
    stat.write_text("cpu 9 9 9 9\ncpu0 100 7 20 999 55 3 2 1 1 1\ncpu1 5000 0 0 0 0 0 0 0 0 0\nintr 5\n")
    ticks = os.sysconf("SC_CLK_TCK")
    before = others_computed_s(stat, frozenset({0}))
    stat.write_text("cpu 9 9 9 9\ncpu0 400 900 20 999 55 3 2 1 1 1\ncpu1 9000 0 0 0 0 0 0 0 0 0\nintr 5\n")
    assert others_computed_s(stat, frozenset({0})) - before == pytest.approx(300 / ticks, abs=0.5)
    assert others_computed_s(tmp_path / "missing", frozenset({0})) <= 0.0
