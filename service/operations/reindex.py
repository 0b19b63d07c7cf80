"""The re-index operation: the points of a collection are copied into a new one with another schema.

resolve -> plan the schema -> check the texts, the new collection, the alias and the model -> create -> copy -> build
the graph -> copy what was added meanwhile -> compare the numbers of points -> set the alias

The copy is recorded in the new collection as a load, so that no bulk load beside it finishes the collection early.

Vectors are copied as they are stored, or embedded anew from the stored texts. The old collection is only read.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from threading import Event

from embedder import KINDS, NotFound, WorkerError
from qdrant_sink import Catalogue, Store
from qdrant_sink.copying import kept_indexes
from service.operations.collections import Collections
from service.operations.copy_target import target_exists
from service.operations.load_values import described
from service.operations.loads import Loads
from service.operations.model_check import ModelCheck
from service.operations.previous_collection import PreviousCollections
from service.operations.recorded_copy import RecordedCopy
from service.operations.reindex_job import ReindexJob, check_running
from service.operations.reindex_model import ReindexModel
from service.operations.reindex_plan import ReindexPlan, ReindexPlanner
from service.operations.reindex_texts import ReindexedTexts
from service.operations.reindex_values import ReindexProgress, ReindexReport, ReindexRequest
from service.operations.store_access import StoreAccess
from service.operations.stored_texts import check_texts
from service.operations.unended_loads import check_loads_complete, incomplete_loads
from service.settings import Settings
from service.validation import invalid_field

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Names:
    """What the names of a request lead to.

    Attributes:
        source: the old collection.
        alias: alias that is to lead to the new collection; None for no alias.
        previous: collection to which the alias leads; None if it does not exist.
    """

    source: str
    alias: str | None
    previous: str | None


class Reindex:
    """The re-index operation. Usable from any event loop.

    Args:
        settings: the settings, whose collection config describes new collections.
        target: access to the store of the new collection.
        source: access to the store of the old collection; None for the same store.
        model: the model; None if nothing can be embedded.

    Attributes:
        previous: the way back to the old collection, and its end.
    """

    def __init__(
        self,
        settings: Settings,
        target: StoreAccess,
        *,
        source: StoreAccess | None = None,
        model: ReindexModel | None = None,
    ) -> None:
        self._settings = settings
        self._target = target
        self._source = target if source is None else source
        self._model = model
        # Sizes are those of the old collection or of the model, and are filled in by the plan.
        wanted = settings.qdrant_collection_config.schema_for(1, 1)
        self._collections = Collections(settings, target, wanted)
        self.previous = PreviousCollections(self._collections, target, self._source)
        catalogue = Catalogue(self._source.opened, wanted)
        self._planner = ReindexPlanner(settings.qdrant_collection_config, catalogue, model)

    @classmethod
    def without_model(cls, settings: Settings) -> Reindex:
        """Create the operation over the store of the settings, to copy vectors as they are."""
        return cls(settings, StoreAccess(settings, None, lambda: None))

    def reading(self, store: Store) -> Reindex:
        """Return the operation over another store of the old collection. Its `close` closes that store alone."""
        source = StoreAccess(self._settings, store, lambda: None)
        model = self._model
        if model is not None:
            enabled = self._settings.qdrant_collection_config.verify_model
            model = replace(model, check=ModelCheck(model.embedder, source, model.identity, enabled=enabled))
        return Reindex(self._settings, self._target, source=source, model=model)

    def close(self) -> None:
        """Release the store of the old collection. Idempotent."""
        self._source.close()
        if self._model is not None and self._source is not self._target:
            self._model.check.close()

    async def __call__(
        self,
        request: ReindexRequest,
        *,
        progress: Callable[[ReindexProgress], None] = lambda _progress: None,
        stopping: Event | None = None,
        say: Callable[[str], None] = log.warning,
    ) -> ReindexReport:
        """Copy a collection.

        Args:
            request: the request.
            progress: callback from other threads when points were met or copied; it must not raise.
            stopping: event that ends the copy after the points that are being written.
            say: takes messages about other loads into the new collection, and about the alias.

        Returns:
            The report, with the error that ended the copy early, if any. The same request continues it.

        Raises:
            InvalidRequest: the request is invalid, a vector would be lost, the new collection has other points, or the
                alias would move although a load into the old collection, which it does not lead to, is not finished.
            SchemaMismatch: the new collection exists with another schema.
            ModelMismatch: vectors are to be embedded beside copied ones, and those are another model's.
            WorkerError: the collection does not exist, or a store fails before the first point.
        """
        name = self._collections.named(request.collection, "collection")
        self._collections.named(request.into, "into")
        stopping = Event() if stopping is None else stopping
        with self._target.ingest_slot() as slot:
            names = await slot.run(lambda: self._names(request, name), stage="store")
            if names.alias is not None and names.previous == request.into and not request.again:
                return await slot.run(lambda: self._finished(request, names), stage="store")
            plan = await slot.run(lambda: self._plan(request, names), stage="store")
            await slot.run(lambda: self._warn(names.source, request.into, say), stage="store")
            if names.alias is not None:
                await self._collections.check_alias(names.alias, request.into)
            if self._model is not None and request.embed and plan.copied:
                compared = plan.comparable(self._model)
                await self._model.check.admit(name, compared, plan.schema.text_key, ("dense", *plan.copied))
            await slot.run(lambda: self._create(request, plan), stage="store")
            job = self._job(request, plan, progress, stopping)
            copy = RecordedCopy(
                Loads(self._target, Collections(self._settings, self._target, plan.schema)),
                "reindex",
                plan.source,
                request.into,
                names.alias,
                allow_empty=request.allow_empty,
                say=say,
                stopping=stopping,
                lost=lambda error: _end_early(job, error, stopping),
            )
            async with copy:
                try:
                    await slot.run(job.copy, stage="ingest")
                    if not job.has_failed:
                        job.begin_index()
                        await self._build_index(copy, job)
                    if not job.has_failed:
                        await slot.run(job.catch_up, stage="ingest")
                except BaseException:
                    stopping.set()
                    raise
                report = job.report()
                if report.failure is None:
                    report = await self._ended(copy, names, request, report)
            if report.alias is not None:
                points = await slot.run(lambda: self._source.opened().count(plan.source, patient=True), stage="store")
                report = replace(report, late=max(0, points - (report.points or 0)))
        log.info(
            "re-index finished: %d points copied, %d were copied before, %d rejected",
            report.copied,
            report.already,
            report.rejected,
        )
        return report

    def _names(self, request: ReindexRequest, name: str) -> _Names:
        store, target = self._source.opened(), self._target.opened()
        source = store.collection_of(name, patient=True)
        if source is None:
            raise NotFound(f"collection {name!r} does not exist")
        alias = request.alias or (name if name != source and store is target else None)
        return _Names(source, alias, None if alias is None else target.aliases().get(alias))

    def _finished(self, request: ReindexRequest, names: _Names) -> ReindexReport:
        """The report of a copy that was finished by an earlier run."""
        stored = self._target.opened().count(request.into, patient=True)
        return ReindexReport(names.source, request.into, stored=stored, is_finished=True, alias=names.alias)

    def _plan(self, request: ReindexRequest, names: _Names) -> ReindexPlan:
        """Plan the copy, and check the texts and the new collection. Nothing is changed."""
        store, target = self._source.opened(), self._target.opened()
        if names.alias is not None and names.previous not in (names.source, request.into):
            check_loads_complete(store, names.source, "collection")
        plan = self._planner.plan(request, names.source, store.describe(names.source))
        self._planner.check_present(request, plan, store)
        if request.embed:
            check_texts(store, plan.source, plan.schema)
        if target_exists(target, request.into, store, plan.source):
            begun = target.describe(request.into).model
            model = plan.schema.model
            if begun is not None and (model is None or not begun.has_name_of(model)):
                raise invalid_field(
                    "into",
                    f"must be a new collection or a copy with the same model, and {request.into!r} was made for "
                    f"{begun.shown!r}; give another name",
                )
        return plan

    def _warn(self, source: str, into: str, say: Callable[[str], None]) -> None:
        """Say that lines of the old collection are missing, or are not compared."""
        loads = incomplete_loads(self._source.opened(), source)
        if loads:
            more = "" if len(loads) == 1 else f" and {len(loads) - 1} more"
            say(
                f"{described(loads[0])}{more} into {source!r} is not finished: lines that it stores after this copy "
                f"are not in {into!r}"
            )

    def _create(self, request: ReindexRequest, plan: ReindexPlan) -> None:
        """Create the new collection, or verify it, with the payload indexes of both."""
        target = self._target.opened()
        target.ensure(request.into, plan.schema)
        for key, index in kept_indexes(plan.schema, plan.state.description).items():
            target.ensure_index(request.into, key, index)

    def _job(
        self,
        request: ReindexRequest,
        plan: ReindexPlan,
        progress: Callable[[ReindexProgress], None],
        stopping: Event,
    ) -> ReindexJob:
        texts = None
        if self._model is not None and request.embed:
            texts = ReindexedTexts(
                self._model.embedder,
                plan.schema,
                tuple(kind for kind in KINDS if kind in request.embed),
                max_length=self._model.max_length,
                pools=request.pool_colbert,
                stopping=stopping,
                check_running=lambda: check_running(stopping),
            )
        return ReindexJob(
            request,
            plan,
            source=self._source.opened(),
            target=self._target.opened(),
            senders=self._target.senders,
            texts=texts,
            stopping=stopping,
            progress=progress,
        )

    async def _build_index(self, copy: RecordedCopy, job: ReindexJob) -> None:
        """Build the graph. An interruption leaves it to the next run."""
        try:
            await copy.build_index()
        except WorkerError as error:
            job.fail(error)

    async def _ended(
        self, copy: RecordedCopy, names: _Names, request: ReindexRequest, report: ReindexReport
    ) -> ReindexReport:
        """End the copy, which moves the alias if the new collection can take the place of the old one."""
        try:
            end = await copy.finish(complete=_is_all_there(request, report), rejected=report.rejected)
        except WorkerError as error:
            return replace(report, failure=error)
        if names.alias is not None and names.alias in end.aliases:
            return replace(report, alias=names.alias, previous=names.previous)
        if names.alias is None:
            return report
        return replace(report, alias_kept=names.alias in end.kept, waits_for=copy.others_of(end))


def _end_early(job: ReindexJob, error: WorkerError, stopping: Event) -> None:
    job.fail(error)
    stopping.set()


def _is_all_there(request: ReindexRequest, report: ReindexReport) -> bool:
    """Whether the new collection can take the place of the old one."""
    is_compared = report.failure is None and report.points is not None and not report.difference
    return is_compared and (request.allow_rejected or not report.rejected)
