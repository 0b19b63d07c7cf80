"""Texts to vectors to points, embedding and storing at the same time, with a report of every point.

plan -> admit -> resolve the collection -> for each portion of the stream: draft -> writer -> report
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TypeVar

from embedder import (
    Cancelled,
    Embedder,
    Embedding,
    InvalidRequest,
    ModelFailure,
    NotFound,
    Outputs,
    Priority,
    Result,
    ResultStream,
    WorkerError,
)
from qdrant_sink import (
    BATCH_MAX_POINTS,
    DocumentLocks,
    Draft,
    Rejection,
    Vectors,
    Writer,
    WriteReport,
    delete_stale_chunks,
    existing_ids,
    text_key_of,
)
from service.operations.collections import Collections
from service.operations.embed import Admit, LengthLimits, admit_all
from service.operations.ingest_plan import IngestPlan
from service.operations.ingest_values import (
    IngestedText,
    IngestFailed,
    IngestProgress,
    IngestReport,
    IngestRequest,
    IngestResult,
    RejectedPoint,
)
from service.operations.store_access import StoreAccess

log = logging.getLogger(__name__)

T = TypeVar("T")


AdmitTexts = Callable[[Sequence[IngestedText], int], None]
"""Called with what is known of the texts, and the number of points, before anything is stored; what it raises ends the
operation.
"""

_WHOLE = "the job failed as a whole, as its error says"
"""Message of each of its points: the error's own, repeated, would make a long answer of a short one."""


def admit_texts(_texts: Sequence[IngestedText], _points: int) -> None:
    """Admit any texts."""


class Ingest:
    """The operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        store: the access to the store.
        collections: know which may be named, their schema, and which have it.
        limits: on the lengths of texts.
        batch_points: maximum number of points, or ids, in one request to the store.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        limits: LengthLimits,
        *,
        batch_points: int = BATCH_MAX_POINTS,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._collections = collections
        self._schema = collections.schema
        self._limits = limits
        self._batch_points = batch_points
        self._documents = DocumentLocks()

    def check(self, request: IngestRequest) -> None:
        """Check what a request asks of the collection, without its texts.

        Raises:
            InvalidRequest: the text key belongs to another layout of payloads.
        """
        layout = self._schema.layout
        if layout != "plain" and request.text_key != "text":
            key = text_key_of(layout, request.text_key)
            message = f"belongs to the plain layout; in {layout}'s the text is in '{key}'; leave it out"
            raise InvalidRequest(message).at(f"{request.path}textKey")

    async def __call__(
        self,
        request: IngestRequest,
        *,
        admit: Admit = admit_all,
        admit_texts: AdmitTexts = admit_texts,
        progress: Callable[[IngestProgress], None] | None = None,
    ) -> IngestResult:
        """Store all texts. All that can be refused without the model is refused before it runs.

        Args:
            request: at least one text.
            admit: sees the lengths of the points before the model runs, where vectors are returned.
            admit_texts: sees what is known of the texts before anything is stored.
            progress: called from a thread of the ingest as points are done.

        Raises:
            InvalidRequest: the request cannot be served as written; nothing is stored.
            IngestFailed: the job failed as a whole; its report says what is stored nevertheless.
        """
        self.check(request)
        name = self._collections.named(request.collection, f"{request.path}collection")
        started = time.perf_counter()
        max_length = request.max_length or self._limits.of(request.role)
        plan = await asyncio.to_thread(
            IngestPlan.of, request, name, self._embedder, max_length=max_length, schema=self._schema
        )
        if not request.return_vectors:
            await asyncio.to_thread(admit_texts, _outline(request, plan, {}), len(plan.points))
        planned = time.perf_counter()
        try:
            with self._store.ingest_slot():
                result = await self._stored(request, plan, admit, admit_texts, progress)
        except IngestFailed:
            raise
        except WorkerError as error:
            raise IngestFailed(error, _nothing_stored(plan, error)) from error
        report = result.report
        log.info(
            "ingested %d points: %d stored, %d of them there before, %d rejected; planned in %.2f s, done in %.2f s",
            len(plan.points),
            report.stored,
            report.skipped,
            len(report.rejected),
            planned - started,
            time.perf_counter() - planned,
        )
        return result

    async def _stored(
        self,
        request: IngestRequest,
        plan: IngestPlan,
        admit: Admit,
        admit_texts: AdmitTexts,
        progress: Callable[[IngestProgress], None] | None,
    ) -> IngestResult:
        load = await self._store.call(lambda: self._prepared(request, plan, progress))
        if not request.return_vectors:
            report = await self._run(load, load.stream)
            tokens = sum(len(plan.points[index].encoded) for index in load.wanted)
            return IngestResult(_outline(request, plan, load.failures), tokens, report)
        admit([len(point.encoded) for point in plan.points])
        results = await self._embedded(request, plan)
        texts = [
            replace(text, result=result, tokens=result.tokens if isinstance(result, Embedding) else 0)
            for text, result in zip(_outline(request, plan, {}), results, strict=True)
        ]
        await asyncio.to_thread(admit_texts, texts, len(plan.points))
        report = await self._run(load, lambda: [[(index, results[index]) for index in load.wanted]])
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return IngestResult(texts, tokens, report)

    async def _embedded(self, request: IngestRequest, plan: IngestPlan) -> Sequence[Result]:
        try:
            return await self._embedder.embed_tokens(
                [point.encoded for point in plan.points],
                Outputs.of(tuple(request.vectors)),
                priority=priority_of(request),
                batch_size=request.batch_size,
            )
        except InvalidRequest as error:
            raise error.at("texts") from None

    def _prepared(
        self, request: IngestRequest, plan: IngestPlan, progress: Callable[[IngestProgress], None] | None
    ) -> _Load:
        """Find the collection and what is there already. Blocks for the store."""
        catalogue = self._collections.catalogue
        collection = catalogue.resolve(plan.name)
        catalogue.verify(collection)
        skipped: set[int] = set()
        store = self._store.opened()
        if request.insert_only:
            try:
                ids = [plan.points[owner].id for owner in plan.owners]
                there = existing_ids(store, collection, ids, batch_points=self._batch_points)
            except NotFound:
                there = set()
            skipped = {owner for owner in plan.owners if plan.points[owner].id in there}
        return _Load(
            request,
            plan,
            collection,
            embedder=self._embedder,
            store=self._store,
            collections=self._collections,
            documents=self._documents,
            skipped=skipped,
            progress=progress,
            batch_points=self._batch_points,
        )

    async def _run(self, load: _Load, source: Callable[[], Iterable[Sequence[tuple[int, Result]]]]) -> IngestReport:
        """Whatever ends the load, the model computes nothing more for it."""
        try:
            return await self._store.ingest(lambda: load.run(source))
        except BaseException:
            load.cancel()
            raise


class _Load:
    """One job on its way from the model to the store.

    Attributes:
        wanted: indices of the points that must be embedded, ascending.
        failures: by index of a point, why the model could not embed it.
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
        self.failures: dict[int, ModelFailure] = {}
        done = len(plan.points) - sum(len(plan.owners[index]) for index in self.wanted)
        observe = progress or (lambda _progress: None)
        self._writer = Writer(
            self._store,
            collection,
            collections.schema,
            store.senders,
            insert_only=request.insert_only,
            pools=request.pool_colbert,
            merged=plan.owners,
            ensure=self._ensure,
            observer=lambda points: observe(IngestProgress(done + points, len(plan.points))),
            batch_points=batch_points,
        )

    def run(self, source: Callable[[], Iterable[Sequence[tuple[int, Result]]]]) -> IngestReport:
        """Store what the source gives, until every point is done. Blocks.

        Args:
            source: starts giving results, by the index of their point. Called in this thread, and not before someone
                is there to take them: the streams of all jobs share what may wait for that.

        Raises:
            IngestFailed: the store gave out.
        """
        documents = self._plan.ids if self._request.chunk is not None else ()
        with self._documents.held(self._collection, self._plan.id_scope, documents):
            portions = source() if self.wanted and not self._cancelled else []
            written = self._writer.write(map(self._drafts, portions))
            skipped = [index for owner in self._skipped for index in self._plan.owners[owner]]
            written = replace(written, rejected=(*self._plan.rejected, *written.rejected)).completed(
                len(self._plan.points), skipped=skipped
            )
            report = _report_of(self._plan, written)
            if written.failure is not None:
                raise IngestFailed(self._missing(written.failure, report), report)
            try:
                self._delete_stale_chunks(written)
            except WorkerError as error:
                message = f"all points are accounted for, but chunks of earlier versions may be left: {error.message}"
                raise IngestFailed(error.saying(message), report) from error
            return report

    def stream(self) -> Iterator[Sequence[tuple[int, Result]]]:
        """Have the model embed what is wanted, and give each portion of results as it is ready."""
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

    def _portions(self, stream: ResultStream) -> Iterator[Sequence[tuple[int, Result]]]:
        with stream:
            try:
                for portion in stream:
                    yield [(self.wanted[number], result) for number, result in portion]
            except Cancelled:  # the writer knows
                return

    def cancel(self) -> None:
        """Compute and send nothing more; `run` ends as soon as what is being sent is acknowledged or not."""
        self._cancelled = True
        self._writer.cancel(Cancelled("the job was cancelled"))
        if self._stream is not None:
            self._stream.cancel()

    def _drafts(self, portion: Sequence[tuple[int, Result]]) -> list[Draft | Rejection]:
        return [self._draft(index, result) for index, result in portion]

    def _draft(self, index: int, result: Result) -> Draft | Rejection:
        if isinstance(result, ModelFailure):
            self.failures |= dict.fromkeys(self._plan.owners[index], result)
            return Rejection(index, result)
        point = self._plan.points[index]
        return Draft(index, point.id, point.payload, Vectors.of(result))

    def _ensure(self) -> None:
        if self._skipped and self._store.collection_of(self._collection) is None:
            # Made anew, the collection would lack them.
            raise NotFound(f"collection {self._plan.name!r} was deleted while the job ran")
        self._catalogue.ensure(self._collection)

    def _delete_stale_chunks(self, written: WriteReport) -> None:
        """Delete chunks that a document had beyond its last one now, if all it has now is stored."""
        plan = self._plan
        if self._request.chunk is None or self._request.insert_only:
            return
        stored = set(written.indices)
        documents = {
            plan.ids[text]: len(indices) for text, indices in enumerate(plan.documents) if stored.issuperset(indices)
        }
        delete_stale_chunks(self._store, self._collection, documents, plan.id_scope, batch_points=self._batch_points)

    def _missing(self, failure: WorkerError, report: IngestReport) -> WorkerError:
        missing = sum(type(rejection.cause) is type(failure) for rejection in report.rejected)
        return failure.saying(f"{missing} of {len(self._plan.points)} points were not stored: {failure.message}")


def priority_of(request: IngestRequest) -> Priority:
    """Queries go before passages."""
    return Priority.QUERY if request.role == "query" else Priority.PASSAGE


def _outline(request: IngestRequest, plan: IngestPlan, failures: Mapping[int, ModelFailure]) -> list[IngestedText]:
    """What a result without vectors says of each text, before and after it is embedded."""
    texts = []
    for text, indices in enumerate(plan.documents):
        embedded = [plan.points[index].encoded for index in indices if index not in failures]
        tokens = sum(map(len, embedded))
        if request.chunk is not None:
            texts.append(IngestedText(plan.ids[text], tokens, truncated=False, chunks=len(indices)))
        else:
            truncated = any(encoded.truncated for encoded in embedded)
            texts.append(IngestedText(plan.ids[text], tokens, truncated, result=failures.get(indices[0])))
    return texts


def _nothing_stored(plan: IngestPlan, error: WorkerError) -> IngestReport:
    whole = error.saying(_WHOLE)
    return _report_of(plan, WriteReport((), tuple(plan.rejected), failure=whole).completed(len(plan.points)))


def _report_of(plan: IngestPlan, written: WriteReport) -> IngestReport:
    rejected = (
        RejectedPoint(plan.points[rejection.index].text, plan.points[rejection.index].chunk, rejection.cause)
        for rejection in written.rejected
    )
    return IngestReport(plan.name, written.stored, written.skipped, tuple(rejected))
