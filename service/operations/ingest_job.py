"""The execution of one ingest between the model and the store, in a thread of its own.

for each portion of the stream: draft -> writer -> report; then confirm what is stored, and replace earlier versions
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
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
from qdrant_sink import (
    Acknowledged,
    CollectionChanged,
    CollectionSchema,
    DocumentLocks,
    DocumentPaths,
    Draft,
    PointId,
    Rejection,
    Replacement,
    Superseded,
    Taken,
    Vectors,
    VersionedCollections,
    Writer,
    WriteReport,
    differing_points,
    missing_indices,
)
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
        request: the request, with its kinds of vectors.
        plan: the plan of its points.
        collection: the collection that the request's name or alias resolved to at the start.
        schema: schema of the collection, with the layout to write by.
        taken: what of it was taken from the collection rather than from the config.
        store: access to the store.
        collections: the collections of the worker.
        documents: locks of the documents that are being written.
        versioned: collections that were seen to have no chunks without a version.
        skipped: indices of existing points that stay unchanged; of chunks they are found by `run`.
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
        schema: CollectionSchema,
        taken: Taken,
        store: StoreAccess,
        collections: Collections,
        documents: DocumentLocks,
        versioned: VersionedCollections,
        skipped: set[int],
        progress: Callable[[IngestProgress], None] | None,
        batch_points: int,
    ) -> None:
        self._request = request
        self._plan = plan
        self._collection = collection
        self._store = store.opened()
        self._catalogue = collections.catalogue
        self._schema = schema
        self._taken = taken
        self._documents = documents
        self._batch_points = batch_points
        self._stream: ResultStream | None = None
        self._cancelled = False
        self.failures: dict[int, ModelFailure] = {}
        self._differing: frozenset[int] = frozenset()
        self._paths = DocumentPaths.of(schema.layout)
        self._replacement: Replacement | None = None
        if plan.documents:
            self._replacement = Replacement(
                self._store,
                collection,
                self._paths,
                plan.documents,
                versioned,
                keeps=request.insert_only,
                batch_points=batch_points,
            )
        self._skip(skipped)
        self._progress = progress
        self._writer = Writer(
            self._store,
            collection,
            schema,
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
            source: `stream`, `from_results` or `from_vectors`. It is called in this thread after the job has locked its
                documents. The streams of all jobs share a window, and a job that waits for another one must not occupy
                it.

        Raises:
            IngestFailed: the store failed.
        """
        with self._documents.held(self._collection, {document.key for document in self._plan.documents}):
            if self._replacement is not None:
                self._begin(self._replacement)
            if self._request.compare_kept and self._request.insert_only:
                self._differing = self._differing_texts()
            written = self._confirmed(self._write(source))
            if written.failure is None and self._replacement is not None:
                written = self._commit(self._replacement, written)
            written = self._at_home(written)
            report = self._report(written)
            if written.failure is not None:
                raise IngestFailed(self._with_missing_points(written.failure, report), report)
            return report

    def _skip(self, skipped: set[int]) -> None:
        """Leave out points that are stored already."""
        self._skipped = skipped
        self.wanted = sorted(self._plan.owners.keys() - skipped)
        self._stream_indices = {index: number for number, index in enumerate(self.wanted)}
        self._done_before = len(self._plan.points) - sum(len(self._plan.owners[index]) for index in self.wanted)

    def _begin(self, replacement: Replacement) -> None:
        """Read what is stored of the documents, and give the chunks their version."""
        replacement.begin()
        kept = replacement.kept
        self._skip({owner for owner in self._plan.owners if (self._key(owner), self._plan.points[owner].chunk) in kept})
        totals = Counter({document.key: 0 for document in self._plan.documents})
        totals.update(self._key(owner) for owner in self._plan.owners)
        self._plan = self._plan.versioned(replacement.versions, totals)

    def _differing_texts(self) -> frozenset[int]:
        """The texts for which another text or payload is kept, or more chunks than they have."""
        kept = {self._id(owner): owner for owner in self._skipped}
        wanted = {point: self._plan.points[owner].payload for point, owner in kept.items()}
        version = (self._paths.key, self._paths.version, self._paths.total) if self._plan.documents else ()
        try:
            differing = differing_points(self._store, self._collection, wanted, ignored=version)
        except NotFound:
            return frozenset()  # the collection is gone, which is reported when the job ends
        texts = {self._plan.points[index].text for point in differing for index in self._plan.owners[kept[point]]}
        if self._replacement is not None:
            chunks = {(self._key(index), point.chunk or 0) for index, point in enumerate(self._plan.points)}
            longer = {key for key, number in self._replacement.kept if (key, number) not in chunks}
            texts.update(index for index, document in enumerate(self._plan.documents) if document.key in longer)
        return frozenset(texts)

    def _write(self, source: Callable[[], Generator[Drafts]]) -> WriteReport:
        has_work = bool(self.wanted) and not self._cancelled
        try:
            with closing(source() if has_work else self.from_results([])) as portions:
                written = self._writer.write(portions)
        finally:
            if self._stream is not None:
                self._stream.close()  # only now: points in flight occupy the window until they are acknowledged
        skipped = [index for owner in self._skipped for index in self._plan.owners[owner]]
        return replace(written, rejected=(*self._plan.rejected, *written.rejected)).completed(
            len(self._plan.points), skipped=skipped
        )

    def _commit(self, replacement: Replacement, written: WriteReport) -> WriteReport:
        """Delete the earlier versions of the documents, or report what became of this one."""
        ids: dict[str, set[PointId]] = {}
        skipped = {index for owner in self._skipped for index in self._plan.owners[owner]}
        for index in written.indices:
            if index not in skipped:
                ids.setdefault(self._key(index), set()).add(self._plan.points[index].id)
        left_out = set(range(len(self._plan.points))).difference(written.indices)
        whole = {document.key for document in self._plan.documents} - {self._key(index) for index in left_out}
        try:
            reduced = {self._key(owner) for owner in left_out.intersection(self._plan.owners)}
            outcome = replacement.commit(ids, whole=whole, reduced=reduced)
        except WorkerError as error:
            message = f"chunks of earlier versions may remain, though all points are reported: {error.message}"
            raise IngestFailed(error.saying(message), self._report(written)) from error
        causes: dict[int, WorkerError] = {}
        superseded = Superseded("another job stored a later version of this document meanwhile, which is kept")
        deleted = CollectionChanged("the point was deleted while the job ran; send the text again")
        for index in written.indices:
            if self._key(index) in outcome.superseded:
                causes[index] = superseded
            elif self._plan.points[index].id in outcome.missing:
                causes[index] = deleted
        return written.revoked(causes, skipped=skipped)

    def _confirmed(self, written: WriteReport) -> WriteReport:
        """Reject points that were acknowledged, or found at the start, and are gone with their collection."""
        batches = list(self._writer.acknowledged)
        if self._skipped:
            batches.append(Acknowledged([(self._id(owner), self._plan.owners[owner]) for owner in self._skipped], 1))
        elif self._replacement is not None and written.failure is None:
            return written  # the commit reads all chunks
        gone = isinstance(written.failure, NotFound)
        if not batches or not (gone or (written.failure is None and sum(batch.requests for batch in batches) > 1)):
            return written
        try:
            missing = missing_indices(self._store, self._collection, batches, batch_points=self._batch_points)
        except NotFound:
            missing = set(written.indices)
        except WorkerError as error:
            log.warning("the report of an ingest could not be confirmed: %s", error.message)
            return written
        if not missing and not gone:
            return written
        changed = CollectionChanged(
            f"points of collection {self._plan.name!r} were deleted while the job ran; send the job again"
        )
        return self._revoked(written, dict.fromkeys(missing, changed), changed)

    def _at_home(self, written: WriteReport) -> WriteReport:
        """Reject all points if the name of the collection leads to another one by now."""
        name, collection = self._plan.name, self._collection
        if not written.indices or (name == collection and len(self._writer.acknowledged) < 2):
            return written
        try:
            target = self._store.collection_of(name, patient=True)
        except WorkerError as error:
            log.warning("the report of an ingest could not be confirmed: %s", error.message)
            return written
        if target == collection:
            return written
        now = "leads nowhere" if target is None else f"leads to {target!r}"
        changed = CollectionChanged(
            f"{name!r} was moved while the job ran: the points are in collection {collection!r}, and the name {now} "
            "now; send the job again"
        )
        return self._revoked(written, dict.fromkeys(written.indices, changed), changed)

    def _revoked(self, written: WriteReport, causes: Mapping[int, WorkerError], failure: WorkerError) -> WriteReport:
        skipped = [index for owner in self._skipped for index in self._plan.owners[owner]]
        if written.failure is not None and not isinstance(written.failure, NotFound):
            failure = written.failure
        return written.revoked(causes, failure, skipped=skipped)

    def _report(self, written: WriteReport) -> IngestReport:
        return replace(report_of(self._plan, written, self._taken), differing=self._differing)

    def _id(self, index: int) -> PointId:
        """The id of a point, which a chunk of an earlier version keeps."""
        point = self._plan.points[index]
        if self._replacement is None:
            return point.id
        return self._replacement.kept.get((self._key(index), point.chunk or 0), point.id)

    def _key(self, index: int) -> str:
        return self._plan.documents[self._plan.points[index].text].key

    def from_results(self, results: Sequence[Result]) -> Generator[Drafts]:
        """Yield the drafts of computed results, one for each point of the plan."""
        if results:
            yield [self._draft(index, results[index]) for index in self.wanted]

    def from_vectors(self, vectors: Sequence[Vectors]) -> Generator[Drafts]:
        """Yield the drafts of vectors that the caller has, one for each point of the plan."""
        if self.wanted:
            yield [self._drafted(index, vectors[index]) for index in self.wanted]

    def stream(self, embedder: Embedder) -> Generator[Drafts]:
        """Start embedding the wanted points, and yield the drafts of each portion of results when it is ready.

        Args:
            embedder: the loaded model.
        """
        colbert = self._schema.colbert
        outputs = Outputs.of(tuple(self._request.vectors), "float32" if colbert is None else colbert.datatype)
        texts = [self._plan.encoded[index] for index in self.wanted]
        try:
            stream = embedder.stream(
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
        return self._drafted(index, Vectors.of(result))

    def _drafted(self, index: int, vectors: Vectors) -> Draft:
        point = self._plan.points[index]
        return Draft(index, point.id, point.payload, vectors)

    def _ensure(self) -> None:
        """Create or verify the collection with the indexes that the job needs."""
        name, collection = self._plan.name, self._collection
        # A new collection would lack the skipped points, or no alias would lead to it.
        must_exist = bool(self._skipped) or collection != name
        target = self._store.collection_of(collection, patient=True)
        if target is None and must_exist:
            raise CollectionChanged(f"collection {name!r} was deleted while the job ran; send the job again")
        if target not in (None, collection):
            # Another job may be writing the same documents under the name of the collection.
            raise CollectionChanged(f"collection {name!r} became an alias while the job ran; send the job again")
        self._catalogue.ensure(collection, self._schema)
        if self._replacement is not None:
            self._replacement.prepare_index()

    def _with_missing_points(self, failure: WorkerError, report: IngestReport) -> WorkerError:
        kind = NotFound if isinstance(failure, NotFound) else type(failure)  # also what was stored before and is gone
        missing = sum(isinstance(rejection.cause, kind) for rejection in report.rejected)
        return failure.saying(f"{missing} of {len(self._plan.points)} points were not stored: {failure.message}")


def priority_of(request: IngestRequest) -> Priority:
    """The priority of a request's texts."""
    return Priority.QUERY if request.role == "query" else Priority.PASSAGE


def report_of(plan: IngestPlan, written: WriteReport, taken: Taken) -> IngestReport:
    """The report on every point, by texts and chunks of the request."""
    rejected = (
        RejectedPoint(plan.points[rejection.index].text, plan.points[rejection.index].chunk, rejection.cause)
        for rejection in written.rejected
    )
    stored = Counter(plan.points[index].text for index in written.indices)
    of_texts = tuple(stored[text] for text in range(len(plan.ids)))
    return IngestReport(plan.name, written.stored, written.skipped, tuple(rejected), taken, stored_of_texts=of_texts)
