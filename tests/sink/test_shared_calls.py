"""Concurrent callers share one call, and no caller gets an outdated result."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from qdrant_sink.errors import CallAbandoned
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


def test_a_caller_that_goes_does_not_take_the_others_along() -> None:
    """If the call was abandoned with its caller, those that shared it make it anew."""
    shared: SharedCalls[int] = SharedCalls()
    started, release, shared_by_other = threading.Event(), threading.Event(), threading.Event()

    def first() -> int:
        started.set()
        assert release.wait(PATIENCE_S)
        return 1

    def abandoned() -> int:
        assert shared_by_other.wait(PATIENCE_S)
        raise CallAbandoned("the caller no longer waits for the store")

    with ThreadPoolExecutor(3) as threads:
        running = threads.submit(shared, "notes", first)
        assert started.wait(PATIENCE_S)
        gone = threads.submit(shared, "notes", abandoned)
        while shared._queues["notes"].callers < 2:
            time.sleep(0.001)
        other = threads.submit(shared, "notes", lambda: 3)
        while shared._queues["notes"].callers < 3:
            time.sleep(0.001)
        shared_by_other.set()
        release.set()
        assert running.result(PATIENCE_S) == 1
        with pytest.raises(CallAbandoned):
            gone.result(PATIENCE_S)
        assert other.result(PATIENCE_S) == 3


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
