"""The completion operation: points that lack vectors of some kinds get them, embedded from their stored texts.

resolve -> recognise the vectors -> check the texts -> compare the model -> add the vectors -> complete, or copy ->
complete -> build the graph of the copy -> set the alias

A copy is recorded in the new collection as a load, so that no bulk load beside it finishes the collection early.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event
from typing import Any, Final

from embedder import KINDS, Embedder, Kind, NotFound, WorkerError, whereabouts
from qdrant_sink import (
    ColbertSchema,
    CollectionSchema,
    DenseSchema,
    FeatureMissing,
    Layout,
    SparseSchema,
    Store,
    VectorNames,
    default_names,
)
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.completing import (
    CompletionReport,
    check_copyable,
    completed_schema,
    copied_schema,
)
from qdrant_sink.copying import CopyPaths, PointCopy
from service.operations.collections import Collections
from service.operations.completion_job import PASSES_MAX, CompletionJob
from service.operations.completion_values import CompletionProgress, CompletionRequest
from service.operations.copy_target import target_exists
from service.operations.embed import LengthLimits
from service.operations.loads import Loads
from service.operations.model_check import ModelCheck
from service.operations.recorded_copy import RecordedCopy
from service.operations.store_access import IngestSlot, StoreAccess
from service.operations.stored_texts import check_texts, form_of_texts
from service.operations.unended_loads import check_loads_complete
from service.validation import invalid_field

log = logging.getLogger(__name__)

COPY_SUFFIX: Final = "-complete"
"""What follows the name of a collection in the default name of its copy."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a request leads to.

    Attributes:
        source: the collection that the request's name leads to.
        schema: schema of the completed collection.
        kinds_before: kinds of vectors that the collection has.
        state: the collection before the completion.
    """

    source: str
    schema: CollectionSchema
    kinds_before: tuple[Kind, ...]
    state: CollectionState


class Completion:
    """The completion operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        store: access to the store.
        collections: the collections of the worker.
        model_check: check of the model of collections.
        limits: default limits on the lengths of texts.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        model_check: ModelCheck,
        limits: LengthLimits,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._collections = collections
        self._model_check = model_check
        self._max_length = limits.passage

    async def __call__(
        self,
        request: CompletionRequest,
        *,
        progress: Callable[[CompletionProgress], None] = lambda _progress: None,
        stopping: Event | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> CompletionReport:
        """Complete a collection.

        Args:
            request: the request.
            progress: callback from other threads when points are done or copied.
            stopping: event that ends the completion after the points that are being embedded.
            say: takes messages about other loads into the new collection, and about the alias.

        Returns:
            The report, with the error that ended the completion early, if any. The same request continues it.

        Raises:
            InvalidRequest: the request is invalid, or the collection has no texts where they should be.
            SchemaMismatch: the name of a vector to be added belongs to another one.
            ModelMismatch: the dense vectors, or those of a kind to complete, are those of another model.
            WorkerError: the collection does not exist, the store fails before the first point, or there are too many
                ingests.
        """
        name = self._collections.named(request.collection, "collection")
        if request.into is not None:
            self._collections.named(request.into, "into")
        with self._store.ingest_slot() as slot:
            plan = await slot.run(lambda: self._plan(request, name), stage="store")
            compared = self._comparable(plan)
            await self._model_check.admit(name, compared, plan.schema.text_key, ("dense", *request.kinds))
            into = await slot.run(lambda: self._prepared(request, plan, name), stage="store")
            alias = None if into is None else await self._check_alias(request, plan, into, name)
            run = _Run(self, request, plan, into=into, progress=progress, stopping=stopping or Event())
            try:
                if into is None or alias is None:
                    report = await slot.run(run.run, stage="ingest")
                else:
                    report = await self._copied(run, slot, into, alias, say)
            except BaseException:
                run.stopping.set()
                raise
        log.info(
            "completion finished: %d of %d points completed, %d were complete, %d without a text, %d rejected",
            report.completed,
            report.points,
            report.already,
            report.without_text,
            report.rejected,
        )
        return report

    async def _copied(
        self, run: _Run, slot: IngestSlot, into: str, alias: str, say: Callable[[str], None]
    ) -> CompletionReport:
        """Copy, complete the copy, build its graph, and set the alias unless another load has lines to store."""
        plan = run.plan
        await slot.run(lambda: self._create(plan, into), stage="store")
        copy = RecordedCopy(
            Loads(self._store, self._collections.of_schema(copied_schema(plan.schema, plan.state))),
            "completion",
            plan.source,
            into,
            alias,
            say=say,
            stopping=run.stopping,
            lost=run.end_early,
        )
        async with copy:
            report = await slot.run(run.run, stage="ingest")
            if report.failure is not None:
                return report
            try:
                end = await copy.finish(complete=not report.uncopied, rejected=report.uncopied)
            except WorkerError as error:
                return replace(report, failure=error)
        if alias in end.aliases:
            return replace(report, alias=alias)
        return replace(report, waits_for=copy.others_of(end))

    async def _check_alias(self, request: CompletionRequest, plan: _Plan, into: str, name: str) -> str:
        """Return the alias that is to lead to the new collection, after checking that it can."""
        self._collections.named(into, "into")
        alias = request.alias or (name if name != plan.source else None)
        if alias is None:
            raise invalid_field(
                "alias",
                f"is required: the points are copied into the new collection {into!r}, and no alias can have the name "
                f"of the collection {name!r} itself",
            )
        await self._collections.check_alias(alias, into)
        previous = await self._store.patient_call(lambda: self._store.opened().collection_of(alias, patient=True))
        if previous not in (plan.source, into):
            source = plan.source
            await self._store.patient_call(lambda: check_loads_complete(self._store.opened(), source, "collection"))
        return alias

    def _plan(self, request: CompletionRequest, name: str) -> _Plan:
        """Resolve the collection, recognise its vectors, and check that it has texts. Nothing is changed."""
        store = self._store.opened()
        source = store.collection_of(name, patient=True)
        if source is None:
            raise NotFound(f"collection {name!r} does not exist")
        state = store.describe(source)
        form = form_of_texts(self._collections.catalogue, source, request.text_key)
        schema = replace(
            completed_schema(source, self._wanted(form.layout), state.description, request.kinds),
            layout=form.layout,
            text_key=form.text_key or self._collections.wanted.text_key,
        )
        kinds_before = tuple(kind for kind in schema.kinds if schema.names.of(kind) in state.description.vectors)
        check_texts(store, source, schema)
        return _Plan(source, schema, kinds_before, state)

    def _comparable(self, plan: _Plan) -> CollectionSchema | None:
        """The schema of the vectors that may be those of the model: the collection has them, in the model's size."""
        sizes = {"dense": self._embedder.hidden_size, "colbert": self._embedder.colbert_size}
        parts: dict[str, Any] = dict.fromkeys(KINDS)
        for kind in plan.kinds_before:
            if plan.state.description.vectors[plan.schema.names.of(kind)].size == sizes.get(kind):
                parts[kind] = getattr(plan.schema, kind)
        return replace(plan.schema, **parts) if any(parts.values()) else None

    def _prepared(self, request: CompletionRequest, plan: _Plan, name: str) -> str | None:
        """Add the vectors that the collection lacks, or return the collection to copy into if that is needed."""
        store, source, into = self._store.opened(), plan.source, request.into
        if into == source != name:  # the alias was moved by an earlier run
            into = None
        if into is None:
            try:
                store.add_vectors(source, plan.schema, request.kinds)
            except FeatureMissing as error:
                into = f"{source}{COPY_SUFFIX}"
                log.warning("%s; copying collection %r into %r instead", error.message, source, into)
        if into is not None:
            self._check_target(store, plan, into)
        return into

    def _check_target(self, store: Store, plan: _Plan, into: str) -> None:
        """Check that a collection is new, or that an earlier run has begun to copy into it."""
        if not target_exists(store, into, store, plan.source):
            check_copyable(plan.source, plan.schema, plan.state.description)

    def _wanted(self, layout: Layout) -> CollectionSchema:
        """The schema of the config with all three kinds, so that a kind which it leaves out can be added.

        Vectors that the config does not name have the names of the collection's layout.
        """
        schema = self._collections.wanted
        defaults = default_names(layout, KINDS)
        names = {
            kind: (schema.names if f"vectorNames.{kind}" in schema.explicit else defaults).of(kind) for kind in KINDS
        }
        return replace(
            schema,
            names=VectorNames(**names),
            dense=schema.dense or DenseSchema(self._embedder.hidden_size),
            sparse=schema.sparse or SparseSchema(),
            colbert=schema.colbert or ColbertSchema(self._embedder.colbert_size),
        )

    def job(
        self,
        collection: str,
        request: CompletionRequest,
        schema: CollectionSchema,
        stopping: Event,
        observer: Callable[[int], None],
    ) -> CompletionJob:
        """Create the job that completes the points of a collection."""
        return CompletionJob(
            collection,
            schema,
            request.kinds,
            embedder=self._embedder,
            store=self._store.opened(),
            senders=self._store.senders,
            max_length=self._max_length,
            pool_colbert=request.pool_colbert,
            stopping=stopping,
            observer=observer,
        )

    def _create(self, plan: _Plan, into: str) -> None:
        """Create the new collection, or verify it, with the payload indexes of the old one."""
        store = self._store.opened()
        store.ensure(into, copied_schema(plan.schema, plan.state))
        for key, index in plan.state.description.payload_indexes.items():
            store.ensure_index(into, key, index)

    def copy(self, plan: _Plan, into: str, check: Callable[[], None]) -> PointCopy:
        """The copy of the points of the old collection."""
        store = self._store.opened()
        schema = copied_schema(plan.schema, plan.state)
        paths = CopyPaths(
            source=store,
            collection=plan.source,
            kinds=plan.kinds_before,
            names=schema.names,
            target=store,
            into=into,
            schema=schema,
        )
        return PointCopy(paths, senders=self._store.senders, check=check)


class _Run:
    """The part of a completion that blocks."""

    def __init__(
        self,
        operation: Completion,
        request: CompletionRequest,
        plan: _Plan,
        *,
        into: str | None,
        progress: Callable[[CompletionProgress], None],
        stopping: Event,
    ) -> None:
        self._operation = operation
        self._request = request
        self.plan = plan
        self._into = into
        self._progress = progress
        self.stopping = stopping
        self._copied: int | None = None
        self._lost: WorkerError | None = None

    def end_early(self, error: WorkerError) -> None:
        """End with an error."""
        self._lost = error
        self.stopping.set()

    def run(self) -> CompletionReport:
        """Complete in place, or copy and complete the copy."""
        self._observe(0)
        if self._into is None:
            return self._job(self.plan.source).run()
        return self._copy_and_complete(self._into)

    def _copy_and_complete(self, into: str) -> CompletionReport:
        """Copy and complete, again for the points that were written into the old collection meanwhile."""
        job = self._job(into)
        report = CompletionReport(into)
        copy = self._operation.copy(self.plan, into, job.check_running)
        try:
            for number in range(PASSES_MAX + 1):
                copied = copy.run()
                self._copied = copy.copied
                if number and not copied:
                    break
                if number == PASSES_MAX:
                    report = replace(report, pending=report.pending + copied)
                    break
                report = _continued(report, job.run(), first=not number)
                if report.failure is not None:
                    break
        except WorkerError as error:
            report = replace(report, failure=error)
        return replace(
            report,
            failure=self._lost or report.failure,
            copied=copy.copied,
            uncopied=copy.uncopied,
            unfinished=(*report.unfinished, *copy.unfinished),
        )

    def _job(self, collection: str) -> CompletionJob:
        return self._operation.job(collection, self._request, self.plan.schema, self.stopping, self._observe)

    def _observe(self, done: int) -> None:
        """Report progress. If the callback fails, the completion continues without it."""
        try:
            self._progress(CompletionProgress(done, self.plan.state.points, self._copied))
        except Exception as error:  # noqa: BLE001 - the callback is the caller's code
            self._progress = lambda _progress: None
            log.warning("the progress of a completion could not be reported: %s", whereabouts(error))


def _continued(report: CompletionReport, latest: CompletionReport, *, first: bool) -> CompletionReport:
    """Join the reports of two runs over a copy: what was completed adds up, and the latest says what was not."""
    if first:
        return latest
    return replace(
        latest,
        already=report.already,
        completed=report.completed + latest.completed,
        vanished=report.vanished + latest.vanished,
        truncated=report.truncated + latest.truncated,
    )
