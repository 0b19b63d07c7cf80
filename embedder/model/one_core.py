"""Measurement of one core: ways to compute something, timed against each other at the start.

What counts is the time in which the thread has the core. On a machine that is busy with something else, two threads
that wait for each other take ten times as long, in leaps of a time slice.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch


def quickest_runs(
    ways: Mapping[str, Callable[[], object]], *, rounds: int, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """Seconds of each way on one core of the CPU, the best of some rounds over all of them.

    Args:
        ways: what is measured; each is called once before.
        rounds: number of measurements of each.
        clock: seconds of this thread.
    """
    with _one_thread(), torch.inference_mode():
        for way in ways.values():
            way()
        runs = [{name: _spent(way, clock) for name, way in ways.items()} for _ in range(rounds)]
    return {name: min(run[name] for run in runs) for name in ways}


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _spent(way: Callable[[], object], clock: Callable[[], float]) -> float:
    started = clock()
    way()
    return clock() - started
