"""Bursts of short jobs: this worker's intake at default settings beside the SDK alone with a limit of 128."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.loopback import JobQueue, Worker

ROOT: Final = Path(__file__).parents[1]
BURST, MANY = 64, 640
GOAL: Final = 0.6
"""Least share of the rate of the SDK alone."""
PATIENCE: Final = 120.0

_SETTINGS: Final = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}


@dataclass(frozen=True, slots=True)
class Bursts:
    """Seconds from the submission of jobs of 10 ms to the last answer, a value per round.

    Attributes:
        name: whose intake it is.
        first: 64 jobs, for a worker that has done none.
        two: two times 64, the second when the first is answered.
        many: 640 at once.
    """

    name: str
    first: list[float]
    two: list[float]
    many: list[float]


def measure(rounds: int) -> list[Bursts]:
    """This worker and the SDK alone, a fresh process of each in turn per round."""
    ours, bare = Bursts("this worker", [], [], []), Bursts("SDK alone, limit 128", [], [], [])
    for _ in range(rounds):
        for into, arguments in ((ours, []), (bare, ["bare"])):
            _one(into, arguments)
    return [ours, bare]


def _one(into: Bursts, arguments: list[str]) -> None:
    environment = {**_SETTINGS, "PYTHONPATH": str(ROOT)}
    with (
        JobQueue() as queue,
        Worker(queue, cwd=ROOT, script="tests/programs/brief_jobs.py", args=arguments, env=environment) as worker,
    ):
        worker.wait_for_first_poll(PATIENCE)
        into.first.append(_seconds(queue, BURST))
        into.two.append(_seconds(queue, BURST) + _seconds(queue, BURST))
        into.many.append(_seconds(queue, MANY))


def _seconds(queue: JobQueue, count: int) -> float:
    started = time.perf_counter()
    for job in queue.submit_many({"n": n} for n in range(count)):
        queue.result(job, PATIENCE)
    return time.perf_counter() - started
