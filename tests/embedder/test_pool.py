"""Requests that share the pool are isolated: each gets its own results in order, whatever else fails."""

from __future__ import annotations

import copy
import gc
import itertools
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import pytest

from embedder import Priority, Result
from embedder.engines import EncodedBatch, Engine, PendingBatch, TokenBatch, YieldPoint
from embedder.errors import Cancelled, DeviceLost, InvalidRequest, ModelFailure, Overloaded
from embedder.scheduling.jobs import ResultStream
from embedder.scheduling.pool import STREAM_WINDOW_TOKENS, BatchReport, ModelPool
from embedder.tokenizer import EncodedText
from embedder.vectors import KINDS, Embedding, Kind, Outputs
from tests.embedder.bench import Bench
from tests.embedder.fakes import WAIT_MAX_S, CountingEngine, text
from tests.embedder.oracle import assert_same, embed
from tests.embedder.texts import TEXTS

EVERY_OUTPUT = [Outputs.of(kinds) for n in (1, 2, 3) for kinds in itertools.combinations(KINDS, n)]


@contextmanager
def pool_of(
    *engines: Engine,
    batches_per_gpu: int = 1,
    token_budget: int = 30,
    queue_tokens: int = 10_000,
    window: int = STREAM_WINDOW_TOKENS,
) -> Iterator[ModelPool]:
    """Yield a pool that is closed at the end."""
    pool = ModelPool(
        engines, batches_per_gpu=batches_per_gpu, token_budget=token_budget, queue_tokens=queue_tokens, window=window
    )
    try:
        yield pool
    finally:
        pool.close()


def vectors(results: Sequence[Result]) -> list[Embedding]:
    """Return the results after asserting that none of them is a failure."""
    embeddings = [result for result in results if isinstance(result, Embedding)]
    assert len(embeddings) == len(results)
    return embeddings


def failures(results: Sequence[Result]) -> list[int]:
    """Return for each result whether it is a failure."""
    return [index for index, result in enumerate(results) if isinstance(result, ModelFailure)]


def done(future: Future[list[Result]]) -> list[Result]:
    """Wait for the results with a time limit and return them."""
    return future.result(WAIT_MAX_S)


def submit(
    pool: ModelPool,
    numbers: Sequence[int],
    outputs: Outputs | None = None,
    priority: Priority = Priority.PASSAGE,
    batch_size: int = 0,
) -> Future[list[Result]]:
    """Submit texts of three tokens, identified by their numbers."""
    return pool.submit([text(number) for number in numbers], outputs or Outputs(), priority, batch_size=batch_size)


def sequential(texts: Sequence[EncodedText], outputs: Outputs) -> list[Embedding]:
    """Embed each text alone in a pool of its own."""
    with pool_of(CountingEngine(), token_budget=2) as pool:
        return vectors(done(pool.submit(texts, outputs, Priority.QUERY)))


# --- results --------------------------------------------------------------------------------------------------------


def test_results_leave_the_memory_with_their_owner() -> None:
    """The pool keeps no reference to a job's results, neither in an idle thread nor in a cycle."""
    gc.disable()
    try:
        with pool_of(CountingEngine()) as pool:
            results = vectors(done(submit(pool, [1, 2])))
            rows = [weakref.ref(result.colbert) for result in results if result.colbert is not None]
            del results
            deadline = time.monotonic() + WAIT_MAX_S
            while any(row() is not None for row in rows) and time.monotonic() < deadline:
                time.sleep(0.001)  # the thread drops the batch after completing the job
            assert all(row() is None for row in rows)
    finally:
        gc.enable()


@pytest.mark.parametrize(("device", "batches_per_gpu"), [("cpu", 1), ("cpu", 4), ("cuda:0", 4)])
def test_concurrent_jobs_get_what_they_would_get_alone(device: str, batches_per_gpu: int) -> None:
    """Concurrent jobs with different sizes, lengths, outputs and limits get their own results in order."""
    jobs = [
        ([text(1 + 50 * job + n, 2 + (n * job) % 7 + 1) for n in range(1 + 3 * job)], outputs)
        for job, outputs in enumerate(EVERY_OUTPUT * 2)
    ]
    with (
        pool_of(CountingEngine(device=device), batches_per_gpu=batches_per_gpu) as pool,
        ThreadPoolExecutor(len(jobs)) as threads,
    ):
        answers = list(
            threads.map(
                lambda numbered: done(
                    pool.submit(numbered[1][0], numbered[1][1], Priority(numbered[0] % 2), batch_size=numbered[0] % 3)
                ),
                enumerate(jobs),
            )
        )
    for (texts, outputs), results in zip(jobs, answers, strict=True):
        assert_same(vectors(results), sequential(texts, outputs), tolerance=0)
        for result in vectors(results):
            assert [kind for kind in KINDS if getattr(result, kind) is not None] == list(outputs.kinds)


def test_a_result_repeats_what_the_tokenizer_said() -> None:
    """Each result has its text's number of tokens and whether the text was truncated."""
    cut = EncodedText(np.array([0, 5, 5, 5, 2], dtype=np.int32), truncated=True)
    with pool_of(CountingEngine()) as pool:
        first, second = vectors(done(pool.submit([text(1), cut], Outputs(), Priority.QUERY)))
    assert (first.tokens, first.truncated) == (3, False)
    assert (second.tokens, second.truncated) == (5, True)


def test_no_texts_give_no_results() -> None:
    """An empty job completes immediately."""
    with pool_of(CountingEngine()) as pool:
        assert done(pool.submit([], Outputs(), Priority.QUERY)) == []


def test_every_device_works() -> None:
    """With two devices, both compute batches."""
    engines = [CountingEngine(device="cuda:0"), CountingEngine(device="cuda:1")]
    with pool_of(*engines, token_budget=3) as pool, engines[0].held(), engines[1].held():
        future = submit(pool, [1, 2])
        for engine in engines:
            engine.wait_for_pass()
    assert len(vectors(done(future))) == 2
    assert sorted([*engines[0].seen, *engines[1].seen]) == [1, 2]


def test_a_gpu_takes_a_batch_while_it_computes_another() -> None:
    """A GPU has up to `MAX_MODELS` batches in flight, half of them passages; a CPU computes one pass at a time."""
    gpu, cpu = CountingEngine(device="cuda:0"), CountingEngine(device="cpu")
    with pool_of(gpu, batches_per_gpu=4, token_budget=3) as pool, gpu.held():
        submit(pool, [1, 2, 3])
        gpu.wait_for_pass()
        gpu.wait_for_pass()
        assert not gpu.another_pass_starts()
    with pool_of(cpu, batches_per_gpu=2, token_budget=3) as pool, cpu.held():
        submit(pool, [1, 2])
        cpu.wait_for_pass()
        assert not cpu.another_pass_starts()


def test_one_thread_computes_on_a_cpu() -> None:
    """Whatever `MAX_MODELS` is, a CPU computes in one thread, as OpenMP is slow with several."""
    threads: set[int] = set()

    class Watching(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            threads.add(threading.get_ident())
            if yield_point is not None:
                yield_point()
            return super().encode(batch, outputs, yield_point)

    with pool_of(Watching(), batches_per_gpu=4, token_budget=6) as pool:
        for future in [submit(pool, [number], priority=Priority(number % 2)) for number in range(1, 60)]:
            done(future)
    assert len(threads) == 1


def test_a_query_starts_while_a_gpu_computes_passages() -> None:
    """A GPU always keeps room for a query beside the passages in flight."""
    engine = CountingEngine(device="cuda:0")
    with pool_of(engine, batches_per_gpu=2, token_budget=3) as pool, engine.held():
        submit(pool, [1, 2, 3])
        engine.wait_for_pass()
        assert not engine.another_pass_starts()
        submit(pool, [9], priority=Priority.QUERY)
        engine.wait_for_pass()
        assert engine.batches[-1] == [9]


def test_passages_yield_to_queries_while_they_run() -> None:
    """On a CPU a query that arrives in the middle of a pass is answered before the pass ends."""
    answered: list[Result] = []

    class Pausing(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            if yield_point is not None:
                query = submit(pool, [9], priority=Priority.QUERY)
                yield_point()
                answered.extend(done(query))
            return super().encode(batch, outputs, yield_point)

    engine = Pausing()
    with pool_of(engine) as pool:
        assert failures(done(submit(pool, [1, 2, 3]))) == []
    assert_same(vectors(answered), sequential([text(9)], Outputs()), tolerance=0)
    assert engine.batches == [[9], [1, 2, 3]]


def test_a_pass_nobody_waits_for_stops_at_a_yield_point() -> None:
    """Cancelling a long job frees the processor at the next yield point, and other jobs go on."""
    ended: list[int] = []

    class Pausing(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            encoded = super().encode(batch, outputs, yield_point)
            assert yield_point is not None
            yield_point()
            ended.append(len(batch))
            return encoded

    engine = Pausing()
    with pool_of(engine, token_budget=6) as pool:
        with engine.held():
            unwanted = submit(pool, [1, 2])
            engine.wait_for_pass()
            unwanted.cancel()
            wanted, neighbour = submit(pool, [3]), submit(pool, [4])
        assert failures(done(wanted)) == []
        with engine.held():
            first, second = submit(pool, [5]), submit(pool, [6])
            engine.wait_for_pass()
            first.cancel()
        assert failures(done(second)) == []
        assert failures(done(neighbour)) == []
    assert engine.batches[:2] == [[1, 2], [3, 4]]
    assert [len(batch) for batch in engine.batches[1:]] == ended


def test_queries_take_their_share_by_the_clock_of_the_pool() -> None:
    """Query time at yield points is measured: after a batch longer than the pass, no query follows."""
    now = 0.0
    served: list[int] = []

    class Slow(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            nonlocal now
            if yield_point is None:
                now += 4
            else:
                for _ in range(6):
                    submit(pool, [9], priority=Priority.QUERY)
                    now += 1
                    yield_point()
                    served.append(self.seen.count(9))
            return super().encode(batch, outputs, yield_point)

    pool = ModelPool([Slow()], batches_per_gpu=1, token_budget=3, queue_tokens=10_000, clock=lambda: now)
    assert failures(done(submit(pool, [1]))) == []
    pool.close()
    assert served == [1, 1, 1, 2, 2, 2]


def test_a_lost_device_hands_its_batch_to_another() -> None:
    """If a GPU fails for good, another device computes its batch, and the lost one gets no more work."""
    lost = CountingEngine(device="cuda:0", broken=range(100), error=lambda: DeviceLost("cuda:0 has failed for good"))
    sound = CountingEngine(device="cuda:1")
    with pool_of(lost, sound, token_budget=6) as pool:
        with sound.held():
            futures = [submit(pool, [number, number + 1]) for number in range(1, 40, 2)]
            lost.wait_for_pass()
        for future in futures:
            assert failures(done(future)) == []
    assert set(sound.seen) == set(range(1, 41))
    assert len(lost.batches) == 1


def test_without_any_device_nobody_waits_forever() -> None:
    """After the last device is lost, running, waiting and new requests fail with a retryable error."""
    engine = CountingEngine(device="cuda:0", broken=[1], error=lambda: DeviceLost("cuda:0 has failed for good"))
    device_lost = threading.Event()
    with pool_of(engine, token_budget=3) as pool:
        pool.when_lost(device_lost.set)
        with engine.held():
            running = submit(pool, [1])
            engine.wait_for_pass()
            waiting = submit(pool, [2, 3])
        [result] = done(running)
        assert isinstance(result, DeviceLost)
        assert result.retryable
        with pytest.raises(DeviceLost, match="must be restarted"):
            done(waiting)
        with pytest.raises(DeviceLost):
            submit(pool, [4])
        assert device_lost.wait(WAIT_MAX_S)


def test_the_loss_of_the_last_device_is_reported_once() -> None:
    """Observers of device loss are called once, even if queries and passages of a GPU fail together."""
    failing = threading.Barrier(len(Priority))

    def lost() -> DeviceLost:
        failing.wait(WAIT_MAX_S)
        return DeviceLost("cuda:0 has failed for good")

    engine = CountingEngine(device="cuda:0", broken=range(100), error=lost)
    calls: list[int] = []
    with pool_of(engine, batches_per_gpu=2, token_budget=3) as pool:
        pool.when_lost(lambda: calls.append(1))
        with engine.held():
            futures = [submit(pool, [1], priority=priority) for priority in Priority]
            for _ in futures:
                engine.wait_for_pass()
        assert all(isinstance(done(future)[0], DeviceLost) for future in futures)
    assert calls == [1]


def test_a_late_observer_of_a_lost_device_is_called_immediately() -> None:
    """An observer that registers after the last device was lost is called immediately."""
    engine = CountingEngine(broken=[1], error=lambda: DeviceLost("cpu has failed"))
    calls: list[int] = []
    with pool_of(engine) as pool:
        done(submit(pool, [1]))
        pool.when_lost(lambda: calls.append(1))
        assert calls == [1]
    assert calls == [1]


def test_the_type_of_colbert_rows_is_each_jobs_own() -> None:
    """Jobs with float16 and float32 rows share a batch, and each gets its own type."""
    dtypes: list[tuple[str, bool]] = []

    class Asking(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            dtypes.append((outputs.colbert_type, outputs.also_float16))
            return super().encode(batch, outputs, yield_point)

    engine = Asking()
    with pool_of(engine) as pool:
        with engine.held():
            submit(pool, [9], Outputs(colbert_type="float16"))
            engine.wait_for_pass()
            half = submit(pool, [1], Outputs(colbert_type="float16"))
            full = submit(pool, [2], Outputs())
        [half_rows], [full_rows] = vectors(done(half)), vectors(done(full))
    assert dtypes == [("float16", False), ("float32", True)]
    assert half_rows.colbert is not None
    assert half_rows.colbert.dtype == np.float16
    assert full_rows.colbert is not None
    assert full_rows.colbert.dtype == np.float32


def test_requests_share_a_batch() -> None:
    """Small requests that wait at the same time share one forward pass."""
    engine = CountingEngine()
    with pool_of(engine) as pool:
        with engine.held():
            submit(pool, [9])
            engine.wait_for_pass()
            futures = [submit(pool, [number]) for number in (1, 2, 3)]
        for future in futures:
            done(future)
    assert engine.batches == [[9], [1, 2, 3]]


def test_a_batch_computes_only_what_its_jobs_want() -> None:
    """A batch computes only the kinds of vectors that its jobs request."""
    batch_outputs: list[Outputs] = []

    class Asking(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            batch_outputs.append(outputs)
            return super().encode(batch, outputs, yield_point)

    with pool_of(Asking()) as pool:
        done(submit(pool, [1], Outputs.of(("dense",))))
    assert batch_outputs == [Outputs.of(("dense",))]


def test_queries_overtake_passages() -> None:
    """A query that arrives behind queued passages is computed in the next pass."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=6) as pool:
        with engine.held():
            submit(pool, [1])
            engine.wait_for_pass()
            passages = submit(pool, range(10, 20))
            query = submit(pool, [2], priority=Priority.QUERY)
        done(passages)
        done(query)
    assert engine.batches[:2] == [[1], [2]]


def test_batch_size_is_honoured() -> None:
    """`batchSize` n puts at most n texts of the job into one forward pass."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=1000) as pool:
        done(submit(pool, range(1, 11), batch_size=3))
    assert [len(batch) for batch in engine.batches] == [3, 3, 3, 1]


def test_results_are_observed_before_all_are_there() -> None:
    """An observer of a job sees each result once, batch by batch, before the job completes."""
    engine = CountingEngine()
    observed: list[tuple[int, Result]] = []
    with pool_of(engine, token_budget=6) as pool:
        first_batch = threading.Event()

        def observe(results: Sequence[tuple[int, Result]]) -> None:
            observed.extend(results)
            first_batch.set()

        job = pool.grow(Outputs(), Priority.PASSAGE, observer=observe)
        job.extend([text(1), text(2)], last=False)
        assert first_batch.wait(WAIT_MAX_S)
        assert [index for index, _ in observed] == [0, 1]
        job.extend([text(3)], last=True)
        results = done(job.future)
    assert [result for _, result in sorted(observed, key=lambda pair: pair[0])] == results
    with pool_of(CountingEngine()) as pool:
        observed.clear()
        whole = done(pool.submit([text(1), text(2)], Outputs(), Priority.QUERY, observer=observed.extend))
        assert [result for _, result in observed] == whole


# --- jobs that grow -------------------------------------------------------------------------------------------------


def test_a_job_is_computed_while_it_grows() -> None:
    """The model starts with the first texts of a growing job, and its results are the usual ones in order."""
    engine = CountingEngine()
    with pool_of(engine) as pool:
        job = pool.grow(Outputs(), Priority.PASSAGE)
        job.extend([text(1), text(2)], last=False)
        engine.wait_for_pass()
        job.extend([text(3)], last=False)
        engine.wait_for_pass()
        assert not job.future.done()
        job.extend([text(4), text(5)], last=True)
        results = vectors(done(job.future))
    assert_same(results, sequential([text(number) for number in range(1, 6)], Outputs()), tolerance=0)


def test_cancelling_a_job_that_grows_drops_it() -> None:
    """The waiting texts of a cancelled growing job are dropped, and adding further texts is refused."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3) as pool:
        job = pool.grow(Outputs(), Priority.PASSAGE)
        with engine.held():
            job.extend([text(1), text(2)], last=False)
            engine.wait_for_pass()
            assert job.future.cancel()
            assert pool.waiting_tokens == 0
        with pytest.raises(Cancelled):
            job.extend([text(3)], last=True)
        late = pool.grow(Outputs(), Priority.PASSAGE)
        late.future.cancel()
        with pytest.raises(Cancelled):
            late.extend([text(4)], last=True)
    assert engine.seen == [1]


def test_a_refused_portion_takes_its_job_out_of_the_queue() -> None:
    """If a later portion of a job is refused, its waiting texts are not computed."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3, queue_tokens=9) as pool:
        job = pool.grow(Outputs(), Priority.PASSAGE)
        with engine.held():
            job.extend([text(1), text(2)], last=False)
            engine.wait_for_pass()
            other = submit(pool, [8, 9])
            with pytest.raises(Overloaded):
                job.extend([text(3)], last=True)
            assert pool.waiting_tokens == 6
        done(other)
    assert engine.seen == [1, 8, 9]


def test_a_job_that_grows_fails_with_the_last_device() -> None:
    """The caller that waits for a growing job and the one that adds texts both get the error."""
    engine = CountingEngine(device="cuda:0", broken=[1], error=lambda: DeviceLost("cuda:0 has failed for good"))
    with pool_of(engine, token_budget=3) as pool:
        job = pool.grow(Outputs(), Priority.PASSAGE)
        job.extend([text(1), text(2)], last=False)
        with pytest.raises(DeviceLost):
            done(job.future)
        with pytest.raises(DeviceLost):
            job.extend([text(3)], last=True)


def test_closing_waits_for_the_rest_of_a_job_that_grows() -> None:
    """A pool that is closed in the middle of a request completes it and accepts no other."""
    engine = CountingEngine()
    pool = ModelPool([engine], batches_per_gpu=1, token_budget=30, queue_tokens=100)
    job = pool.grow(Outputs(), Priority.PASSAGE)
    job.extend([text(1)], last=False)
    engine.wait_for_pass()
    with ThreadPoolExecutor(1) as thread:
        closing = thread.submit(pool.close)
        while True:  # until the pool is closed
            try:
                submit(pool, [9])
            except Cancelled:
                break
        assert not closing.done()
        job.extend([text(2)], last=True)
        assert len(vectors(done(job.future))) == 2
        closing.result(WAIT_MAX_S)


# --- cancelling and limits ------------------------------------------------------------------------------------------


def test_cancelling_drops_what_waits_and_nothing_else() -> None:
    """The queued texts of a cancelled job are dropped, and other jobs get all their results."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=6) as pool:
        with engine.held():
            under_way = submit(pool, [1, 2, 3, 4])
            engine.wait_for_pass()
            other = submit(pool, [5, 6])
            dropped = submit(pool, range(100, 150))
            assert dropped.cancel()
            assert under_way.cancel()
            assert pool.waiting_tokens == 6
        assert_same(vectors(done(other)), sequential([text(5), text(6)], Outputs()), tolerance=0)
    assert engine.seen == [1, 2, 5, 6]
    with pytest.raises(CancelledError):
        under_way.result(WAIT_MAX_S)


def test_a_finished_job_cannot_be_cancelled() -> None:
    """Cancelling a completed job has no effect."""
    with pool_of(CountingEngine()) as pool:
        future = submit(pool, [1])
        results = done(future)
        assert not future.cancel()
        assert future.result(0) == results


def test_a_full_queue_refuses_and_accepts_again() -> None:
    """A request beyond `QUEUE_TOKENS` is refused as retryable with the numbers, and fits later."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3, queue_tokens=10) as pool:
        with engine.held():
            submit(pool, [1])
            engine.wait_for_pass()
            waiting = submit(pool, [2, 3])
            with pytest.raises(Overloaded, match="6 of 10 tokens and this request has 6"):
                submit(pool, [4, 5])
            waiting.cancel()
            accepted = submit(pool, [4, 5, 6])
        done(accepted)
    assert engine.seen == [1, 4, 5, 6]


def test_a_job_larger_than_the_queue_is_invalid() -> None:
    """A job over the size of the queue is invalid and should be split; one of exactly that size is accepted."""
    with pool_of(CountingEngine(), queue_tokens=10) as pool:
        with pytest.raises(InvalidRequest, match=r"12 tokens .*QUEUE_TOKENS=10"):
            submit(pool, [1, 2, 3, 4])
        assert len(done(pool.submit([text(1, 10)], Outputs(), Priority.QUERY))) == 1


def test_closing_finishes_what_was_accepted() -> None:
    """A shutdown completes every accepted request and refuses new ones. Closing twice is harmless."""
    engine = CountingEngine()
    pool = ModelPool([engine], batches_per_gpu=2, token_budget=6, queue_tokens=1000)
    with engine.held():
        futures = [submit(pool, [number, number + 1]) for number in range(1, 9)]
        closing = threading.Thread(target=pool.close)
        closing.start()
    closing.join(WAIT_MAX_S)
    assert not closing.is_alive()
    assert [len(future.result(0)) for future in futures] == [2] * 8
    with pytest.raises(Cancelled):
        submit(pool, [1])
    pool.close()


# --- failures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("broken", [{1}, {4}, {8}, {2, 7}, {1, 2, 3, 4, 5, 6, 7, 8}])
def test_a_text_that_breaks_the_model_fails_alone(broken: set[int], caplog: pytest.LogCaptureFixture) -> None:
    """If the model fails at one text, only that text has an error."""
    with pool_of(CountingEngine(broken=broken), token_budget=100) as pool:
        futures = [submit(pool, [1, 2, 3, 4]), submit(pool, [5, 6, 7, 8])]
        results = [result for future in futures for result in done(future)]
    assert {index + 1 for index in failures(results)} == broken
    assert_same(
        vectors([result for result in results if isinstance(result, Embedding)]),
        sequential([text(number) for number in range(1, 9) if number not in broken], Outputs()),
        tolerance=0,
    )
    for result in results:
        assert "secret" not in str(result)
    assert "secret" not in caplog.text


@pytest.mark.parametrize("kind", KINDS)
def test_a_vector_that_is_not_finite_fails_alone(kind: Kind) -> None:
    """If the model returns NaN or infinity for one text, only that text has an error."""
    with pool_of(CountingEngine(spoiled={2}, spoil=kind), token_budget=100) as pool:
        results = done(submit(pool, [1, 2, 3]))
        others = [other for other in KINDS if other != kind]
        unaffected = done(submit(pool, [1, 2, 3], Outputs.of(tuple(others))))
    assert failures(results) == [1]
    assert kind in str(results[1])
    assert failures(unaffected) == []


def test_a_kind_that_the_engine_leaves_out_is_an_error() -> None:
    """A requested vector is never silently missing."""

    class Forgetful(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            full = super().encode(batch, outputs, yield_point)
            return EncodedBatch(full.dense, full.sparse, None)

    with pool_of(Forgetful()) as pool:
        results = done(submit(pool, [1, 2]))
        without = done(submit(pool, [1, 2], Outputs(colbert=False)))
    assert failures(results) == [0, 1]
    assert "colbert" in str(results[0])
    assert failures(without) == []


@pytest.mark.parametrize("batches_per_gpu", [1, 3])
def test_an_engine_that_returns_too_little_hangs_nobody(batches_per_gpu: int) -> None:
    """If a defective engine returns too few vectors, callers get errors and the pool goes on."""

    class Short(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            full = super().encode(batch, outputs, yield_point)
            if 7 in self.batches[-1] and full.dense is not None:
                return EncodedBatch(full.dense[:0], full.sparse, full.colbert)
            return full

    with pool_of(Short(), batches_per_gpu=batches_per_gpu) as pool:
        assert 1 in failures(done(submit(pool, [6, 7, 8])))
        assert failures(done(submit(pool, [1, 2, 3]))) == []


@pytest.mark.parametrize("error", [SystemExit, GeneratorExit, MemoryError, type("Panic", (BaseException,), {})])
def test_no_exception_ends_a_worker_thread(error: type[BaseException]) -> None:
    """Any exception of a native library fails its text only, and the worker thread serves the next job."""
    with pool_of(CountingEngine(broken={2}, error=error), token_budget=100) as pool:
        assert failures(done(submit(pool, [1, 2, 3]))) == [1]
        assert failures(done(submit(pool, [4, 5]))) == []


def test_a_text_that_did_not_fit_is_tried_once_more() -> None:
    """A single text that runs out of memory is retried once."""

    class Crowded(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            encoded = super().encode(batch, outputs, yield_point)
            number = self.batches[-1][0]
            if len(self.batches) == 1 or number == 2:
                raise MemoryError
            return encoded

    engine = Crowded()
    with pool_of(engine, token_budget=3) as pool:
        assert failures(done(submit(pool, [1, 2, 3]))) == [1]
    assert engine.seen == [1, 1, 2, 2, 3]


def test_a_failed_pass_holds_no_memory_while_its_halves_run() -> None:
    """A batch that exceeded the device's memory is freed before its halves run."""
    taken: list[weakref.ref[np.ndarray]] = []
    still_there: list[bool] = []

    class Exhausting(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            still_there.extend(reference() is not None for reference in taken)
            activations = np.zeros(1000)
            taken.append(weakref.ref(activations))
            if len(batch) > 1:
                raise MemoryError
            return super().encode(batch, outputs, yield_point)

    gc.disable()
    try:
        with pool_of(Exhausting()) as pool:
            assert failures(done(submit(pool, [1, 2, 3, 4]))) == []
    finally:
        gc.enable()
    assert still_there
    assert not any(still_there)


# --- the real engine ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batches_per_gpu", [1, 4])
def test_concurrent_requests_equal_sequential_ones(mini: Bench, batches_per_gpu: int) -> None:
    """32 concurrent requests to the real model get the same vectors as each alone."""
    everything = [text for name, text in TEXTS.items() if name not in ("many words", "long word")]
    requests = [
        ([everything[(n + k) % len(everything)] for k in range(1 + n % 4)], EVERY_OUTPUT[n % len(EVERY_OUTPUT)])
        for n in range(32)
    ]
    with (
        pool_of(mini.packed, batches_per_gpu=batches_per_gpu, token_budget=200) as pool,
        ThreadPoolExecutor(32) as threads,
    ):
        answers = list(
            threads.map(
                lambda request: vectors(
                    done(pool.submit(mini.tokenizer.encode(request[0], 512), request[1], Priority.QUERY))
                ),
                requests,
            )
        )
    for (texts, outputs), results in zip(requests, answers, strict=True):
        alone = [embed(mini.packed, mini.tokenizer, [text], 512, outputs)[0] for text in texts]
        assert_same(results, alone, tolerance=1e-5)


# --- streams --------------------------------------------------------------------------------------------------------


def stream(pool: ModelPool, numbers: Sequence[int], priority: Priority = Priority.PASSAGE) -> ResultStream:
    """Stream texts of three tokens, identified by their numbers."""
    return pool.stream([text(number) for number in numbers], Outputs(), priority)


def pulled(running: ResultStream) -> dict[int, Result]:
    """Return the remaining results of a stream, released as they arrive; each must arrive once."""
    results: list[tuple[int, Result]] = []
    for portion in running:
        results += portion
        running.release([index for index, _ in portion])
    assert len(dict(results)) == len(results)
    return dict(results)


def test_a_stream_gives_each_result_once_as_it_comes() -> None:
    """A stream yields first results before the last text is computed, and in total those of a whole job."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=6) as pool:
        with stream(pool, range(1, 9)) as running:
            first = next(running)
            assert 1 <= len(first) <= 8
            running.release(list(dict(first)))
            results = dict(first) | pulled(running)
        whole = done(submit(pool, range(1, 9)))
    assert_same(vectors([results[index] for index in range(8)]), vectors(whole), tolerance=0)


def test_a_stream_is_no_further_ahead_than_its_window() -> None:
    """A slow consumer stops only its own stream, until it releases results."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=1, window=6) as pool, stream(pool, range(1, 7)) as running:
        first = next(running)
        for _ in range(2):
            engine.wait_for_pass()
        assert failures(done(submit(pool, [90, 91]))) == []
        assert engine.seen == [1, 2, 90, 91]
        running.release(list(dict(first)))
        rest = pulled(running)
    assert sorted([*(index for index, _ in first), *rest]) == list(range(6))


def test_results_count_until_they_are_released_not_until_the_next_are_asked_for() -> None:
    """Results use the window until they are released, so that kept vectors never pile up."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=1, window=6) as pool, stream(pool, range(1, 7)) as running:
        taken = dict(next(running))
        while len(taken) < 2:
            taken |= dict(next(running))
        running.wake()
        assert next(running) == [], "there is no room for a third"
        assert failures(done(submit(pool, [90]))) == []
        assert engine.seen == [1, 2, 90]
        running.release([0])
        taken |= dict(next(running))
        assert len(taken) == 3
        running.release([0])  # releasing twice counts once
        running.release([1, 2])
        assert len(taken | pulled(running)) == 6


def test_a_slow_consumer_holds_no_more_batches_than_the_window() -> None:
    """A consumer that keeps one result of each batch stops its stream; the memory returns with its last result."""
    batches: list[weakref.ref[np.ndarray]] = []

    class Remembering(CountingEngine):
        def encode(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> EncodedBatch:
            encoded = super().encode(batch, outputs, yield_point)
            assert encoded.dense is not None
            batches.append(weakref.ref(encoded.dense))
            return encoded

    engine = Remembering()
    with pool_of(engine, token_budget=6, window=24) as pool, stream(pool, range(1, 41)) as running:
        taken: dict[int, Result] = {}
        while len(taken) < 8:
            taken |= dict(next(running))
        for _ in range(4):
            engine.wait_for_pass()
        for index in range(1, 8, 2):
            del taken[index]
            running.release([index])
        assert not engine.another_pass_starts()
        assert [batch() is not None for batch in batches] == [True] * 4
        kept = sorted(taken)
        taken.clear()
        running.release(kept)
        assert pulled(running).keys() == set(range(8, 40))
    deadline = time.monotonic() + WAIT_MAX_S
    while any(batch() is not None for batch in batches) and time.monotonic() < deadline:
        time.sleep(0.001)  # a thread drops the last batch after it has completed its job
    assert len(batches) == 20
    assert all(batch() is None for batch in batches)


def test_a_result_stays_as_it_is_whatever_is_computed_later(mini: Bench) -> None:
    """Vectors that are held are not overwritten by later batches, of streams or of other jobs."""
    texts = mini.tokenizer.encode(list(TEXTS.values()), 32)
    with pool_of(mini.packed, token_budget=64) as pool:
        with pool.stream(texts, Outputs(), Priority.PASSAGE) as running:
            first = next(running)
            copies = copy.deepcopy(vectors([result for _, result in first]))
            running.release([index for index, _ in first])
            pulled(running)
        for _ in range(3):
            done(pool.submit(texts[::-1], Outputs(), Priority.QUERY))
        assert_same(vectors([result for _, result in first]), copies, tolerance=0)


def test_a_stream_that_nobody_consumes_computes_nothing() -> None:
    """An unconsumed stream queues its texts without using the model or the window."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3, window=6) as pool:
        with stream(pool, range(1, 7)):
            assert failures(done(submit(pool, [90]))) == []
            assert pool.waiting_tokens == 18
            assert engine.seen == [90]
        assert pool.waiting_tokens == 0


def test_hundreds_of_streams_end_with_few_consumers() -> None:
    """300 open streams with four consumer threads share a window of two texts, and all end."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3, window=6) as pool, ThreadPoolExecutor(4) as threads:
        streams = [stream(pool, [1 + number % 9, 1 + number % 7]) for number in range(300)]
        for results in threads.map(pulled, streams, timeout=WAIT_MAX_S):
            assert results.keys() == {0, 1}
    assert len(engine.seen) == 600


def test_a_cancelled_stream_computes_nothing_more() -> None:
    """A cancelled stream frees its queued texts immediately and its delivered results once released."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=1, window=6) as pool:
        running = stream(pool, range(1, 50))
        taken = dict(next(running))
        while len(taken) < 2:
            taken |= dict(next(running))
        running.cancel()
        with pytest.raises(Cancelled):
            next(running)
        assert pool.waiting_tokens == 0
        with stream(pool, range(60, 66)) as after:
            after.wake()
            assert next(after) == []
            assert failures(done(submit(pool, [90]))) == []
            assert engine.seen == [1, 2, 90], "the window is used up by what the cancelled one holds"
            running.close()
            assert pulled(after).keys() == set(range(6))


def test_a_stream_can_be_cancelled_while_its_consumer_waits() -> None:
    """Cancelling from another thread during a pass raises in the consumer, and others are served."""
    engine = CountingEngine()
    with pool_of(engine, token_budget=3) as pool, ThreadPoolExecutor(1) as thread:
        running = stream(pool, [1, 2])
        with engine.held():
            waiting = thread.submit(next, running)
            engine.wait_for_pass()
            running.cancel()
            with pytest.raises(Cancelled):
                waiting.result(WAIT_MAX_S)
        assert failures(done(submit(pool, [3]))) == []
    assert 2 not in engine.seen


def test_closing_the_pool_finishes_a_stream() -> None:
    """An accepted stream completes after the pool is closed, however slowly it is consumed."""
    engine = CountingEngine()
    with ThreadPoolExecutor(1) as thread, pool_of(engine, token_budget=1, window=3) as pool:
        running = stream(pool, range(1, 7))
        closing = thread.submit(pool.close)
        assert len(vectors(list(pulled(running).values()))) == 6
        closing.result(WAIT_MAX_S)


def test_a_stream_without_a_device_fails_for_each_text() -> None:
    """After the last device is lost, every text of a stream fails, consumed or not."""
    engine = CountingEngine(broken=[1], error=lambda: DeviceLost("cpu has failed"))
    with pool_of(engine, token_budget=3) as pool:
        idle = stream(pool, range(2, 5))
        assert all(isinstance(result, DeviceLost) for result in pulled(stream(pool, range(1, 6))).values())
        results = pulled(idle)
        assert len(results) == 3
        assert all(isinstance(result, DeviceLost) for result in results.values())


def test_a_stream_larger_than_the_queue_is_refused() -> None:
    """Streams have the same size limit as other jobs."""
    with pool_of(CountingEngine(), queue_tokens=10) as pool, pytest.raises(InvalidRequest, match="QUEUE_TOKENS=10"):
        stream(pool, range(1, 6))


def test_queries_that_stream_may_come_and_go_beside_a_pass() -> None:
    """No query is lost if threads add queries while a pass over passages yields."""
    engine = CountingEngine()
    with (
        pool_of(engine, token_budget=6, window=3) as pool,
        ThreadPoolExecutor(4) as threads,
        stream(pool, range(1, 9), Priority.QUERY) as blocked,
    ):
        next(blocked)
        jobs = list(threads.map(lambda n: submit(pool, [n], priority=Priority(n % 2)), range(100, 400)))
        assert all(failures(done(job)) == [] for job in jobs)


# --- observers ------------------------------------------------------------------------------------------------------


def test_observers_see_every_batch() -> None:
    """Every observer receives each batch's tokens, share of the budget and seconds."""
    ticks = itertools.count(0.0, 0.5)
    pool = ModelPool(
        [CountingEngine()], batches_per_gpu=1, token_budget=12, queue_tokens=1000, clock=lambda: next(ticks)
    )
    reports: list[list[BatchReport]] = [[], []]
    for observed in reports:
        pool.observe(observed.append)
    done(submit(pool, [1, 2]))
    done(pool.submit([text(3, 24)], Outputs(), Priority.QUERY))
    pool.close()
    assert [(report.tokens, report.fill) for report in reports[0]] == [(6, 0.5), (24, 2.0)]
    assert all(report.seconds > 0 for report in reports[0])
    assert reports[0] == reports[1]


def test_an_observer_that_fails_stops_nothing() -> None:
    """If a batch observer raises, its batch and all later ones still complete."""
    engine = CountingEngine(device="cuda:0")

    def fail(_report: BatchReport) -> None:
        raise RuntimeError("a defect of the observer")

    with pool_of(engine) as pool:
        pool.observe(fail)
        for priority in Priority:
            assert failures(done(submit(pool, [1], priority=priority))) == []
            assert failures(done(submit(pool, [2], priority=priority))) == []


def test_an_observer_of_results_that_fails_ends_its_own_job_alone() -> None:
    """If an observer of results raises, only its own job fails."""
    engine = CountingEngine(device="cuda:0")

    def fail(_results: object) -> None:
        raise RuntimeError("can't start new thread")

    with pool_of(engine) as pool:
        with engine.held():
            submit(pool, [9])
            engine.wait_for_pass()
            observed = pool.submit([text(1), text(2)], Outputs(), Priority.PASSAGE, observer=fail)
            neighbour = submit(pool, [3])
        with pytest.raises(RuntimeError, match="new thread"):
            done(observed)
        assert failures(done(neighbour)) == []
        assert failures(done(submit(pool, [4]))) == []


def test_a_gpu_goes_on_while_a_batch_that_it_refused_is_tried_again() -> None:
    """A GPU launches queries while the halves of a failed passage batch are retried."""

    class Small(CountingEngine):
        def launch(self, batch: TokenBatch, outputs: Outputs, yield_point: YieldPoint | None = None) -> PendingBatch:
            if len(batch) > 1:
                raise MemoryError
            return super().launch(batch, outputs, yield_point)

    engine = Small(device="cuda:0")
    with pool_of(engine, batches_per_gpu=2) as pool:
        with engine.held():
            passages = submit(pool, [1, 2])
            engine.wait_for_pass()
            query = submit(pool, [9], priority=Priority.QUERY)
            engine.wait_for_pass()
            assert engine.seen == [1, 9]
        assert failures(done(query)) == failures(done(passages)) == []
