"""From planned texts to stored points, embedding and storing at once, with an account of every point."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import count

from embedder.errors import Cancelled, ModelFailure, NotFound, WorkerError
from embedder.forward import Result
from embedder.pool import Stream
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding
from qdrant_sink.conformance import most_rows
from qdrant_sink.points import Draft, PointId, chunk_id
from qdrant_sink.pooling import pooled
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store
from qdrant_sink.writer import BATCH_POINTS, Rejection, UpsertReport, Writer, present
from service.documents import Documents
from service.plan import Plan
from service.progress import Report
from service.responses import upsert_json

log = logging.getLogger(__name__)

_PROBES = 8192
"""Chunks beyond the last ones of all documents of a job that are looked for at once."""

_GAP = (16, BATCH_POINTS + 24)
"""Of each of them, fewest and most: so many in a row can be missing of an earlier version, which was refused in part or
cut short. A job of a few documents looks behind a whole batch that did not arrive: 2 ms in Qdrant Edge."""

_WHOLE = "the job failed as a whole, as its error says"
"""Of each point of it: its message again would make a long answer of a short one."""


class Ingest:
    """Stores the texts of jobs. Thread-safe.

    Args:
        opened: gives the store, and opens it on first use.
        schema: of the collections that are written to.
        senders: threads that may wait for the store.
    """

    def __init__(self, opened: Callable[[], Store], schema: CollectionSchema, senders: Executor) -> None:
        self._opened = opened
        self._schema = schema
        self._senders = senders
        self._ensured: set[str] = set()
        self._documents = Documents()

    def verify(self, collection: str) -> bool:
        """Check, once per collection, that it has the model's schema; False if it is not there. Creates nothing.

        Raises:
            StoreError: it has another, or the store does not answer.
        """
        if collection not in self._ensured and self._opened().verify(collection, self._schema):
            self._ensured.add(collection)
        return collection in self._ensured

    def find(self, collection: str) -> None:
        """As `verify`, for what reads the collection: it must be there.

        Raises:
            StoreError: it has another schema, or the store does not answer.
            NotFound: it is not there.
        """
        if not self.verify(collection):
            self._opened().existing(collection, [0])  # or only an index of the schema is missing

    def begin(self, plan: Plan, report: Report | None = None) -> Load:
        """Verify the collection and find out what need not be embedded. Blocks for the store.

        Args:
            plan: what to store.
            report: told how many of the points are settled.

        Raises:
            StoreError: `details["upsert"]` says that nothing is stored.
        """
        skipped: list[int] = []
        try:
            self.verify(plan.collection)
            if plan.insert_only:
                skipped = self._skipped(plan)
            return Load(
                plan,
                self._opened(),
                self._schema,
                senders=self._senders,
                skipped=skipped,
                ensure=self.ensure,
                documents=self._documents,
                report=report,
            )
        except WorkerError as error:
            raise lost(error, plan) from error

    def _skipped(self, plan: Plan) -> list[int]:
        try:
            there = present(self._opened(), plan.collection, [plan.entries[owner].id for owner in plan.owners])
        except NotFound:
            return []
        return [owner for owner in plan.owners if plan.entries[owner].id in there]

    def ensure(self, collection: str) -> None:
        """Make the collection or verify it, whatever is remembered of it."""
        self._ensured.discard(collection)
        self._opened().ensure(collection, self._schema)
        self._ensured.add(collection)


class Load:
    """One job on its way from the model to the store.

    Args:
        plan: what to store.
        store: where.
        schema: of the collection.
        senders: threads that may wait for the store.
        skipped: owners that are there already and stay untouched.
        ensure: makes or verifies the collection.
        documents: that jobs are writing.
        report: told how many of the points are settled.

    Attributes:
        wanted: positions that must be embedded, ascending.
        failures: by position, what the model could not embed.
    """

    def __init__(
        self,
        plan: Plan,
        store: Store,
        schema: CollectionSchema,
        *,
        senders: Executor,
        skipped: Sequence[int],
        ensure: Callable[[str], None],
        documents: Documents,
        report: Report | None = None,
    ) -> None:
        self._plan = plan
        self._ensure = ensure
        self._documents = documents
        self._tell = report
        self._store = store
        self._most_rows = most_rows(schema.colbert.size)
        self._skipped = skipped
        self.wanted = sorted(plan.owners.keys() - set(skipped))
        self.failures: dict[int, ModelFailure] = {}
        self._delivered = count(1)
        self._settled_points = len(plan.entries) - sum(len(plan.owners[one]) for one in self.wanted)
        self._numbers = {position: number for number, position in enumerate(self.wanted)}
        self._stream: Stream | None = None
        self._cancelled = False
        self._writer = Writer(
            store,
            plan.collection,
            schema,
            senders,
            insert_only=plan.insert_only,
            merged=plan.owners,
            ensure=self._make,
            prepare=self._pooled,
            settled=self._settled,
            gave_up=self._stop_model,
        )

    def deliver(self, number: int, result: Result) -> None:
        """The result of the text at `wanted[number]`; once each, in any order, from any thread."""
        position = self.wanted[number]
        if isinstance(result, Embedding):
            entry = self._plan.entries[position]
            self._writer.offer(Draft(position, entry.id, entry.payload, result))
        else:
            self.failures |= dict.fromkeys(self._plan.owners[position], result)
            self._writer.offer(Rejection(position, result.code, result.message))
        if next(self._delivered) == len(self.wanted):
            self._writer.end()

    @property
    def texts(self) -> list[EncodedText]:
        """What the model must embed: of each position in `wanted`."""
        return [self._plan.entries[position].encoded for position in self.wanted]

    def attach(self, stream: Stream) -> None:
        """The stream that delivers: released as points are settled, cancelled if the store gives out."""
        self._stream = stream
        if self._cancelled:
            stream.cancel()

    def run(self, begin: Callable[[], None]) -> UpsertReport:
        """Store what is delivered until all of it is accounted for. Blocks.

        Args:
            begin: has the model, or whoever has its results, deliver. Called in this thread, and not before someone
                is there to take what it delivers: the streams of all jobs share what may wait for that.

        Raises:
            StoreError: the store gave out; `details["upsert"]` accounts for every point.
            Internal: the store raised what no store should; likewise.
        """
        with self._documents.held(self._held()):
            return self._run(begin)

    def _held(self) -> set[Hashable]:
        plan = self._plan
        return {(plan.collection, plan.id_scope, plan.ids[one.text]) for one in plan.entries if one.chunk is not None}

    def _run(self, begin: Callable[[], None]) -> UpsertReport:
        if not self.wanted:
            self._writer.end()
        elif not self._cancelled:
            begin()
        self._writer.run()
        failure = self._writer.failure
        report = self._report(failure)
        if failure is not None:
            missing = sum(one.code == failure.code for one in report.rejected)
            message = f"{missing} of {report.submitted} points were not stored: {failure.message}"
            raise _accounted(type(failure)(message, details=failure.details), self._plan, report)
        try:
            self._forget_stale()
        except WorkerError as error:
            message = f"all points are accounted for, but chunks of earlier versions may be left: {error.message}"
            raise _accounted(type(error)(message), self._plan, report) from error
        return report

    def cancel(self) -> None:
        """Compute and send nothing more; `run` ends as soon as what is being sent is accounted for."""
        self._cancelled = True
        self._stop_model()
        self._writer.abandon(Cancelled("the job was cancelled"))

    def _make(self) -> None:
        plan = self._plan
        if self._skipped and self._store.collection_of(plan.collection) is None:
            # Made anew, it would lack them.
            raise NotFound(f"collection {plan.collection!r} was deleted while the job ran")
        self._ensure(plan.collection)

    def _stop_model(self) -> None:
        if self._stream is not None:
            self._stream.cancel()
        self._writer.end()

    def _pooled(self, draft: Draft) -> Draft:
        colbert = draft.embedding.colbert
        if not self._plan.pools or colbert is None:
            return draft
        return replace(draft, embedding=replace(draft.embedding, colbert=pooled(colbert, self._most_rows)))

    def _settled(self, position: int) -> None:
        if self._stream is not None:
            self._stream.release(self._numbers[position])
        self._settled_points += len(self._plan.owners[position])
        if self._tell is not None:
            self._tell({"settled": self._settled_points, "points": len(self._plan.entries)})

    def _report(self, failure: WorkerError | None) -> UpsertReport:
        plan, writer = self._plan, self._writer
        gone = isinstance(failure, NotFound)  # and with the collection what was there before
        skipped = [] if gone else [position for owner in self._skipped for position in plan.owners[owner]]
        rejected = [*plan.rejected, *writer.rejected]
        known = {one.index for one in rejected}.union(writer.stored, skipped)
        why = failure or Cancelled("the job was cancelled before it was sent")
        rejected += [
            Rejection(position, why.code, why.message) for position in range(len(plan.entries)) if position not in known
        ]
        return UpsertReport.of(len(plan.entries), writer.stored, skipped, rejected)

    def _forget_stale(self) -> None:
        """Delete chunks that a document had beyond its last one now, if all it has now is stored.

        They are found by their ids, which tell documents of different `idScope` apart, as their payload does not.
        """
        plan = self._plan
        if plan.insert_only:
            return
        stored = set(self._writer.stored)
        documents = {
            plan.ids[text]: len(positions)
            for text, positions in enumerate(plan.documents)
            if plan.entries[positions[0]].chunk is not None and stored.issuperset(positions)
        }
        stale: list[PointId] = []
        least, most = _GAP
        while documents:
            probed = max(least, min(most, _PROBES // len(documents)))
            probes: dict[PointId, PointId] = {
                chunk_id(document, first + n, plan.id_scope): document
                for document, first in documents.items()
                for n in range(probed)
            }
            there = present(self._store, plan.collection, list(probes))
            stale += [one for one in probes if one in there]
            longer = {probes[one] for one in there}
            documents = {document: first + probed for document, first in documents.items() if document in longer}
        # From the last on: a deletion that is cut short leaves the next run its beginning to find.
        for end in range(len(stale), 0, -BATCH_POINTS):
            self._store.delete(plan.collection, ids=stale[max(0, end - BATCH_POINTS) : end])
        if stale:
            log.info("deleted %d chunks of earlier versions", len(stale))


def lost(error: WorkerError, plan: Plan) -> WorkerError:
    """The error of a job of which nothing is stored, with its account."""
    refused = {one.index for one in plan.rejected}
    rejected = [Rejection(n, error.code, _WHOLE) for n in range(len(plan.entries)) if n not in refused]
    return _accounted(error, plan, UpsertReport.of(len(plan.entries), [], [], [*plan.rejected, *rejected]))


def _accounted(error: WorkerError, plan: Plan, report: UpsertReport) -> WorkerError:
    return type(error)(error.message, details={**error.details, "upsert": upsert_json(plan, report)})
