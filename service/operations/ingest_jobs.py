"""Preparation of ingest jobs: their target, what is stored of it already, and the locks that jobs share."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence

from embedder import KINDS, Kind, NotFound, WorkerError
from qdrant_sink import (
    TEXT_KEY,
    DocumentLocks,
    Recognised,
    Taken,
    VersionedCollections,
    WriteReport,
    existing_ids,
    text_key_of,
)
from service.operations.collections import Collections
from service.operations.ingest_job import Drafts, IngestJob, report_of
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_target import IngestTarget, check_kinds
from service.operations.ingest_values import IngestProgress, IngestReport, IngestRequest
from service.operations.store_access import IngestSlot, StoreAccess
from service.validation import invalid_field

_JOB_FAILED_MESSAGE = "not stored; see the error of the job"
"""Message of every point of a failed job; the job's own message stands only once, in its error."""


class IngestJobs:
    """Prepares and runs the jobs of an ingest operation, which share the locks of documents. Thread-safe.

    Args:
        store: access to the store.
        collections: the collections of the worker.
        batch_points: maximum number of points, or ids, in one request to the store.
    """

    def __init__(self, store: StoreAccess, collections: Collections, *, batch_points: int) -> None:
        self._store = store
        self._collections = collections
        self._batch_points = batch_points
        self._documents = DocumentLocks()
        self._versioned = VersionedCollections()

    def check(self, request: IngestRequest) -> None:
        """Validate a request against the config of collections.

        Raises:
            InvalidRequest: the payload layout of the config has another text key, or the config lacks a kind of
                vector.
        """
        check_kinds(request.vectors, self._collections.wanted.kinds)
        layout = self._collections.wanted.layout
        if layout != "plain" and request.text_key not in (None, TEXT_KEY):
            key = text_key_of(layout, TEXT_KEY)
            message = f"must be left out: the payload layout '{layout}' has the text under '{key}', got another key"
            raise invalid_field(f"{request.path}textKey", message)

    def guessed(self, request: IngestRequest, name: str, available: Sequence[Kind] = KINDS) -> IngestTarget:
        """The target if the collection is as it was, or new, without a call to the store."""
        guess = self._collections.catalogue.guess(name) or Recognised.new(name, self._collections.wanted)
        return IngestTarget.guessed(request, guess, available)

    def new(self, request: IngestRequest, name: str, available: Sequence[Kind] = KINDS) -> IngestTarget:
        """The target if the collection is new, without a call to the store."""
        return IngestTarget.guessed(request, Recognised.new(name, self._collections.wanted), available)

    def target(self, request: IngestRequest, name: str, available: Sequence[Kind] = KINDS) -> IngestTarget:
        """Resolve the collection and recognise it; see `IngestTarget.of`. Blocks for the store."""
        catalogue = self._collections.catalogue
        collection = catalogue.resolve(name)
        recognised = catalogue.to_write(name, collection) or Recognised.new(name, self._collections.wanted)
        return IngestTarget.of(request, recognised, collection, available)

    def prepare(
        self, target: IngestTarget, plan: IngestPlan, progress: Callable[[IngestProgress], None] | None = None
    ) -> IngestJob:
        """Prepare the job and, with `insert_only`, look up the existing points. Blocks for the store."""
        request, collection = target.request, target.collection
        skipped: set[int] = set()
        store = self._store.opened()
        if request.insert_only and not plan.documents:
            try:
                ids = [plan.points[owner].id for owner in plan.owners]
                existing = existing_ids(store, collection, ids, batch_points=self._batch_points)
            except NotFound:
                existing = set()
            skipped = {owner for owner in plan.owners if plan.points[owner].id in existing}
        return IngestJob(
            request,
            plan,
            collection,
            schema=target.schema,
            taken=target.taken,
            store=self._store,
            collections=self._collections,
            documents=self._documents,
            versioned=self._versioned,
            skipped=skipped,
            progress=progress,
            batch_points=self._batch_points,
        )


async def run_job(slot: IngestSlot, job: IngestJob, source: Callable[[], Generator[Drafts]]) -> IngestReport:
    """Run a job. If it is interrupted, its texts that wait for the model are dropped."""
    try:
        return await slot.run(lambda: job.run(source), stage="ingest")
    except BaseException:
        job.cancel()
        raise


def nothing_stored(plan: IngestPlan, error: WorkerError) -> IngestReport:
    """The report of a job that failed before it stored a point."""
    failure_of_point = error.saying(_JOB_FAILED_MESSAGE)
    written = WriteReport((), tuple(plan.rejected), failure=failure_of_point).completed(len(plan.points))
    return report_of(plan, written, Taken())
