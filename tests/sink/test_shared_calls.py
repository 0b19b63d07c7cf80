"""Concurrent callers share one call, and no caller gets an outdated result."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qdrant_sink.shared_calls import SharedCalls

PATIENCE_S = 30.0


def test_callers_during_a_call_share_the_next_one() -> None:
    """However many callers ask while a call is running, one more call answers them all."""
    shared: SharedCalls[int] = SharedCalls()
    started, release = threading.Event(), threading.Event()
    asked = threading.Semaphore(0)
    calls: list[int] = []

    def call() -> int:
        calls.append(len(calls))
        number = len(calls)
        if number == 1:
            started.set()
            assert release.wait(PATIENCE_S)
        return number

    def ask() -> int:
        asked.release()
        return shared("notes", call)

    with ThreadPoolExecutor(9) as threads:
        first = threads.submit(shared, "notes", call)
        assert started.wait(PATIENCE_S)
        others = [threads.submit(ask) for _ in range(8)]
        for _ in others:
            assert asked.acquire(timeout=PATIENCE_S)
        while shared._queues["notes"].callers < 9:
            time.sleep(0.001)
        release.set()
        assert first.result(PATIENCE_S) == 1
        assert {other.result(PATIENCE_S) for other in others} == {2}
    assert shared._queues == {}


def test_every_result_is_of_a_call_that_began_after_the_question() -> None:
    """A value that was changed before a caller asked is never answered as it was before."""
    shared: SharedCalls[int] = SharedCalls()
    value = 0
    change = threading.Lock()

    def ask(_: int) -> None:
        nonlocal value
        with change:
            value += 1
            wanted = value
        assert shared("notes", lambda: value) >= wanted

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(ask, range(2000)))


def test_keys_do_not_wait_for_each_other_and_errors_reach_every_caller() -> None:
    """A failing call raises for its callers, and the next one is tried again."""
    shared: SharedCalls[int] = SharedCalls()

    def fail() -> int:
        raise LookupError("no such collection")

    with pytest.raises(LookupError):
        shared("a", lambda: shared("b", fail))
    assert shared("a", lambda: shared("b", lambda: 5)) == 5
