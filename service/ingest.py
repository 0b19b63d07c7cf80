"""From planned texts to stored points, embedding and storing at once, with an account of every point."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import replace
from itertools import count

from embedder.errors import ModelFailure, NotFound, StoreUnavailable, WorkerError
from embedder.forward import Result
from embedder.pool import Stream
from embedder.vectors import Embedding
from qdrant_sink.conformance import most_rows
from qdrant_sink.points import Draft, PointId, chunk_id
from qdrant_sink.pooling import pooled
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.store import Store
from qdrant_sink.writer import Rejection, UpsertReport, Writer, present
from service.plan import Plan
from service.progress import Report
from service.responses import upsert_json

log = logging.getLogger(__name__)

_PROBED = 8
"""Chunks beyond a document's last that are looked for: so many in a row can have been refused in an earlier run."""


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

    def verify(self, collection: str) -> bool:
        """Check, once per collection, that it has the model's schema; False if it is not there. Creates nothing.

        Raises:
            StoreError: it has another, or the store does not answer.
        """
        if collection not in self._ensured and self._opened().verify(collection, self._schema):
            self._ensured.add(collection)
        return collection in self._ensured

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
                report=report,
            )
        except WorkerError as error:
            lost = [Rejection(position, error.code, error.message) for position in range(len(plan.entries))]
            raise _accounted(error, plan, UpsertReport.of(len(plan.entries), [], [], lost)) from error

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
        report: Report | None = None,
    ) -> None:
        self._plan = plan
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
        self._writer = Writer(
            store,
            plan.collection,
            schema,
            senders,
            insert_only=plan.insert_only,
            merged=plan.owners,
            ensure=lambda: ensure(plan.collection),
            settled=self._settled,
            gave_up=self.cancel,
        )

    def deliver(self, number: int, result: Result) -> None:
        """The result of the text at `wanted[number]`; once each, in any order, from any thread."""
        position = self.wanted[number]
        if isinstance(result, Embedding):
            entry = self._plan.entries[position]
            self._writer.offer(Draft(position, entry.id, entry.payload, self._pooled(result)))
        else:
            self.failures |= dict.fromkeys(self._plan.owners[position], result)
            self._writer.offer(Rejection(position, result.code, result.message))
        if next(self._delivered) == len(self.wanted):
            self._writer.end()

    def run(self, stream: Stream | None = None) -> UpsertReport:
        """Store what is delivered until all of it is accounted for. Blocks.

        Args:
            stream: released as points are settled, cancelled if the store gives out.

        Raises:
            StoreError: the store gave out; `details["upsert"]` accounts for every point.
            Internal: the store raised what no store should; likewise.
        """
        self._stream = stream
        if not self.wanted:
            self._writer.end()
        self._writer.run()
        failure = self._writer.failure
        report = self._report(failure)
        if failure is not None:
            lost = sum(one.code == failure.code for one in report.rejected)
            message = f"{lost} of {report.submitted} points were not stored: {failure.message}"
            raise _accounted(type(failure)(message, details=failure.details), self._plan, report)
        try:
            self._forget_stale()
        except WorkerError as error:
            message = f"all points are accounted for, but chunks of earlier versions may be left: {error.message}"
            raise _accounted(type(error)(message), self._plan, report) from error
        return report

    def cancel(self) -> None:
        """Wait for nothing more from the model; `run` ends as soon as what is being sent is accounted for."""
        if self._stream is not None:
            self._stream.cancel()
        self._writer.end()

    def _pooled(self, embedding: Embedding) -> Embedding:
        if not self._plan.pools or embedding.colbert is None:
            return embedding
        return replace(embedding, colbert=pooled(embedding.colbert, self._most_rows))

    def _settled(self, position: int) -> None:
        if self._stream is not None:
            self._stream.release(self._numbers[position])
        self._settled_points += len(self._plan.owners[position])
        if self._tell is not None:
            self._tell({"settled": self._settled_points, "points": len(self._plan.entries)})

    def _report(self, failure: WorkerError | None) -> UpsertReport:
        plan, writer = self._plan, self._writer
        skipped = [position for owner in self._skipped for position in plan.owners[owner]]
        rejected = [*plan.rejected, *writer.rejected]
        known = {one.index for one in rejected}.union(writer.stored, skipped)
        why = failure or StoreUnavailable("the job was cancelled before it was sent")
        rejected += [
            Rejection(position, why.code, why.message) for position in range(len(plan.entries)) if position not in known
        ]
        return UpsertReport.of(len(plan.entries), writer.stored, skipped, rejected)

    def _forget_stale(self) -> None:
        """Delete chunks that a document had beyond its last one now, if all it has now is stored."""
        plan = self._plan
        if plan.insert_only:
            return
        stored = set(self._writer.stored)
        documents = {
            plan.ids[text]: len(positions)
            for text, positions in enumerate(plan.documents)
            if plan.entries[positions[0]].chunk is not None and stored.issuperset(positions)
        }
        while documents:
            probes: dict[PointId, PointId] = {
                chunk_id(document, first + n, plan.collection): document
                for document, first in documents.items()
                for n in range(_PROBED)
            }
            stale = list(present(self._store, plan.collection, list(probes)))
            if stale:
                self._store.delete(plan.collection, ids=stale)
                log.info("deleted %d chunks of earlier versions", len(stale))
            longer = {probes[one] for one in stale}
            documents = {document: first + _PROBED for document, first in documents.items() if document in longer}


def _accounted(error: WorkerError, plan: Plan, report: UpsertReport) -> WorkerError:
    return type(error)(error.message, details={**error.details, "upsert": upsert_json(plan, report)})
