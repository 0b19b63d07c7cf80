"""The copy of the points of one collection: its passes, and the comparison of the numbers of points."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor
from threading import Event
from typing import Final

from embedder import Cancelled, WorkerError
from qdrant_sink import Store, existing_ids
from qdrant_sink.copying import COPY_PAGE_POINTS, CopyPaths, PointCopy, pages
from service.operations.load_values import INTERRUPTED
from service.operations.reindex_plan import ReindexPlan
from service.operations.reindex_texts import ReindexedTexts
from service.operations.reindex_values import ReindexProgress, ReindexReport, ReindexRequest, ReindexStage

PASSES_MAX: Final = 5
"""Maximum number of passes after the first one. A further pass copies the points that were added meanwhile."""


class ReindexJob:
    """The copy of a collection into one that exists. Its methods block, and keep an error for the report.

    Args:
        request: the request.
        plan: the plan.
        source: store of the old collection.
        target: store of the new collection.
        senders: threads that send batches.
        texts: what embeds stored texts; None if all vectors are copied.
        stopping: event that ends the copy after the points that are being written.
        progress: callback from other threads; it must not raise.
    """

    def __init__(
        self,
        request: ReindexRequest,
        plan: ReindexPlan,
        *,
        source: Store,
        target: Store,
        senders: Executor,
        texts: ReindexedTexts | None,
        stopping: Event,
        progress: Callable[[ReindexProgress], None],
    ) -> None:
        self._request = request
        self._plan = plan
        self._source = source
        self._target = target
        self._texts = texts
        self._stopping = stopping
        self._progress = progress
        self._stage: ReindexStage = "copy"
        self._already = 0
        self._pruned = 0
        self._points: int | None = None
        self._stored: int | None = None
        self._failure: WorkerError | None = None
        paths = CopyPaths(
            source=source,
            collection=plan.source,
            kinds=plan.copied,
            names=plan.vectors.names,
            target=target,
            into=request.into,
            schema=plan.schema,
        )
        self._copy = PointCopy(
            paths,
            senders=senders,
            workers=request.workers,
            **({} if texts is None else {"rounds": texts.rounds}),
            pools=request.pool_colbert,
            check=self.check_running,
            observer=self._observe,
        )

    def check_running(self) -> None:
        """Raise Cancelled if the copy is to end."""
        check_running(self._stopping)

    @property
    def has_failed(self) -> bool:
        """Whether an error has ended the copy."""
        return self._failure is not None

    def fail(self, error: WorkerError) -> None:
        """End the copy with an error."""
        self._failure = self._failure or error

    def copy(self) -> None:
        """Copy all points that the new collection lacks."""
        self._observe(0)
        try:
            self._copy.run()
        except WorkerError as error:
            self.fail(error)
        self._already = self._copy.existing

    def begin_index(self) -> None:
        """Report that the graph is built."""
        self._stage = "index"
        self._observe(0)

    def catch_up(self) -> None:
        """Copy the points that were added meanwhile, and count the points of both collections."""
        self._stage = "check"
        try:
            for _ in range(PASSES_MAX):
                if not self._copy.run():
                    break
            if self._request.prune:
                self._prune()
            self._points = self._source.count(self._plan.source, patient=True)
            self._stored = self._target.count(self._request.into, patient=True)
        except WorkerError as error:
            self.fail(error)

    def report(self) -> ReindexReport:
        """The report of all points counted so far."""
        texts = self._texts
        return ReindexReport(
            self._plan.source,
            self._request.into,
            points=self._points,
            stored=self._stored,
            already=self._already,
            copied=self._copy.copied,
            rejected=self._copy.uncopied,
            without_text=0 if texts is None else texts.without_text,
            pruned=self._pruned,
            truncated=0 if texts is None else texts.truncated,
            losses=self._plan.losses,
            unfinished=tuple(self._copy.unfinished),
            failure=self._failure,
        )

    def _prune(self) -> None:
        """Delete the points of the new collection that the old one does not have."""
        for page in pages(self._target, self._request.into, {}, False, limit=COPY_PAGE_POINTS):  # noqa: FBT003
            self.check_running()
            existing = existing_ids(self._source, self._plan.source, list(page))
            surplus = [point for point in page if point not in existing]
            if surplus:
                self._pruned += self._target.delete(self._request.into, ids=surplus)

    def _observe(self, met: int) -> None:
        self._progress(ReindexProgress(self._stage, met, self._plan.state.points, self._copy.copied))


def check_running(stopping: Event) -> None:
    """Raise Cancelled if the event is set."""
    if stopping.is_set():
        raise Cancelled(INTERRUPTED)
