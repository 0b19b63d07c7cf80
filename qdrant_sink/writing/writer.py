"""Write the drafts of a job as they come: prove each, send batches, and report what became of every one of them.

    for portion in portions: for draft in portion: conform -> batches -> deliver, several concurrently -> report

The writer pulls: it asks for the next portion when it has room, and is woken from that wait when a batch comes back.
While the store is idle, what there is is sent; while it works, points gather up to `BATCH_MAX_BYTES`. When the store no
longer answers, accepts nothing at all or has lost the collection, the job ends, and `stored + rejected == submitted`
holds in every case.
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
from qdrant_sink.writing.delivery import Outcome, contained, deliver
from qdrant_sink.writing.pooling import pooled
from qdrant_sink.writing.reports import Rejection, Tally, WriteReport

IN_FLIGHT_MAX: Final = 4
"""Batches of one job that are sent concurrently: a server works on several, and none waits for the network."""


class Destination(Protocol):
    """The part of a store that a writer needs; see `Store`."""

    def upsert(self, collection: str, points: Sequence[Point], /, *, insert_only: bool = False) -> None:
        """Store all points, durable on return."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class _Returned:
    """A batch that comes back from its sender, and how often the collection had been ensured when it was sent."""

    outcome: Outcome
    times_ensured: int


class Writer:
    """One job's way into a collection.

    Args:
        store: stores the points.
        collection: its name.
        schema: schema of the collection.
        senders: threads that may wait for the store.
        insert_only: leave points that exist untouched.
        pools: pool ColBERT rows down to what a multivector holds, rather than refuse the point.
        merged: by the index of a draft, all indices that it stands for, its own first; without an entry, itself.
        ensure: makes or verifies the collection; called before the first batch, and once more if the collection
            vanishes before anything is stored. What it raises ends the job as a failure of the store does. None: the
            collection exists.
        observer: called in the thread of `write` with the number of points that are acknowledged or rejected so far;
            must not raise.
        release: called in the thread of `write` with the indices of drafts, of which it holds the vectors no more.
        wake: called from a sender's thread when a batch has come back; should make the iterable that `write` waits
            for give an empty portion. Without it, `write` takes note when the next portion comes.
        batch_points: maximum number of points in a batch.
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
        self._rows_max = rows_max(schema.colbert.size) if pools else None
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
        self._observed = 0
        self._settled: list[int] = []  # drafts that are to be released
        self._ending = Lock()
        self._failure: WorkerError | None = None

    def write(self, portions: Iterable[Sequence[Draft | Rejection]]) -> WriteReport:
        """Store the drafts of all portions, and report on them and on points that were rejected before. Blocks.

        While the writer waits for the next portion, it holds the vectors of points that it has not released: less
        than `BATCH_MAX_BYTES` that gather, and up to `IN_FLIGHT_MAX` batches under way; when none is, nothing gathers.
        After a failure it asks no more; the iterable is closed by its owner.

        An exception of the iterable ends the job as a failure does. To be called once.
        """
        for portion in self._pulled(portions):
            self._take(portion)
            del portion  # while the next one is awaited, its vectors are needed no more
            self._take_back()
            if self._in_flight == 0:
                self._flush()
            self._observe()
            if self._failure is not None:
                break
        self._finish()
        return self._tally.report(self._failure)

    def cancel(self, error: WorkerError) -> None:
        """Send nothing more, for this reason. Batches under way are still accounted for. From any thread.

        `write` returns once its iterable yields or ends.
        """
        self._end(error)

    def _pulled(self, portions: Iterable[Sequence[Draft | Rejection]]) -> Iterator[Sequence[Draft | Rejection]]:
        try:
            for portion in portions:  # `yield from` would close the caller's generator after a failure
                yield portion
                del portion
        except WorkerError as error:
            self._end(error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the points under way are accounted for
            self._end(contained("the results of a job could not be read", error))

    def _take(self, portion: Sequence[Draft | Rejection]) -> None:
        for item in portion:
            indices = self._merged.get(item.index, (item.index,))
            if isinstance(item, Rejection):
                self._tally.reject(indices, item.cause)
                self._settled.append(item.index)
                continue
            proven = self._failure or self._proven(item)  # after a failure not worth proving
            if isinstance(proven, Point):
                self._ready.extend(self._batches.add(Claim(proven, indices)))
                self._send_ready()
            else:
                self._tally.reject(indices, proven)
                self._settled.append(item.index)

    def _proven(self, draft: Draft) -> Point | Refusal | Internal:
        try:
            colbert = draft.vectors.colbert
            if self._rows_max is not None and colbert is not None:
                draft = replace(draft, vectors=replace(draft.vectors, colbert=pooled(colbert, self._rows_max)))
            return conform(draft, self._schema)
        except Exception as error:  # noqa: BLE001 - a defect in one point costs no other
            return contained("a point could not be proven", error)

    def _flush(self) -> None:
        batch = self._batches.flush()
        if batch:
            self._ready.append(batch)
            self._send_ready()

    def _send_ready(self) -> None:
        """Send every batch that is ready, and wait while `IN_FLIGHT_MAX` are under way."""
        while self._ready:
            if self._in_flight >= IN_FLIGHT_MAX:
                self._account(self._returned.get())
                continue
            batch = self._ready.popleft()
            if self._failure is None and self._times_ensured == 0:
                self._make_collection()
            if self._failure is None:
                self._send(batch)
            else:
                self._reject(batch, self._failure)

    def _send(self, batch: Sequence[Claim]) -> None:
        try:
            self._senders.submit(copy_context().run, self._deliver, batch, self._times_ensured)
        except RuntimeError as error:  # the threads have ended
            failure = self._end(contained("a batch could not be sent", error))
            self._reject(batch, failure)
        else:
            self._in_flight += 1

    def _deliver(self, batch: Sequence[Claim], times_ensured: int) -> None:
        """In a sender's thread: whatever happens, the batch comes back."""

        def upsert(points: Sequence[Point]) -> None:
            self._store.upsert(self._collection, points, insert_only=self._insert_only)

        self._returned.put(_Returned(deliver(upsert, batch, lambda: self._failure), times_ensured))
        self._wake()

    def _take_back(self) -> None:
        """Account for the batches that have come back, without waiting."""
        with suppress(Empty):
            while True:
                self._account(self._returned.get_nowait())
        self._send_ready()

    def _account(self, returned: _Returned) -> None:
        self._in_flight -= 1
        outcome = returned.outcome
        if outcome.stored and returned.times_ensured < self._times_ensured:
            self._ready.append(outcome.stored)  # perhaps acknowledged before the collection vanished
        else:
            self._count_stored(outcome.stored)
        for claim, error in outcome.refused:
            self._reject([claim], error)
        if outcome.failure is not None:
            self._account_for_unsent(outcome.unsent, outcome.failure, returned.times_ensured)
        self._observe()

    def _count_stored(self, batch: Sequence[Claim]) -> None:
        for claim in batch:
            self._tally.store(claim.indices)
            self._settled.append(claim.indices[0])
        if isinstance(self._failure, NotFound):  # acknowledged before the collection vanished, and gone with it
            self._tally.lose(self._failure)

    def _account_for_unsent(self, unsent: Sequence[Claim], failure: WorkerError, times_ensured: int) -> None:
        if isinstance(failure, NotFound):
            if self._is_made_again(times_ensured):
                self._ready.append(unsent)
                return
            self._tally.lose(failure)
        self._reject(unsent, self._end(failure))

    def _is_made_again(self, times_ensured: int) -> bool:
        """Whether a collection that vanished since it was ensured exists again.

        It is made anew once, and not if points were in it: the job must be sent again.
        """
        if self._ensure is None or self._failure is not None or self._tally.any_stored:
            return False
        return times_ensured < self._times_ensured or (self._times_ensured == 1 and self._make_collection())

    def _make_collection(self) -> bool:
        try:
            if self._ensure is not None:
                self._ensure()
        except WorkerError as error:
            self._end(error)
            return False
        except Exception as error:  # noqa: BLE001 - as in `_pulled`
            self._end(contained("the collection could not be made", error))
            return False
        self._times_ensured += 1
        return True

    def _reject(self, batch: Sequence[Claim], cause: WorkerError) -> None:
        for claim in batch:
            self._tally.reject(claim.indices, cause)
            self._settled.append(claim.indices[0])

    def _end(self, error: WorkerError) -> WorkerError:
        """End the job for this reason unless it has ended already; returns why it has."""
        with self._ending:
            if self._failure is None:
                self._failure = error
            return self._failure

    def _finish(self) -> None:
        """Send, or reject, what is left, and wait for everything under way."""
        self._flush()
        while self._in_flight:
            self._account(self._returned.get())
            self._send_ready()
        self._observe()

    def _observe(self) -> None:
        if self._settled:
            self._release(self._settled)
            self._settled = []
        if self._tally.done != self._observed:
            self._observed = self._tally.done
            self._observer(self._observed)
