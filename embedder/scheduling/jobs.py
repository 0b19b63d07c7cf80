"""The two kinds of jobs in the pool: one whose results are collected, and one whose results are streamed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError
from types import TracebackType
from typing import Protocol, Self

from embedder.errors import Cancelled, DeviceLost
from embedder.scheduling.runner import Result
from embedder.tokenizer import EncodedText
from embedder.vectors import Outputs

Results = list[tuple[int, Result]]
"""Results of some texts of a job, each with the index of its text; an index comes once."""


ResultObserver = Callable[[Results], None]
"""Called with results as soon as they are there, from a thread of the pool. Must not raise, and should not block."""


class Job(Hashable, Protocol):
    """A job as the pool sees it. Several threads may call its methods, in any order of texts."""

    @property
    def texts(self) -> Sequence[EncodedText]:
        """The texts to embed."""
        ...

    @property
    def outputs(self) -> Outputs:
        """The vectors to compute of each text."""
        ...

    def complete(self, results: Results) -> None:
        """Take the results of some texts."""
        ...

    def fail(self, waiting: Sequence[int], error: DeviceLost) -> None:
        """Take note that these texts will never be computed."""
        ...


class CollectedJob:
    """A job whose results are handed over together, in the order of its texts, by a future.

    Args:
        texts: the texts to embed.
        outputs: the vectors to compute of each text.
        grows: whether `extend` brings further texts.
        observer: sees each result once, before the future is done.
    """

    def __init__(
        self,
        texts: Sequence[EncodedText],
        outputs: Outputs,
        *,
        grows: bool = False,
        observer: ResultObserver | None = None,
    ) -> None:
        self.texts = texts
        self.outputs = outputs
        self.future: Future[list[Result]] = Future()
        self._results: dict[int, Result] = {}
        self._grows = grows
        self._observer = observer
        self._complete = False
        self._lock = threading.Lock()

    def extend(self, texts: Sequence[EncodedText], *, last: bool) -> None:
        """Take further texts, before any of them is computed; the future waits for the results of the last ones."""
        with self._lock:
            self.texts = [*self.texts, *texts]
            self._grows = not last
        self.complete([])

    def complete(self, results: Results) -> None:
        """Take some results; the last ones complete the future, unless it was cancelled."""
        if results and self._observer is not None:
            try:
                self._observer(results)
            except Exception as error:  # noqa: BLE001 - it would end the thread that every other job waits for
                self._fail(error)
                return
        with self._lock:
            self._results.update(results)
            if self._complete or self._grows or len(self._results) < len(self.texts):
                return
            self._complete = True
        if self.future.set_running_or_notify_cancel():
            self.future.set_result([self._results[index] for index in range(len(self.texts))])

    def fail(self, waiting: Sequence[int], error: DeviceLost) -> None:
        """Fail as a whole: part of the results is of no use."""
        del waiting
        self._fail(error)

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._complete = True
        try:
            self.future.set_exception(error)
        except InvalidStateError:
            return  # cancelled meanwhile, or failed before


class _Extend(Protocol):
    """Queues a portion of a job."""

    def __call__(self, texts: Sequence[EncodedText], *, last: bool) -> None: ...


class GrowingJob:
    """A job whose texts are queued in portions, so that the first ones are computed while the next are prepared.

        job = pool.grow(outputs, priority)
        for portion in portions:
            job.extend(portion, last=...)
        results = job.future.result()

    Attributes:
        future: gives one result per text, in order; cancelling it drops what waits, at any time.

    Args:
        future: as above.
        extend: called with each portion, and whether it is the last one.
    """

    def __init__(self, future: Future[list[Result]], extend: _Extend) -> None:
        self.future = future
        self._extend = extend

    def extend(self, texts: Sequence[EncodedText], *, last: bool) -> None:
        """Queue a portion. One thread calls this, until `last` or an error, which drops the whole job.

        Raises:
            InvalidRequest: the whole job is now larger than the queue.
            Overloaded: the queue has no room for the portion now.
            Cancelled: the future was cancelled, or the pool was closed before the first portion.
            DeviceLost: no device is left that computes.
        """
        self._extend(texts, last=last)


class StreamedJob:
    """A job whose results wait for its consumer, who takes all that are ready."""

    def __init__(self, texts: Sequence[EncodedText], outputs: Outputs) -> None:
        self.texts = texts
        self.outputs = outputs
        self._left = len(texts)
        self._ready: Results = []
        self._cancelled = False
        self._woken = False
        self._changed = threading.Condition()

    def complete(self, results: Results) -> None:
        """Take some results, unless the consumer does not want any."""
        with self._changed:
            if not self._cancelled:
                self._ready += results
                self._changed.notify_all()

    def fail(self, waiting: Sequence[int], error: DeviceLost) -> None:
        """Complete each of these texts with the error: results that were taken stay valid."""
        self.complete([(index, error) for index in waiting])

    def cancel(self) -> None:
        """Drop the results that were not taken, and refuse more. After the last was taken, this changes nothing."""
        with self._changed:
            self._cancelled = self._left > 0
            self._ready = []
            self._changed.notify_all()

    def wake(self) -> None:
        """End the wait of `take`, this one or the next."""
        with self._changed:
            self._woken = True
            self._changed.notify_all()

    def take(self) -> Results | None:
        """Wait until a result is ready or `wake` is called, and take all that are ready; None after the last.

        Raises:
            Cancelled: the job was cancelled.
        """
        with self._changed:
            while self._left and not (self._ready or self._woken or self._cancelled):
                self._changed.wait()
            if self._cancelled:
                raise Cancelled("the stream was cancelled")
            if not self._left:
                return None
            self._woken = False
            portion, self._ready = self._ready, []
            self._left -= len(portion)
            return portion


class ResultStream(Iterator[Results]):
    """The results of a job, pulled by its consumer.

        with embedder.stream(...) as stream:
            for portion in stream:
                ...
                stream.release([index for index, _ in portion])

    A portion is every result that is ready, in any order. All streams share a window of tokens: a result counts from
    the start of its computation until its consumer has released it, and all others that were computed in the same batch
    for this stream, as they may be views of one buffer. While the window is used up nothing more is computed for any
    stream, so a consumer must not wait for further results before it releases what it has. Nothing is computed before
    the first portion is asked for, so hundreds of streams can be open while a few threads consume them.

    Leaving the `with` block, or `close`, cancels what is left and releases everything. One thread iterates; the
    methods may be called from any.

    Args:
        job: of which results are taken.
        consume: called before the first portion.
        release: called with the indices of texts that the consumer is done with.
        abandon: called when the consumer wants nothing more, and may still hold what it has.
        drop: called when it holds nothing either.
    """

    def __init__(
        self,
        job: StreamedJob,
        *,
        consume: Callable[[], None],
        release: Callable[[Sequence[int]], None],
        abandon: Callable[[], None],
        drop: Callable[[], None],
    ) -> None:
        self._job = job
        self._consume: Callable[[], None] | None = consume
        self._release = release
        self._abandon = abandon
        self._drop = drop

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Results:
        """Wait for the next portion, at least one result; an empty one if `wake` was called.

        Raises:
            StopIteration: the last result was taken.
            Cancelled: the stream was cancelled.
        """
        if self._consume is not None:
            self._consume()
            self._consume = None
        portion = self._job.take()
        if portion is None:
            raise StopIteration
        return portion

    def release(self, indices: Sequence[int]) -> None:
        """The consumer is done with the results of these texts and keeps no view of them; each counts once."""
        self._release(indices)

    def wake(self) -> None:
        """End the wait for the next portion, because its consumer has something else to do."""
        self._job.wake()

    def cancel(self) -> None:
        """Drop the texts that wait and the results that were not taken; iterating then raises `Cancelled`.

        What was not released counts on until `close`. After the last portion was taken, this changes nothing.
        """
        self._job.cancel()
        self._abandon()

    def close(self) -> None:
        """Cancel, and release everything: the consumer holds no results any more."""
        self._job.cancel()
        self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Cancel what is left, and release everything."""
        self.close()
