"""The shared pool: one set of weights per device, threads that launch and finish batches, one queue for all."""

from __future__ import annotations

import logging
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

from embedder.engines.engine import Engine
from embedder.errors import Cancelled, DeviceLost, ModelFailure, WorkerError, whereabouts
from embedder.scheduling.delivery import woken_once
from embedder.scheduling.jobs import CollectedJob, GrowingJob, Job, ResultObserver, ResultStream, StreamedJob
from embedder.scheduling.runner import Launched, Refused, Result, Text, launch
from embedder.scheduling.scheduler import NO_DEVICE, UNWANTED, Batch, Flights, Pass, Priority, Scheduler
from embedder.tokenizer import EncodedText
from embedder.vectors import Outputs

log = logging.getLogger(__name__)

STREAM_WINDOW_TOKENS = 32_768
"""Tokens of streams that may be ahead of their consumers: 128 MiB of ColBERT rows of 1024 in float32."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """Size and duration of one batch.

    Attributes:
        texts: number of its texts.
        tokens: of all its texts.
        fill: its tokens as a share of the token budget; over 1 for a longer text that went alone.
        seconds: from its launch to its last result, queries at its yield points included.
    """

    texts: int
    tokens: int
    fill: float
    seconds: float


Observer = Callable[[BatchReport], None]
"""Called after every batch, from a thread of the pool. Must not raise, and should not block."""

_CPU_FLIGHTS = 4
"""Batches under way on a CPU: it computes one at a time, and others wait to be unpacked."""
_GPU_LONE_TOKENS = 512
"""Tokens of queries up to which a GPU takes about as long as for one query (an H200: 0.8 ms for 16, 1.1 for 512)."""


@dataclass(frozen=True, slots=True)
class _Flight:
    """A batch that was launched, on its way to the thread that hands its results over."""

    batch: Batch[Job]
    launched: Launched
    started_s: float


class _Device:
    """One device: its engine, what is under way there, and what waits to be finished, by priority.

    A thread of its own launches its batches. What a GPU computes is finished by two more, one for queries and one for
    passages, so that a query never waits for the results of a large batch to be unpacked.
    """

    def __init__(self, engine: Engine, batches_per_gpu: int) -> None:
        self.engine = engine
        on_cpu = engine.device == "cpu"
        self.flights = Flights(_CPU_FLIGHTS) if on_cpu else Flights(batches_per_gpu, _GPU_LONE_TOKENS)
        self.launched: dict[Priority, queue.SimpleQueue[_Flight | None]] = {
            priority: queue.SimpleQueue() for priority in Priority
        }
        self.ended = False  # whether None was put as the last of each


class ModelPool:
    """Threads that compute what the scheduler plans. Usable from any thread.

    What is computed when, and on which device, is decided in `embedder.scheduling.scheduler`; here are the threads,
    the lock and the calls.

    Args:
        engines: one per device, with the same weights.
        batches_per_gpu: most batches that are under way on a GPU; see `Flights`.
        token_budget: most tokens of one batch; a longer text goes alone.
        queue_tokens: most tokens waiting; a request beyond it is refused as `Overloaded`.
        window: most tokens of streams that are being computed, or delivered and not yet released; four batches,
            if that is more, so that the model stays busy.
        clock: monotonic seconds.

    Attributes:
        token_budget: as given.
        queue_tokens: as given.
        window: the larger of what was given and four batches.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        batches_per_gpu: int,
        token_budget: int,
        queue_tokens: int,
        window: int = STREAM_WINDOW_TOKENS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.token_budget = token_budget
        self.queue_tokens = queue_tokens
        self.window = max(window, 4 * token_budget)
        self._clock = clock
        self._when_lost: Callable[[], None] = lambda: None
        self._observers: tuple[Observer, ...] = ()
        self._scheduler: Scheduler[Job] = Scheduler(budget=token_budget, queue_tokens=queue_tokens, window=self.window)
        self._changed = threading.Condition()
        self._devices = [_Device(engine, batches_per_gpu) for engine in engines]
        self._computing = list(self._devices)  # those that are not lost
        self._threads = [
            threading.Thread(target=work, name=f"model-{device.engine.device}-{name}", daemon=True)
            for device in self._devices
            for name, work in (
                ("launch", partial(self._launch_all, device)),
                ("queries", partial(self._finish_all, device, Priority.QUERY)),
                ("passages", partial(self._finish_all, device, Priority.PASSAGE)),
            )
        ]
        for thread in self._threads:
            thread.start()

    def submit(
        self,
        texts: Sequence[EncodedText],
        outputs: Outputs,
        priority: Priority,
        *,
        batch_size: int = 0,
        observer: ResultObserver | None = None,
    ) -> Future[list[Result]]:
        """Queue texts; the future gives one result per text, in order.

        Cancelling the future drops what still waits; a batch of which nothing is wanted any more stops at its next
        yield point.

        Args:
            texts: may be empty.
            outputs: the vectors to compute.
            priority: queries go before passages.
            batch_size: most texts of this job in one batch; 0 leaves it to the budget.
            observer: sees each result once, before the future is done.

        Raises:
            InvalidRequest: the job alone is larger than the queue.
            Overloaded: the queue has no room for the job now.
            Cancelled: the pool is closed.
            DeviceLost: no device is left that computes.
        """
        job = CollectedJob(texts, outputs, observer=observer)
        if not texts:
            job.future.set_result([])
            return job.future
        self._add(job, priority, batch_size=batch_size, streams=False)
        self._drop_if_cancelled(job)
        return job.future

    def grow(
        self,
        outputs: Outputs,
        priority: Priority,
        *,
        expected: int = 0,
        batch_size: int = 0,
        observer: ResultObserver | None = None,
    ) -> GrowingJob:
        """A job whose texts come in portions, and are computed from the first one on; see `GrowingJob`.

        Args:
            outputs: the vectors to compute.
            priority: queries go before passages.
            expected: most tokens of all its texts; with the first portion the queue keeps room for them.
            batch_size: most texts of this job in one batch; 0 leaves it to the budget.
            observer: called with results as soon as they are there.
        """
        job = CollectedJob((), outputs, grows=True, observer=observer)
        self._drop_if_cancelled(job)

        return GrowingJob(job.future, partial(self._extend, job, priority, batch_size, expected))

    def stream(
        self, texts: Sequence[EncodedText], outputs: Outputs, priority: Priority, *, batch_size: int = 0
    ) -> ResultStream:
        """Queue texts whose results are pulled as they come; see `ResultStream`.

        If the last device is lost, the texts that wait have a `DeviceLost` as their result.

        Args and errors are those of `submit`.
        """
        job = StreamedJob(texts, outputs)
        self._add(job, priority, batch_size=batch_size, streams=True)
        return ResultStream(
            job,
            consume=lambda: self._consume(job),
            release=lambda indices: self._release(job, indices),
            abandon=lambda: self._abandon(job),
            drop=lambda: self._drop(job),
        )

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a device."""
        with self._changed:
            return self._scheduler.tokens

    @property
    def free_tokens(self) -> float:
        """Tokens for which the queue has room."""
        with self._changed:
            return self._scheduler.free_tokens

    def check_room(self, tokens: int) -> None:
        """Refuse what `submit` would refuse now, for a job of so many tokens.

        Raises:
            Overloaded: the queue has no room for the job now.
            Cancelled: the pool is closed.
            DeviceLost: no device is left that computes.
        """
        with self._changed:
            self._scheduler.check_room(tokens)

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this once when no device is left that computes: the process can serve nothing any more.

        Immediately if that has happened already; otherwise from a thread of the pool.
        """
        with self._changed:
            self._when_lost = callback
            lost = not self._computing
        if lost:
            callback()

    def observe(self, observer: Observer) -> None:
        """Call this after every batch, beside the observers that are there."""
        with self._changed:
            self._observers = (*self._observers, observer)

    def close(self) -> None:
        """Finish what was accepted, then stop the threads. Blocks until every open stream is consumed or cancelled.

        Calling it twice is harmless.
        """
        with self._changed:
            self._scheduler.close()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _add(self, job: Job, priority: Priority, *, batch_size: int, streams: bool) -> None:
        with self._changed:
            self._scheduler.add(job, [len(text) for text in job.texts], priority, cap=batch_size, streams=streams)
            self._changed.notify_all()

    def _extend(
        self,
        job: CollectedJob,
        priority: Priority,
        batch_size: int,
        expected: int,
        texts: Sequence[EncodedText],
        *,
        last: bool,
    ) -> None:
        lengths = [len(text) for text in texts]
        first = not job.texts
        job.extend(texts, last=last)
        with self._changed:
            if job.future.cancelled():  # its callback may have found nothing to drop
                raise Cancelled("nobody waits for this job any more")
            try:
                if first:
                    expected = 0 if last else expected
                    self._scheduler.add(job, lengths, priority, cap=batch_size, grows=not last, expected=expected)
                else:
                    self._scheduler.extend(job, lengths, last=last)
            except WorkerError:
                self._scheduler.drop(job)
                raise
            finally:
                self._changed.notify_all()

    def _consume(self, job: Job) -> None:
        with self._changed:
            self._scheduler.consume(job)
            self._changed.notify_all()

    def _release(self, job: Job, indices: Sequence[int]) -> None:
        with self._changed:
            self._scheduler.release(job, indices)
            self._changed.notify_all()

    def _drop_if_cancelled(self, job: CollectedJob) -> None:
        # By a weak reference: a future keeps its callbacks, and in a cycle the results would wait for the collector.
        job.future.add_done_callback(partial(self._drop_cancelled, weakref.ref(job)))

    def _drop_cancelled(self, reference: weakref.ref[CollectedJob], future: Future[list[Result]]) -> None:
        job = reference()
        if job is not None and future.cancelled():
            self._drop(job)

    def _abandon(self, job: Job) -> None:
        with self._changed:
            self._scheduler.abandon(job)
            self._changed.notify_all()

    def _drop(self, job: Job) -> None:
        with self._changed:
            self._scheduler.drop(job)
            self._changed.notify_all()

    def _launch_all(self, device: _Device) -> None:
        """The thread that launches: batches, until its device is lost or the pool is closed and empty."""
        while self._launch_next(device):
            pass
        with self._changed:
            device.ended = True
            for launched in device.launched.values():
                launched.put(None)

    def _launch_next(self, device: _Device) -> bool:
        """Wait for a batch and launch it; False if there is nothing to do any more.

        A frame of its own: while the thread waits, it must not hold the last batch, whose job holds its results.
        """
        batch = self._next_batch(device)
        if batch is not None:
            self._launch(batch, device)
        return batch is not None

    def _next_batch(self, device: _Device) -> Batch[Job] | None:
        """Wait for a batch; None if there is nothing to do any more."""
        with self._changed:
            while device in self._computing:
                batch = self._scheduler.next_batch(device.flights)
                if batch is not None:
                    if self._scheduler.over:
                        self._changed.notify_all()  # others may wait for the last text to leave the queue
                    return batch
                if self._scheduler.over:
                    break
                self._changed.wait()
            return None

    def _launch(self, batch: Batch[Job], device: _Device) -> None:
        """Launch a batch, and pass it on to be finished."""
        running = Pass(batch, device.flights, self._clock())
        flight = _Flight(batch, self._launched(running, device), running.started_s)
        with self._changed:
            ended = device.ended  # at a yield point of a pass that is tried again on a lost device
            if not ended:
                device.launched[batch.priority].put(flight)
        if ended:
            self._finish(flight, device)

    def _finish_all(self, device: _Device, priority: Priority) -> None:
        """A thread that finishes: batches as they were launched, until the launching thread has ended."""
        while self._finish_next(device, priority):
            pass

    def _finish_next(self, device: _Device, priority: Priority) -> bool:
        """Wait for a batch and hand its results over; False after the last. A frame of its own, as `_launch_next`."""
        flight = device.launched[priority].get()
        if flight is not None:
            self._finish(flight, device)
        return flight is not None

    def _finish(self, flight: _Flight, device: _Device) -> None:
        """Hand the results of a batch to its jobs."""
        batch = flight.batch
        results = self._results(flight, device)
        with self._changed:
            self._scheduler.finish(batch, device.flights)
            observers = self._observers
            if self._scheduler.tokens:
                self._changed.notify_all()  # there is room for another batch
        report = BatchReport(
            texts=len(batch.picks),
            tokens=batch.tokens,
            fill=batch.tokens / self.token_budget,
            seconds=self._clock() - flight.started_s,
        )
        for observer in observers:
            try:
                observer(report)
            except Exception as error:  # noqa: BLE001 - it would end the thread that every job waits for
                log.error("an observer of batches failed: %s", whereabouts(error))
        with woken_once():
            for job, positions in batch.by_job().items():
                job.complete([(batch.picks[position].index, results[position]) for position in positions])

    def _results(self, flight: _Flight, device: _Device) -> list[Result]:
        """A result per text, by this device or, if it is lost meanwhile, by another."""
        texts = len(flight.batch.picks)
        launched = flight.launched
        while True:
            try:
                return launched.results()
            except Cancelled:
                return [ModelFailure(UNWANTED)] * texts
            except DeviceLost as error:
                left = self._lose(device, error)
                if not left:
                    return [DeviceLost(NO_DEVICE)] * texts
                device = left[0]
            launched = self._launched(Pass(flight.batch, Flights(limit=0), self._clock()), device)

    def _launched(self, running: Pass[Job], device: _Device) -> Launched:
        """A pass, launched; if that fails for good, what its `results` will raise."""
        batch = running.batch
        texts = [Text(pick.key.texts[pick.index], pick.key.outputs, owner=pick.key) for pick in batch.picks]
        yield_point = None if batch.priority is Priority.QUERY else partial(self._yield, running, device)
        try:
            return launch(texts, device.engine, yield_point)
        except Cancelled as error:
            return Refused(error)
        except DeviceLost as error:
            self._lose(device, error)  # before another batch is launched there
            return Refused(error)

    def _yield(self, running: Pass[Job], device: _Device) -> None:
        """Launch the queries that go first at a yield point of a pass over passages.

        Raises:
            Cancelled: nobody wants a result of the pass any more.
        """
        began_s = self._clock()
        with self._changed:
            queries = self._scheduler.queries_first(running, began_s)
        if queries is not None:
            self._launch(queries, device)
            running.yielded_s += self._clock() - began_s

    def _lose(self, device: _Device, error: DeviceLost) -> list[_Device]:
        """Take a device out of service; the devices that are left. Without any, every waiting text fails."""
        with self._changed:
            first = device in self._computing  # another thread may have noticed before
            if first:
                log.critical("%s; %d devices left", error.message, len(self._computing) - 1)
                self._computing.remove(device)
            left = list(self._computing)
            when_lost = self._when_lost
            stranded = {} if left else self._scheduler.lose_all()
            self._changed.notify_all()
        for job, waiting in stranded.items():
            job.fail(waiting, DeviceLost(NO_DEVICE))
        if first and not left:
            when_lost()
        return left
