"""Write the drafts of a job as they arrive: validate them, send them in batches, and report on every point.

    for portion in portions: for draft in portion: conform -> batches -> deliver (several concurrently) -> report

The writer pulls: it requests the next portion when it has room, and it is woken from that wait when a batch returns.
While the store is idle, points are sent immediately; while it is busy, points are collected up to `BATCH_MAX_BYTES`.
The job ends early if the store stops answering, refuses every request or has lost the collection.
`stored + rejected == submitted` holds in every case. `stored` are the points that the store acknowledged; whether the
collection has been deleted since is for `confirmation` to tell.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, replace
from queue import Empty, SimpleQueue
from threading import Lock
from typing import Final, Protocol

from embedder.errors import Internal, NotFound, WorkerError
from qdrant_sink.conformance import Refusal, conform, rows_max
from qdrant_sink.points import Draft, Point
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.writing.batches import BATCH_MAX_POINTS, Batches, Claim
from qdrant_sink.writing.confirmation import Acknowledged
from qdrant_sink.writing.delivery import Outcome, as_internal, deliver
from qdrant_sink.writing.pooling import pooled
from qdrant_sink.writing.reports import Rejection, Tally, WriteReport

IN_FLIGHT_MAX: Final = 4
"""Maximum number of batches of one job that are sent concurrently, so that the server is not idle during transfers."""


class Destination(Protocol):
    """The part of `Store` that a writer uses."""

    def upsert(self, collection: str, points: Sequence[Point], /, *, insert_only: bool = False) -> None:
        """Store all points; they are durable on return."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Returned:
    """A batch that its sender returned, and how often the collection had been ensured when the batch was sent."""

    outcome: Outcome
    times_ensured: int


class Writer:
    """Writes the points of one job to a collection.

    Args:
        store: store of the collection.
        collection: name of the collection.
        schema: schema of the collection.
        senders: threads that send batches; they block while the store works.
        insert_only: whether existing points are left unchanged.
        pools: whether ColBERT rows that a multivector cannot hold are pooled instead of refused.
        merged: all indices that a draft stands for, by its own index and starting with it. A draft without an entry
            stands for itself.
        ensure: function that creates or verifies the collection. It is called before the first batch, and once more if
            the collection is deleted before a point is stored. Its errors end the job. None if the collection exists.
        observer: callback in the thread of `write` with the number of points that are acknowledged or rejected so far;
            it must not raise.
        release: callback in the thread of `write` with the indices of drafts whose vectors it no longer holds.
        wake: callback in a sender's thread when a batch returns. It should make the iterable of `write` yield an empty
            portion; otherwise `write` processes the batch when the next portion arrives.
        batch_points: maximum number of points in a batch.

    Attributes:
        acknowledged: batches that the store acknowledged, in the order in which they were recorded.
    """

    def __init__(
        self,
        store: Destination,
        collection: str,
        schema: CollectionSchema,
        senders: Executor,
        *,
        insert_only: bool = False,
        pools: bool = False,
        merged: Mapping[int, tuple[int, ...]] | None = None,
        ensure: Callable[[], object] | None = None,
        observer: Callable[[int], None] = lambda _done: None,
        release: Callable[[Sequence[int]], None] = lambda _indices: None,
        wake: Callable[[], None] = lambda: None,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._store = store
        self._collection = collection
        self._schema = schema
        self._senders = senders
        self._insert_only = insert_only
        self._rows_max = rows_max(schema.colbert.size) if pools and schema.colbert is not None else None
        self._merged = merged or {}
        self._ensure = ensure
        self._observer = observer
        self._release = release
        self._wake = wake
        self._batches = Batches(max_points=batch_points)
        self._ready: deque[Sequence[Claim]] = deque()
        self._returned: SimpleQueue[_Returned] = SimpleQueue()
        self._in_flight = 0
        self._times_ensured = 0
        self._tally = Tally()
        self.acknowledged: list[Acknowledged] = []
        self._reported = 0
        self._to_release: list[int] = []  # indices of drafts to release
        self._failure_lock = Lock()
        self._failure: WorkerError | None = None

    def write(self, portions: Iterable[Sequence[Draft | Rejection]]) -> WriteReport:
        """Store the drafts of all portions and report on them, including points that were already rejected.

        The call blocks. While the writer waits for the next portion, it holds the vectors of points that it has not
        released: less than `BATCH_MAX_BYTES` of collected points and up to `IN_FLIGHT_MAX` batches in flight. If no
        batch is in flight, it holds no collected points.

        After a failure no further portion is requested. An exception of the iterable ends the job as a failure does.
        The caller must close the iterable. This method can be called only once.
        """
        for portion in self._read(portions):
            self._process(portion)
            del portion  # release its vectors while waiting for the next portion
            self._record_returned()
            if self._in_flight == 0:
                self._flush()
            self._report_progress()
            if self._failure is not None:
                break
        self._finish()
        return self._tally.report(self._failure)

    def cancel(self, error: WorkerError) -> None:
        """Cancel the job with this error. Batches in flight are still reported. It can be called from any thread.

        `write` returns as soon as its iterable yields or ends.
        """
        self._end(error)

    def _read(self, portions: Iterable[Sequence[Draft | Rejection]]) -> Iterator[Sequence[Draft | Rejection]]:
        try:
            for portion in portions:  # `yield from` would close the caller's generator after a failure
                yield portion
                del portion
        except WorkerError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - after any exception, the batches in flight are reported
            self._end(as_internal("the results of a job could not be read", error))

    def _process(self, portion: Sequence[Draft | Rejection]) -> None:
        for entry in portion:
            indices = self._merged.get(entry.index, (entry.index,))
            if isinstance(entry, Rejection):
                self._tally.reject(indices, entry.cause)
                self._to_release.append(entry.index)
                continue
            outcome = self._failure or self._conform(entry)  # after a failure drafts are not validated
            if isinstance(outcome, Point):
                self._ready.extend(self._batches.add(Claim(outcome, indices)))
                self._send_ready()
            else:
                self._tally.reject(indices, outcome)
                self._to_release.append(entry.index)

    def _conform(self, draft: Draft) -> Point | Refusal | Internal:
        try:
            colbert = draft.vectors.colbert
            if self._rows_max is not None and colbert is not None:
                draft = replace(draft, vectors=replace(draft.vectors, colbert=pooled(colbert, self._rows_max)))
            return conform(draft, self._schema)
        except Exception as error:  # noqa: BLE001 - one defective point must not affect the others
            return as_internal("a point could not be validated", error)

    def _flush(self) -> None:
        batch = self._batches.flush()
        if batch:
            self._ready.append(batch)
            self._send_ready()

    def _send_ready(self) -> None:
        """Send every batch that is ready, and wait while `IN_FLIGHT_MAX` batches are in flight."""
        while self._ready:
            if self._in_flight >= IN_FLIGHT_MAX:
                self._record(self._returned.get())
                continue
            batch = self._ready.popleft()
            if self._failure is None and self._times_ensured == 0:
                self._ensure_collection()
            if self._failure is None:
                self._send(batch)
            else:
                self._reject(batch, self._failure)

    def _send(self, batch: Sequence[Claim]) -> None:
        try:
            self._senders.submit(copy_context().run, self._deliver, batch, self._times_ensured)
        except RuntimeError as error:  # the executor is shut down
            failure = self._end(as_internal("a batch could not be sent", error))
            self._reject(batch, failure)
        else:
            self._in_flight += 1

    def _deliver(self, batch: Sequence[Claim], times_ensured: int) -> None:
        """Deliver a batch in a sender's thread. The batch is returned whatever happens."""

        def upsert(points: Sequence[Point]) -> None:
            self._store.upsert(self._collection, points, insert_only=self._insert_only)

        self._returned.put(_Returned(deliver(upsert, batch, lambda: self._failure), times_ensured))
        self._wake()

    def _record_returned(self) -> None:
        """Record the batches that have returned, without waiting for others."""
        with suppress(Empty):
            while True:
                self._record(self._returned.get_nowait())
        self._send_ready()

    def _record(self, returned: _Returned) -> None:
        self._in_flight -= 1
        outcome = returned.outcome
        if outcome.stored and returned.times_ensured < self._times_ensured:
            self._ready.append(outcome.stored)  # may have been acknowledged before the collection was deleted
        else:
            self._count_stored(outcome)
        for claim, error in outcome.refused:
            self._reject([claim], error)
        if outcome.failure is not None:
            self._record_unsent(outcome.unsent, outcome.failure, returned.times_ensured)
        self._report_progress()

    def _count_stored(self, outcome: Outcome) -> None:
        if outcome.stored:
            points = [(claim.point.id, claim.indices) for claim in outcome.stored]
            self.acknowledged.append(Acknowledged(points, outcome.requests))
        for claim in outcome.stored:
            self._tally.store(claim.indices)
            self._to_release.append(claim.indices[0])

    def _record_unsent(self, unsent: Sequence[Claim], failure: WorkerError, times_ensured: int) -> None:
        if isinstance(failure, NotFound) and self._is_ensured_again(times_ensured):
            self._ready.append(unsent)
            return
        self._reject(unsent, self._end(failure))

    def _is_ensured_again(self, times_ensured: int) -> bool:
        """Whether a collection that was deleted after it was ensured exists again.

        It is created again once, unless points were already stored: then the job must be submitted again.
        """
        if self._ensure is None or self._failure is not None or self._tally.any_stored:
            return False
        return times_ensured < self._times_ensured or (self._times_ensured == 1 and self._ensure_collection())

    def _ensure_collection(self) -> bool:
        try:
            if self._ensure is not None:
                self._ensure()
        except WorkerError as error:
            self._end(error)
            return False
        except Exception as error:  # noqa: BLE001 - after any exception, the batches in flight are reported
            self._end(as_internal("the collection could not be created", error))
            return False
        self._times_ensured += 1
        return True

    def _reject(self, batch: Sequence[Claim], cause: WorkerError) -> None:
        for claim in batch:
            self._tally.reject(claim.indices, cause)
            self._to_release.append(claim.indices[0])

    def _end(self, error: WorkerError) -> WorkerError:
        """End the job with this error unless it has already ended, and return the error that ended it."""
        with self._failure_lock:
            if self._failure is None:
                self._failure = error
            return self._failure

    def _finish(self) -> None:
        """Send or reject the remaining points, and wait for all batches in flight."""
        self._flush()
        while self._in_flight:
            self._record(self._returned.get())
            self._send_ready()
        self._report_progress()

    def _report_progress(self) -> None:
        if self._to_release:
            self._release(self._to_release)
            self._to_release = []
        if self._tally.done != self._reported:
            self._reported = self._tally.done
            self._observer(self._reported)
