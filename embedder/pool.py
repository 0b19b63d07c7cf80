"""The shared model pool: one set of weights per device, lanes that run batches, one queue for all requests."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from embedder.batching import BatchQueue, Pick, Priority
from embedder.engine import Engine, GiveWay
from embedder.errors import Cancelled, DeviceLost, InvalidRequest, ModelFailure, Overloaded
from embedder.forward import Pass, Result, Text, run
from embedder.tokenizer import EncodedText
from embedder.vectors import Outputs

log = logging.getLogger(__name__)

WINDOW = 32_768
"""Tokens of streams that may be ahead of their consumers: 128 MiB of ColBERT rows of 1024 in float32."""

Watch = Callable[[int, float, float], None]
"""Told of every batch: its tokens, the share of the budget that they fill, and the seconds it took. Must not raise."""

_NO_DEVICE = "no device of this worker computes any more; it must be restarted"


@dataclass(slots=True, eq=False)
class _Job:
    """A request in the pool: its texts, and the results as they arrive."""

    texts: Sequence[EncodedText]
    outputs: Outputs
    priority: Priority
    deliver: Callable[[int, Result], None] | None = None
    unreleased: set[int] = field(default_factory=set)
    future: Future[list[Result]] = field(default_factory=Future)
    results: dict[int, Result] = field(default_factory=dict)


class Stream:
    """A job whose results are handed over one by one, and computed no faster than those of all are released."""

    def __init__(self, pool: ModelPool, job: _Job) -> None:
        self._pool = pool
        self._job = job

    def release(self, index: int) -> None:
        """This text's result is done with; another may be computed in its place."""
        self._pool._release(self._job, index)  # noqa: SLF001 - the pool's own handle

    def cancel(self) -> None:
        """Drop what still waits and release the rest; nothing more is delivered."""
        self._job.future.cancel()


class ModelPool:
    """Forms batches across requests and runs them on lanes.

    A lane is a thread. All lanes of a GPU share its engine's weights, so memory does not grow with
    their number; they overlap, and the first of several takes queries only. A CPU has one lane, since
    one forward pass uses all cores and a second thread that computes slows both down (see
    docs/design.md); there passages give way to queries between pieces of a pass.

    Args:
        engines: one per device, with the same weights.
        lanes: threads per GPU.
        token_budget: most tokens of one batch; a longer text goes alone.
        queue_tokens: most tokens waiting; a request beyond it is refused as `overloaded`.
        window: most tokens of streams that are being computed, or delivered and not yet released; four batches,
            if that is more, so that the model stays busy.
        clock: seconds.

    Attributes:
        token_budget: as given.
        queue_tokens: as given.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        *,
        lanes: int,
        token_budget: int,
        queue_tokens: int,
        window: int = WINDOW,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._when_lost: Callable[[], None] = lambda: None
        self._watch: Watch = lambda _tokens, _fill, _seconds: None
        self.token_budget = token_budget
        self.queue_tokens = queue_tokens
        self.window = max(window, 4 * token_budget)
        self._queue: BatchQueue[_Job] = BatchQueue(self.window)
        self._changed = threading.Condition()
        self._closed = False
        self._engines = list(engines)  # those that compute
        self._lanes = [
            threading.Thread(
                target=self._run_lane,
                args=(engine, n == 0 < count - 1),
                name=f"lane-{engine.device}-{n}",
                daemon=True,
            )
            for engine in engines
            for count in [1 if engine.device == "cpu" else lanes]
            for n in range(count)
        ]
        for lane in self._lanes:
            lane.start()

    def submit(
        self, texts: Sequence[EncodedText], outputs: Outputs, priority: Priority, *, batch_size: int = 0
    ) -> Future[list[Result]]:
        """Queue texts; the future gives one result per text, in order.

        Cancelling the future drops what still waits; a batch of which nothing is wanted any more stops where
        it next gives way.

        Args:
            texts: none are done at once.
            outputs: the vectors to compute.
            priority: queries go before passages.
            batch_size: most texts of this job in one batch; 0 leaves it to the budget.

        Raises:
            InvalidRequest: the job alone is larger than the queue.
            Overloaded: the queue has no room for it now.
            Cancelled: the pool is closed.
            DeviceLost: no device is left that computes.
        """
        job = _Job(texts, outputs, priority)
        if texts:
            self._queue_up(job, batch_size)
        else:
            job.future.set_result([])
        return job.future

    def stream(
        self,
        texts: Sequence[EncodedText],
        outputs: Outputs,
        priority: Priority,
        deliver: Callable[[int, Result], None],
        *,
        batch_size: int = 0,
    ) -> Stream:
        """Queue texts whose results are handed over as they come.

        Args:
            texts: at least one.
            outputs: the vectors to compute.
            priority: queries go before passages.
            deliver: called once per text, unless the stream is cancelled, with its index and its result, in any
                order and from the threads of the pool: it must neither block nor raise.
            batch_size: as in `submit`.

        Raises:
            InvalidRequest, Overloaded, Cancelled, DeviceLost: as `submit`.
        """
        job = _Job(texts, outputs, priority, deliver)
        self._queue_up(job, batch_size)
        return Stream(self, job)

    def _queue_up(self, job: _Job, batch_size: int) -> None:
        lengths = [len(text) for text in job.texts]
        tokens = sum(lengths)
        if tokens > self.queue_tokens:
            raise InvalidRequest(
                f"{tokens} tokens are more than the queue holds (QUEUE_TOKENS={self.queue_tokens}); split the job"
            )
        with self._changed:
            if self._closed:
                raise Cancelled("the worker is shutting down")
            if not self._engines:
                raise DeviceLost(_NO_DEVICE)
            if self._queue.tokens + tokens > self.queue_tokens:
                raise Overloaded(
                    f"the queue holds {self._queue.tokens} of {self.queue_tokens} tokens "
                    f"and this request has {tokens}; retry later"
                )
            self._queue.add(job, lengths, job.priority, cap=batch_size, streams=job.deliver is not None)
            self._changed.notify_all()
        job.future.add_done_callback(lambda future: self._forget(job) if future.cancelled() else None)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait for a lane."""
        with self._changed:
            return self._queue.tokens

    def when_lost(self, callback: Callable[[], None]) -> None:
        """Call this once when no device is left that computes: the process can serve nothing any more.

        At once if that is so already; else from a lane's thread.
        """
        with self._changed:
            self._when_lost = callback
            lost = not self._engines
        if lost:
            callback()

    def watch(self, callback: Watch) -> None:
        """Call this, from a lane's thread, after every batch."""
        self._watch = callback

    def close(self) -> None:
        """Finish what was accepted, then stop the lanes. Calling it twice is harmless."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for lane in self._lanes:
            lane.join()

    def _forget(self, job: _Job) -> None:
        with self._changed:
            self._queue.drop(job)
            self._release_all(job, list(job.unreleased))

    def _release(self, job: _Job, index: int) -> None:
        with self._changed:
            self._release_all(job, [index])

    def _release_all(self, job: _Job, indices: Sequence[int]) -> None:
        """Give tokens back to the window, once each; the lock is held."""
        known = job.unreleased.intersection(indices)
        job.unreleased -= known
        self._queue.release(sum(len(job.texts[index]) for index in known))
        self._changed.notify_all()

    def _run_lane(self, engine: Engine, queries_only: bool) -> None:  # noqa: FBT001 - the target of a thread
        while batch := self._next_batch(engine, queries_only=queries_only):
            self._deliver(batch, self._watched(batch, engine))

    def _watched(self, batch: list[Pick[_Job]], engine: Engine) -> list[Pass]:
        started = self._clock()
        passes = self._compute(batch, engine)
        tokens = sum(len(pick.key.texts[pick.index]) for pick in batch)
        self._watch(tokens, tokens / self.token_budget, self._clock() - started)
        return passes

    def _next_batch(self, engine: Engine, *, queries_only: bool) -> list[Pick[_Job]]:
        """Wait for texts; empty when the lane has nothing more to do."""
        with self._changed:
            while engine in self._engines:
                batch = self._taken(self._queue.take_queries if queries_only else self._queue.take)
                if batch:
                    if self._closed and not self._queue:
                        self._changed.notify_all()  # others may wait for a stream that has just ended
                    return batch
                if self._closed and (queries_only or not self._queue):
                    break
                self._changed.wait()
            return []

    def _taken(self, take: Callable[[int], list[Pick[_Job]]]) -> list[Pick[_Job]]:
        """The next batch; the lock is held."""
        batch = take(self.token_budget)
        for pick in batch:
            if pick.key.deliver is not None:
                pick.key.unreleased.add(pick.index)
        return batch

    def _compute(self, batch: list[Pick[_Job]], engine: Engine) -> list[Pass]:
        """The batch's passes, by this engine or, if its device is lost meanwhile, by another."""
        texts = [Text(pick.key.texts[pick.index], pick.key.outputs) for pick in batch]
        while True:
            passages = batch[0].key.priority is Priority.PASSAGE
            try:
                return run(texts, engine, self._giving_way(batch, engine) if passages else None)
            except Cancelled:
                return [Pass(texts, ModelFailure("nobody waits for this text any more"))]
            except DeviceLost as error:
                left = self._lose(engine, error)
                if not left:
                    return [Pass(texts, DeviceLost(_NO_DEVICE))]
                engine = left[0]

    def _giving_way(self, batch: list[Pick[_Job]], engine: Engine) -> GiveWay:
        """What a pass over passages calls between pieces: one batch of waiting queries goes first.

        But the queries of a pass take no more time than the pass itself, and one batch: else it might never end.
        """
        started = self._clock()
        given = 0.0

        def give_way() -> None:
            nonlocal given
            if all(pick.key.future.cancelled() for pick in batch):
                raise Cancelled("nobody waits for this batch any more")
            now = self._clock()
            if given > now - started - given:
                return
            with self._changed:
                queries = self._taken(self._queue.take_queries)
            if queries:
                self._deliver(queries, self._watched(queries, engine))
            given += self._clock() - now

        return give_way

    def _lose(self, engine: Engine, error: DeviceLost) -> list[Engine]:
        """Take an engine out of service; the engines that are left. Without any, nobody waits on."""
        with self._changed:
            first = engine in self._engines  # another lane may have found out before
            if first:
                log.critical("%s; %d devices left", error.message, len(self._engines) - 1)
                self._engines.remove(engine)
            left = list(self._engines)
            told = self._when_lost
            stranded = [] if left else self._queue.drain()
            self._changed.notify_all()
        for pick in stranded:
            if pick.key.deliver is not None:
                pick.key.deliver(pick.index, DeviceLost(_NO_DEVICE))
        for future in {pick.key.future for pick in stranded if pick.key.deliver is None}:
            if future.set_running_or_notify_cancel():
                future.set_exception(DeviceLost(_NO_DEVICE))
        if first and not left:
            told()
        return left

    def _deliver(self, batch: list[Pick[_Job]], passes: list[Pass]) -> None:
        results = [result for one in passes for result in one.results()]
        done: list[_Job] = []
        with self._changed:
            for pick, result in zip(batch, results, strict=True):
                if pick.key.deliver is None:
                    pick.key.results[pick.index] = result
                    if len(pick.key.results) == len(pick.key.texts):
                        done.append(pick.key)
        for pick, result in zip(batch, results, strict=True):
            if pick.key.deliver is not None and not pick.key.future.cancelled():
                pick.key.deliver(pick.index, result)
        for job in done:
            if job.future.set_running_or_notify_cancel():
                job.future.set_result([job.results[index] for index in range(len(job.texts))])
