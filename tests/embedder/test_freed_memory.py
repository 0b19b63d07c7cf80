"""Passes on a CPU write to memory that the process has already."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from embedder.engines.engine import TokenBatch
from embedder.engines.freed_memory import FreedMemory, keep_freed_memory
from embedder.engines.packed import PackedEngine
from embedder.vectors import Outputs
from tests.embedder.bench import Bench

IS_GLIBC = sys.platform == "linux" and hasattr(ctypes.CDLL(None), "gnu_get_libc_version")


@pytest.mark.skipif(not IS_GLIBC, reason="needs glibc")
def test_the_next_layer_writes_to_the_memory_of_the_last_one() -> None:
    """48 MB in blocks of 12 that are freed and asked for again are hardly ever fresh pages, in any thread."""
    keep_freed_memory({})
    fresh_pages: list[int] = []

    def layers() -> None:
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
            blocks = [torch.empty(12 << 20, dtype=torch.uint8).fill_(1) for _ in range(4)]
            del blocks
            fresh_pages.append(resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before)

    thread = threading.Thread(target=layers)
    thread.start()
    thread.join()
    assert fresh_pages[-1] < 1000  # of 12 288


@pytest.mark.parametrize(
    "variables",
    [{"MALLOC_TRIM_THRESHOLD_": "1"}, {"MALLOC_MMAP_THRESHOLD_": "1"}, {"GLIBC_TUNABLES": "glibc.malloc.top_pad=1"}],
)
def test_limits_that_the_user_has_set_stay(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Who tunes malloc by its own variables is not overruled."""

    def load(_: object) -> Callable[..., object]:
        raise AssertionError("malloc was changed")

    monkeypatch.setattr(ctypes, "CDLL", load)
    keep_freed_memory(variables)


@pytest.mark.skipif(not IS_GLIBC, reason="needs glibc")
def test_what_is_free_between_blocks_goes_back_once_a_minute() -> None:
    """Of 40 MB in blocks of 128 kB, half of which are freed, a process gives 20 MB back, when that is due."""
    now = 0.0
    libc = ctypes.CDLL(None)
    freed = FreedMemory(lambda: libc.malloc_trim(0), clock=lambda: now)
    keep_freed_memory({})
    blocks = [torch.empty(1 << 17, dtype=torch.uint8).fill_(1) for _ in range(320)]
    del blocks[::2]
    before = _resident_bytes()
    freed.trim_if_due()
    assert _resident_bytes() > before - 10_000_000
    now = 60.0
    freed.trim_if_due()
    assert _resident_bytes() < before - 15_000_000
    assert len(blocks) == 160


def test_memory_is_given_back_before_batches_that_can_yield(mini: Bench) -> None:
    """A query never waits for it, and a worker that embeds passages for hours does it once a minute."""
    now, trims = 0.0, []
    engine = PackedEngine(mini.model, freed=FreedMemory(lambda: trims.append(now), clock=lambda: now))
    batch = TokenBatch.of([np.arange(5, 9, dtype=np.int32)])
    for second in range(0, 600, 20):
        now = float(second)
        engine.encode(batch, Outputs())
        assert not trims
    for second in range(600, 720, 20):
        now = float(second)
        engine.encode(batch, Outputs(), lambda: None)
    assert trims == [600.0, 660.0]


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
