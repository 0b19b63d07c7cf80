"""Write the drafts of a job as they come: prove each, send batches by bytes, and account for every one of them.

    offered -> conform -> batches, several at once -> store -> report

Batches grow with the load: while the store is idle, what there is is sent; while it works, points gather up to
`BATCH_BYTES`. A batch that the store refuses is split until the point at fault stands alone; its neighbours are
stored. When the store no longer answers, takes nothing at all or has lost the collection, what is not there is
reported so, and `stored + rejected == submitted` holds in every case.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from embedder.errors import (
    Internal,
    NotFound,
    NothingTaken,
    StoreRejected,
    StoreUnavailable,
    WorkerError,
    whereabouts,
)
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.points import Draft, Point, PointId
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store

log = logging.getLogger(__name__)

BATCH_BYTES = 4_000_000
"""Of one upsert. Small enough for the 32 MiB that REST takes after JSON has grown it about fivefold."""

BATCH_POINTS = 1000

IN_FLIGHT = 4
"""Batches of one job that are being sent at once: a server works on several, and none waits for the network."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """One point that is not stored, and why: a code of conformance or of an error, and its message."""

    index: int
    code: str
    message: str


@dataclass(frozen=True, slots=True)
class UpsertReport:
    """What became of a job's points; `stored + len(rejected) == submitted`.

    Attributes:
        submitted: drafts handed in.
        stored: of those, in the collection now; includes `skipped` and merged duplicates.
        skipped: of those stored, already there and left untouched (insert_only).
        rejected: the others, by ascending index.
    """

    submitted: int
    stored: int
    skipped: int
    rejected: tuple[Rejection, ...]

    @classmethod
    def of(
        cls, submitted: int, written: Sequence[int], skipped: Sequence[int], rejected: Sequence[Rejection]
    ) -> UpsertReport:
        """From the indices that were written and skipped, and what was rejected, in any order."""
        ordered = tuple(sorted(rejected, key=lambda one: one.index))
        return cls(submitted, len(written) + len(skipped), len(skipped), ordered)


@dataclass(frozen=True, slots=True, eq=False)
class _Claim:
    """A point and the positions in the job that it stands for: its own, then those merged into it."""

    point: Point
    indices: tuple[int, ...]


@dataclass(slots=True)
class _Sent:
    """What became of a batch."""

    times_ensured: int
    stored: list[_Claim] = field(default_factory=list)
    refused: list[tuple[_Claim, StoreRejected]] = field(default_factory=list)
    unsent: list[_Claim] = field(default_factory=list)
    failure: WorkerError = field(default_factory=lambda: StoreUnavailable("the batch was not sent"))


class Writer:
    """One job's way into a collection. Offer from any thread; `run` in one of its own.

    Args:
        store: takes the points.
        collection: by name.
        schema: of the collection.
        senders: threads that may wait for the store.
        insert_only: leave points that exist untouched.
        merged: of a draft's index, all indices that it stands for; without an entry, itself.
        ensure: makes or verifies the collection; called before the first batch, and once more if the collection
            vanishes before anything is stored. What it raises ends the job as a failure of the store does. None: it
            is there.
        prepare: the last touch to a draft, in `run`'s thread.
        settled: called in `run`'s thread with the index of each draft that is stored or rejected: its vectors are
            not needed any more.
        gave_up: called once if the store gives out; everything that is offered later is rejected unseen.
    """

    def __init__(
        self,
        store: Store,
        collection: str,
        schema: CollectionSchema,
        senders: Executor,
        *,
        insert_only: bool = False,
        merged: Mapping[int, tuple[int, ...]] | None = None,
        ensure: Callable[[], None] | None = None,
        prepare: Callable[[Draft], Draft] = lambda draft: draft,
        settled: Callable[[int], None] = lambda _index: None,
        gave_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._store = store
        self._collection = collection
        self._schema = schema
        self._senders = senders
        self._insert_only = insert_only
        self._merged = merged or {}
        self._ensure = ensure
        self._prepare = prepare
        self._settled = settled
        self._gave_up = gave_up
        self._inbox: SimpleQueue[Draft | Rejection | _Sent | WorkerError | None] = SimpleQueue()
        self._ended = False
        self._waiting: deque[tuple[_Claim, int]] = deque()
        self._bytes = 0
        self._sending = 0
        self._times_ensured = 0
        self.failure: WorkerError | None = None
        """Why the store takes nothing any more; None while it does."""
        self.stored: list[int] = []
        """Indices in the collection."""
        self.rejected: list[Rejection] = []
        """Those that are not, as far as it is known."""

    def offer(self, item: Draft | Rejection) -> None:
        """A point to store, or one that never became one; never blocks."""
        self._inbox.put(item)

    def end(self) -> None:
        """Nothing more will be offered."""
        self._inbox.put(None)

    def abandon(self, error: WorkerError) -> None:
        """Send nothing more, for this reason, and end; what is being sent is still accounted for."""
        self._inbox.put(error)
        self._inbox.put(None)

    def run(self) -> None:
        """Store what is offered; returns when `end` was called and everything before it is accounted for.

        Errors of the store are not raised: see `failure`, `stored` and `rejected`.
        """
        while True:
            while self._waiting and self._sending < IN_FLIGHT and self._is_full():
                self._send()
            try:
                item = self._inbox.get_nowait()
            except Empty:
                if self._waiting and (not self._sending or (self._ended and self._sending < IN_FLIGHT)):
                    self._send()
                    continue
                if self._ended and not self._waiting and not self._sending:
                    return
                item = self._inbox.get()
            self._take(item)

    def _take(self, item: Draft | Rejection | _Sent | WorkerError | None) -> None:
        match item:
            case None:
                self._ended = True
            case WorkerError():
                self._give_up(item)
            case _Sent():
                self._sending -= 1
                self._account(item)
            case Rejection():
                self._reject(self._merged.get(item.index, (item.index,)), item.code, item.message)
                self._settled(item.index)
            case Draft() if self.failure is not None:  # not worth proving
                self._refuse(self._merged.get(item.index, (item.index,)), self.failure)
            case Draft():
                self._prove(item, self._merged.get(item.index, (item.index,)))

    def _prove(self, draft: Draft, indices: tuple[int, ...]) -> None:
        try:
            proven = conform(self._prepare(draft), self._schema)
        except Exception as error:  # noqa: BLE001 - a defect in one point must not leave the others waiting
            self._refuse(indices, _internal("a point could not be proven", error))
            return
        if isinstance(proven, Refusal):
            self._reject(indices, proven.code, proven.message)
            self._settled(draft.index)
        else:
            self._add(_Claim(proven, indices))

    def _add(self, claim: _Claim) -> None:
        if self.failure is not None:
            self._refuse(claim.indices, self.failure)
        else:
            nbytes = claim.point.nbytes
            self._waiting.append((claim, nbytes))
            self._bytes += nbytes

    def _is_full(self) -> bool:
        return self._bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_POINTS

    def _send(self) -> None:
        """Send the next batch; the collection is made for the first."""
        if self._times_ensured == 0 and not self._make():
            return
        batch: list[_Claim] = []
        size = 0
        while self._waiting and len(batch) < BATCH_POINTS:
            claim, nbytes = self._waiting[0]
            if batch and size + nbytes > BATCH_BYTES:
                break
            self._waiting.popleft()
            batch.append(claim)
            size += nbytes
        self._bytes -= size
        self._sending += 1
        self._senders.submit(self._deliver, batch, self._times_ensured)

    def _make(self) -> bool:
        try:
            if self._ensure is not None:
                self._ensure()
        except WorkerError as error:
            self._give_up(error)
            return False
        except Exception as error:  # noqa: BLE001 - as above
            self._give_up(_internal("the collection could not be made", error))
            return False
        self._times_ensured += 1
        return True

    def _account(self, sent: _Sent) -> None:
        for claim in sent.stored:
            self.stored += claim.indices
            self._settled(claim.indices[0])
        if isinstance(self.failure, NotFound):
            self._lose(self.failure)
        for claim, refusal in sent.refused:
            self._refuse(claim.indices, refusal)
        if not sent.unsent:
            return
        if isinstance(sent.failure, NotFound) and self._remade(sent.times_ensured):
            for claim in sent.unsent:
                self._add(claim)
            return
        if isinstance(sent.failure, NotFound):
            self._lose(sent.failure)
        error = self.failure or sent.failure
        for claim in sent.unsent:
            self._refuse(claim.indices, error)
        self._give_up(error)

    def _lose(self, error: NotFound) -> None:
        """What was acknowledged is gone with the collection."""
        self._reject(self.stored, error.code, error.message)
        self.stored.clear()

    def _remade(self, times_ensured: int) -> bool:
        """Whether a collection that vanished since it was ensured is there again.

        It is made anew once, and not if points were in it: the job must be sent again.
        """
        if self._ensure is None or self.failure is not None or self.stored:
            return False
        return times_ensured < self._times_ensured or (self._times_ensured == 1 and self._make())

    def _give_up(self, error: WorkerError) -> None:
        if self.failure is None:
            self.failure = error
            self._gave_up()
        for claim, _ in self._waiting:
            self._refuse(claim.indices, self.failure)
        self._waiting.clear()
        self._bytes = 0

    def _refuse(self, indices: Sequence[int], error: WorkerError) -> None:
        self._reject(indices, error.code, error.message)
        self._settled(indices[0])

    def _reject(self, indices: Sequence[int], code: str, message: str) -> None:
        self.rejected += [Rejection(index, code, message) for index in indices]

    def _deliver(self, batch: Sequence[_Claim], times_ensured: int) -> None:
        """In a sender's thread: whatever happens, the writer hears of it."""
        sent = _Sent(times_ensured)
        try:
            self._upsert(batch, sent)
        finally:
            self._inbox.put(sent)

    def _upsert(self, batch: Sequence[_Claim], sent: _Sent) -> None:
        pending = [batch]
        while pending:
            part = pending.pop()
            if self.failure is not None and not sent.unsent:  # cancelled, or another batch has found the store gone
                sent.failure = self.failure
            if self.failure is not None or sent.unsent:
                sent.unsent += part
                continue
            try:
                self._store.upsert(self._collection, [claim.point for claim in part], insert_only=self._insert_only)
            except NothingTaken as error:
                sent.failure = error
                sent.unsent += part
            except StoreRejected as error:
                if len(part) == 1:
                    sent.refused.append((part[0], error))
                else:
                    middle = len(part) // 2
                    pending += [part[middle:], part[:middle]]
            except WorkerError as error:
                sent.failure = error
                sent.unsent += part
            except BaseException as error:  # noqa: BLE001 - a sender that dies silently would leave the job waiting
                sent.failure = _internal("the store failed unexpectedly", error)
                sent.unsent += part
            else:
                sent.stored += part


def _internal(what: str, error: BaseException) -> Internal:
    log.error("%s: %s", what, whereabouts(error))
    return Internal(f"internal error ({type(error).__name__})")


def present(store: Store, collection: str, ids: Sequence[PointId]) -> set[PointId]:
    """Which of these ids are in the collection, asked `BATCH_POINTS` at a time.

    Raises:
        StoreError: see the seam.
    """
    found: set[PointId] = set()
    for first in range(0, len(ids), BATCH_POINTS):
        found |= store.existing(collection, ids[first : first + BATCH_POINTS])
    return found
