"""Passes on a CPU write to memory that the process has already."""

from __future__ import annotations

import ctypes
import resource
import sys
import threading
from collections.abc import Callable

import pytest
import torch

from embedder.engines.freed_memory import keep_freed_memory

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
