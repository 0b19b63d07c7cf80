"""A consumer pulls the results of a stream, releases them when it is done, and may cancel."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from embedder import Cancelled, DeviceLost, Embedding, Outputs, ResultStream
from embedder.scheduling.jobs import CollectedJob, StreamedJob
from tests.embedder.fakes import WAIT_MAX_S, text


def embedding(number: int) -> Embedding:
    """Return a result that a test identifies by its number of tokens."""
    return Embedding(None, None, None, tokens=number, truncated=False)


class Calls:
    """A double of the pool that records the calls of a stream, in order."""

    def __init__(self, count: int) -> None:
        self.job = StreamedJob([text(n + 1) for n in range(count)], Outputs())
        self.made: list[str] = []
        self.stream = ResultStream(
            self.job,
            consume=lambda: self.made.append("consume"),
            release=lambda indices: self.made.append(f"release {sorted(indices)}"),
            abandon=lambda: self.made.append("abandon"),
            drop=lambda: self.made.append("drop"),
        )

    def complete(self, *indices: int) -> None:
        """Complete results of the stream."""
        self.job.complete([(index, embedding(index)) for index in indices])


def indices(portion: Sequence[tuple[int, object]]) -> list[int]:
    """Return the indices of the results in a portion."""
    return [index for index, _ in portion]


def test_a_portion_is_all_that_is_ready() -> None:
    """A portion holds every result that has arrived, in any order, each once; then the stream ends."""
    calls = Calls(4)
    calls.complete(2)
    calls.complete(0, 3)
    assert indices(next(calls.stream)) == [2, 0, 3]
    calls.complete(1)
    assert indices(next(calls.stream)) == [1]
    assert list(calls.stream) == []
    assert list(calls.stream) == []


def test_a_result_is_released_by_its_consumer() -> None:
    """Nothing is computed before the first portion is requested, and only the consumer releases a result."""
    calls = Calls(3)
    assert calls.made == []
    calls.complete(0, 1)
    next(calls.stream)
    assert calls.made == ["consume"]
    calls.complete(2)
    next(calls.stream)
    assert list(calls.stream) == []
    assert calls.made == ["consume"]
    calls.stream.release([0, 2])
    assert calls.made == ["consume", "release [0, 2]"]


def test_a_consumer_that_waits_can_be_woken() -> None:
    """A woken consumer gets one empty portion and loses no later result; an early wake-up is not kept."""
    calls = Calls(1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(calls.stream.__next__)
        calls.stream.wake()
        assert waiting.result(WAIT_MAX_S) == []
    calls.stream.wake()
    calls.stream.wake()
    assert next(calls.stream) == []
    calls.complete(0)
    assert indices(next(calls.stream)) == [0]
    calls.stream.wake()
    assert list(calls.stream) == [], "after the last result it has ended"


def test_a_stream_does_not_keep_what_its_consumer_forgot() -> None:
    """Results live as long as the consumer keeps them, not as long as the stream."""
    calls = Calls(2)
    calls.complete(0)
    held = calls.stream.__dict__, calls.job.__dict__
    next(calls.stream)
    assert not any(
        isinstance(value, list) and any(isinstance(entry, tuple) for entry in value)
        for d in held
        for value in d.values()
    )


def test_a_consumer_waits_for_a_result() -> None:
    """Iterating blocks until at least one result has arrived."""
    calls = Calls(1)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(calls.stream.__next__)
        assert not waiting.done()
        calls.complete(0)
        assert indices(waiting.result(WAIT_MAX_S)) == [0]


def test_cancelling_ends_a_consumer_that_waits() -> None:
    """Cancelling from any thread raises in the iterating consumer, and later results are dropped."""
    calls = Calls(2)
    with ThreadPoolExecutor(1) as thread:
        waiting = thread.submit(calls.stream.__next__)
        calls.stream.cancel()
        with pytest.raises(Cancelled):
            waiting.result(WAIT_MAX_S)
    assert calls.made[-1] == "abandon"
    calls.stream.close()
    assert calls.made[-1] == "drop"
    calls.complete(0, 1)
    with pytest.raises(Cancelled):
        next(calls.stream)


def test_cancelling_drops_results_that_nobody_took() -> None:
    """After cancelling, a result that has arrived but was not taken is dropped."""
    calls = Calls(2)
    calls.complete(0)
    calls.stream.cancel()
    with pytest.raises(Cancelled):
        next(calls.stream)


def test_leaving_the_block_cancels_what_is_left() -> None:
    """A consumer that stops early, by an error or not, needs no cleanup."""
    calls = Calls(3)
    calls.complete(0)
    with calls.stream as stream:
        next(stream)
    assert calls.made == ["consume", "drop"]
    with pytest.raises(Cancelled):
        next(calls.stream)
    with pytest.raises(ZeroDivisionError), Calls(1).stream:
        raise ZeroDivisionError


def test_a_stream_that_ended_stays_ended() -> None:
    """Cancelling after the last result has no effect."""
    calls = Calls(1)
    calls.complete(0)
    with calls.stream as stream:
        assert [indices(portion) for portion in stream] == [[0]]
    assert list(calls.stream) == []


def test_a_stream_of_nothing_ends_immediately() -> None:
    """A stream without texts yields no portions."""
    assert list(Calls(0).stream) == []


def test_texts_that_are_never_computed_have_the_error_as_their_result() -> None:
    """After the last device is lost, computed results stay valid, and every other text has the error."""
    calls = Calls(3)
    calls.complete(1)
    calls.job.fail([0, 2], DeviceLost("gone"))
    results = dict(next(calls.stream))
    assert isinstance(results[1], Embedding)
    assert isinstance(results[0], DeviceLost)
    assert isinstance(results[2], DeviceLost)


def test_a_collected_job_is_done_with_its_last_result() -> None:
    """Results that arrive in any order are returned together, in the order of the texts."""
    job = CollectedJob([text(1), text(2), text(3)], Outputs())
    job.complete([(2, embedding(2))])
    assert not job.future.done()
    job.complete([(1, embedding(1)), (0, embedding(0))])
    assert [result.tokens for result in job.future.result(0) if isinstance(result, Embedding)] == [0, 1, 2]


def test_a_job_that_grows_is_done_with_its_last_text() -> None:
    """A growing job completes only when its last text is added and every result has arrived."""
    for last_texts in ([text(3)], []):
        job = CollectedJob([], Outputs(), grows=True)
        job.extend([text(1), text(2)], last=False)
        job.complete([(1, embedding(1)), (0, embedding(0))])
        assert not job.future.done()
        job.extend(last_texts, last=True)
        job.complete([(2 + n, embedding(2 + n)) for n in range(len(last_texts))])
        assert len(job.future.result(0)) == 2 + len(last_texts)


def test_a_collected_job_fails_as_a_whole() -> None:
    """If one text is lost with its device, a caller that waits for all results gets the error."""
    job = CollectedJob([text(1), text(2)], Outputs())
    job.complete([(0, embedding(0))])
    job.fail([1], DeviceLost("gone"))
    with pytest.raises(DeviceLost):
        job.future.result(0)


def test_a_cancelled_job_takes_results_and_failures_silently() -> None:
    """Results and failures of a cancelled job's running pass are ignored."""
    complete, failed = CollectedJob([text(1)], Outputs()), CollectedJob([text(1)], Outputs())
    for job in (complete, failed):
        assert job.future.cancel()
    complete.complete([(0, embedding(0))])
    failed.fail([0], DeviceLost("gone"))
    for job in (complete, failed):
        with pytest.raises(CancelledError):
            job.future.result(0)


def test_results_from_many_threads_are_all_there() -> None:
    """No result is lost if several worker threads complete one job."""
    for job in (CollectedJob([text(1)] * 400, Outputs()), StreamedJob([text(1)] * 400, Outputs())):
        begin = threading.Barrier(4)

        def work(first: int, job: CollectedJob | StreamedJob = job, begin: threading.Barrier = begin) -> None:
            begin.wait(WAIT_MAX_S)
            for index in range(first, 400, 4):
                job.complete([(index, embedding(index))])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(work, range(4)))
        if isinstance(job, CollectedJob):
            assert len(job.future.result(0)) == 400
        else:
            assert sorted(indices(job.take() or [])) == list(range(400))
