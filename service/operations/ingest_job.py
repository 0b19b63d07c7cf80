"""The execution of one ingest between the model and the store, in a thread of its own.

for each portion of the stream: draft -> writer -> report; then delete stale chunks
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace

from embedder import (
    Cancelled,
    Embedder,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Outputs,
    Priority,
    Result,
    ResultStream,
    WorkerError,
    whereabouts,
)
from qdrant_sink import DocumentLocks, Draft, Rejection, Vectors, Writer, WriteReport, delete_stale_chunks
from service.operations.collections import Collections
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_values import (
    IngestFailed,
    IngestProgress,
    IngestReport,
    IngestRequest,
    RejectedPoint,
)
from service.operations.store_access import StoreAccess

log = logging.getLogger(__name__)

Drafts = Sequence[Draft | Rejection]
"""A portion of a job's points for the writer."""


class IngestJob:
    """One planned ingest into a resolved collection.

    Args:
        request: the request.
        plan: the plan of its points.
        collection: the collection that the request's name or alias resolved to at the start.
        embedder: the loaded model.
        store: access to the store.
        collections: the collections of the worker.
        documents: locks of the documents that are being written.
        skipped: indices of existing points that stay unchanged.
        progress: callback when points are done; see `Ingest`.
        batch_points: maximum number of points, or ids, in one request to the store.

    Attributes:
        wanted: indices of the points that must be embedded, ascending.
        failures: the model's failure by the index of its point.
    """

    def __init__(
        self,
        request: IngestRequest,
        plan: IngestPlan,
        collection: str,
        *,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        documents: DocumentLocks,
        skipped: set[int],
        progress: Callable[[IngestProgress], None] | None,
        batch_points: int,
    ) -> None:
        self._request = request
        self._plan = plan
        self._collection = collection
        self._embedder = embedder
        self._store = store.opened()
        self._catalogue = collections.catalogue
        self._schema = collections.schema
        self._documents = documents
        self._skipped = skipped
        self._batch_points = batch_points
        self._stream: ResultStream | None = None
        self._cancelled = False
        self.wanted = sorted(plan.owners.keys() - skipped)
        self._stream_indices = {index: number for number, index in enumerate(self.wanted)}
        self.failures: dict[int, ModelFailure] = {}
        self._done_before = len(plan.points) - sum(len(plan.owners[index]) for index in self.wanted)
        self._progress = progress
        self._writer = Writer(
            self._store,
            collection,
            collections.schema,
            store.senders,
            insert_only=request.insert_only,
            pools=request.pool_colbert,
            merged=plan.owners,
            ensure=self._ensure,
            observer=self._observe,
            release=self._release,
            wake=self._wake,
            batch_points=batch_points,
        )

    def run(self, source: Callable[[], Generator[Drafts]]) -> IngestReport:
        """Store the points of a source until every point is done. Blocks.

        Args:
            source: `stream` or `from_results`. It is called in this thread after the job has locked its documents. The
                streams of all jobs share a window, and a job that waits for another one must not occupy it.

        Raises:
            IngestFailed: the store failed.
        """
        documents = self._plan.ids if self._request.chunk is not None else ()
        with self._documents.held(self._collection, self._plan.id_scope, documents):
            has_work = bool(self.wanted) and not self._cancelled
            try:
                with closing(source() if has_work else self.from_results([])) as portions:
                    written = self._writer.write(portions)
            finally:
                if self._stream is not None:
                    self._stream.close()  # only now: points in flight occupy the window until they are acknowledged
            skipped = [index for owner in self._skipped for index in self._plan.owners[owner]]
            written = replace(written, rejected=(*self._plan.rejected, *written.rejected)).completed(
                len(self._plan.points), skipped=skipped
            )
            report = report_of(self._plan, written)
            if written.failure is not None:
                raise IngestFailed(self._with_missing_points(written.failure, report), report)
            try:
                self._delete_stale_chunks(written)
            except WorkerError as error:
                message = f"chunks of earlier versions may remain, though all points are reported: {error.message}"
                raise IngestFailed(error.saying(message), report) from error
            return report

    def from_results(self, results: Sequence[Result]) -> Generator[Drafts]:
        """Yield the drafts of computed results, one for each point of the plan."""
        if results:
            yield [self._draft(index, results[index]) for index in self.wanted]

    def stream(self) -> Generator[Drafts]:
        """Start embedding the wanted points, and yield the drafts of each portion of results when it is ready."""
        outputs = Outputs.of(tuple(self._request.vectors), self._schema.colbert.datatype)
        texts = [self._plan.points[index].encoded for index in self.wanted]
        try:
            stream = self._embedder.stream(
                texts, outputs, priority=priority_of(self._request), batch_size=self._request.batch_size
            )
        except InvalidRequest as error:
            raise error.at("texts") from None
        self._stream = stream
        if self._cancelled:
            stream.cancel()
        return self._portions(stream)

    def _portions(self, stream: ResultStream) -> Generator[Drafts]:
        try:
            for portion in stream:
                drafts = [self._draft(self.wanted[number], result) for number, result in portion]
                del portion
                yield drafts
                del drafts  # during the wait for the next portion, only the writer holds vectors
        except Cancelled:  # the writer reports it
            return

    def _release(self, indices: Sequence[int]) -> None:
        if self._stream is not None:
            self._stream.release([self._stream_indices[index] for index in indices])

    def _wake(self) -> None:
        if self._stream is not None:
            self._stream.wake()

    def _observe(self, points: int) -> None:
        """Report progress. If the callback fails, the job continues without it."""
        if self._progress is None:
            return
        try:
            self._progress(IngestProgress(self._done_before + points, len(self._plan.points)))
        except Exception as error:  # noqa: BLE001 - the callback is the caller's code
            self._progress = None
            log.warning("the progress of an ingest could not be reported: %s", whereabouts(error))

    def cancel(self) -> None:
        """Stop computing and sending. `run` ends when the requests in flight are answered."""
        self._cancelled = True
        self._writer.cancel(Cancelled("the job was cancelled"))
        if self._stream is not None:
            self._stream.cancel()

    def _draft(self, index: int, result: Result) -> Draft | Rejection:
        if isinstance(result, ModelFailure):
            self.failures |= dict.fromkeys(self._plan.owners[index], result)
            return Rejection(index, result)
        point = self._plan.points[index]
        return Draft(index, point.id, point.payload, Vectors.of(result))

    def _ensure(self) -> None:
        name = self._plan.name
        # A new collection would lack the skipped points, or no alias would lead to it.
        must_exist = bool(self._skipped) or self._collection != name
        if must_exist and self._store.collection_of(self._collection, patient=True) is None:
            raise NotFound(f"collection {name!r} was deleted while the job ran; send the job again")
        if self._catalogue.ensure(self._collection) != self._collection:
            # Another job may be writing the same documents under the name of the collection.
            raise NotFound(f"collection {name!r} became an alias while the job ran; send the job again")

    def _delete_stale_chunks(self, written: WriteReport) -> None:
        """Delete the chunks of earlier versions beyond the last chunk of each document that is stored completely."""
        plan = self._plan
        if self._request.chunk is None or self._request.insert_only:
            return
        stored = set(written.indices)
        documents = {
            plan.ids[text]: len(indices) for text, indices in enumerate(plan.documents) if stored.issuperset(indices)
        }
        delete_stale_chunks(self._store, self._collection, documents, plan.id_scope, batch_points=self._batch_points)

    def _with_missing_points(self, failure: WorkerError, report: IngestReport) -> WorkerError:
        missing = sum(type(rejection.cause) is type(failure) for rejection in report.rejected)
        return failure.saying(f"{missing} of {len(self._plan.points)} points were not stored: {failure.message}")


def priority_of(request: IngestRequest) -> Priority:
    """The priority of a request's texts."""
    return Priority.QUERY if request.role == "query" else Priority.PASSAGE


def report_of(plan: IngestPlan, written: WriteReport) -> IngestReport:
    """The report on every point, by texts and chunks of the request."""
    rejected = (
        RejectedPoint(plan.points[rejection.index].text, plan.points[rejection.index].chunk, rejection.cause)
        for rejection in written.rejected
    )
    return IngestReport(plan.name, written.stored, written.skipped, tuple(rejected))
