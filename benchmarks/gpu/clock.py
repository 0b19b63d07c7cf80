"""Durations of work: by CUDA events on a GPU, by the clock of the host on a CPU; the median of several runs."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch


def is_gpu(device: str) -> bool:
    """Whether the device is a GPU."""
    return device != "cpu"


def synchronize(device: str) -> None:
    """Wait until the GPU has done all that was launched."""
    if is_gpu(device):
        torch.cuda.synchronize(device)


def kernel_seconds(work: Callable[[], Any], device: str, *, repeats: int = 20) -> float:
    """Seconds that the device takes for some work, median of `repeats` runs that follow each other."""
    for _ in range(3):
        work()
    synchronize(device)
    if not is_gpu(device):
        return statistics.median(host_seconds(work) for _ in range(repeats))
    events: list[Any] = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]  # type: ignore[no-untyped-call]
    events[0].record()
    for event in events[1:]:
        work()
        event.record()
    synchronize(device)
    milliseconds: list[float] = [before.elapsed_time(after) for before, after in itertools.pairwise(events)]
    return statistics.median(milliseconds) / 1e3


def host_seconds(work: Callable[[], Any]) -> float:
    """Seconds of one call by the clock of the host."""
    started_s = time.perf_counter()
    work()
    return time.perf_counter() - started_s


def repeated(work: Callable[[], Any], *, seconds: float, least: int = 3, warm: int = 1) -> list[float]:
    """Seconds of each call: as many as fit into `seconds`, at least `least`, after `warm` calls that are not timed."""
    for _ in range(warm):
        work()
    durations: list[float] = []
    ends_s = time.perf_counter() + seconds
    while len(durations) < least or time.perf_counter() < ends_s:
        durations.append(host_seconds(work))
    return durations


def percentile(durations: Sequence[float], share: float) -> float:
    """The duration at the nearest rank."""
    ordered = sorted(durations)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
