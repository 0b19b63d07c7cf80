"""What a load does to its collection before the first row and after the last: record, schema, graph and alias."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread
from typing import Any, TypeVar

from embedder import WorkerError
from service.bulk import LoadOptions, LoadReport
from service.bulk.line_index import Standing
from service.operations import LoadRequest, OngoingLoad, VectorOperations, VectorSource
from service.operations.load_content import content_of
from service.operations.load_values import described
from service.ray_data.arguments import in_python
from service.ray_data.outcome import Outcome
from service.settings import Settings

T = TypeVar("T")


class CollectionLoad:
    """A load in the driver: it begins, gives signs of life while others store rows, and ends. Blocks.

    Args:
        settings: the settings.
        source: what the vectors are.
        options: the options of the load.
        say: prints a message.
        max_length: tokens beyond which a text without chunks is truncated; None for rows that have vectors.

    Attributes:
        lost: why the load must not go on, because its record is gone; None if it may.
    """

    def __init__(
        self,
        settings: Settings,
        source: VectorSource,
        options: LoadOptions,
        say: Callable[[str], None],
        *,
        max_length: int | None = None,
    ) -> None:
        self._core = VectorOperations(settings, source)
        self._options = options
        self._say = say
        self._content = content_of(
            options.request, options.scope, kinds=source.kinds, max_length=max_length, read_by=options.read_by
        )
        self._load: OngoingLoad | None = None
        self._beating: asyncio.Task[None] | None = None
        self._stopping = asyncio.Event()
        self._ended = asyncio.Event()
        self.lost: str | None = None
        # The thread of a notebook has an event loop already, and signs of life need one that always runs.
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, name="load", daemon=True)
        self._thread.start()

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        try:
            return asyncio.run_coroutine_threadsafe(call, self._loop).result()
        except WorkerError as error:
            raise error.saying(in_python(error.message)) from None

    def begin(self) -> None:
        """Check the options, create or verify the collection, record the load, and defer the graph.

        Raises:
            WorkerError: an option is wrong, the collection has another schema, another run of the load is under way,
                or the store fails.
        """
        self._run(self._begin())

    async def _begin(self) -> None:
        options, collections = self._options, self._core.collections
        self._core.ingest.check(options.request)
        if options.alias is not None:
            await collections.check_alias(options.alias, options.collection)
        await self._core.ingest.check_model(options.collection)
        request = LoadRequest(
            options.collection,
            options.load_id,
            options.alias,
            options.defer_index,
            content=self._content,
            keeps=options.request.insert_only,
        )
        load = await self._core.loads.load(request, self._say)
        await load.begin(self._stopping)
        self._load = load
        if load.is_deferred:
            self._say("the HNSW graph will be built at the end")
        self._beating = asyncio.create_task(self._beat(load))

    async def _beat(self, load: OngoingLoad) -> None:
        def lost(error: WorkerError) -> None:
            self.lost = error.message

        async with load.alive(lost):
            await self._ended.wait()

    async def _end_signs(self) -> None:
        self._ended.set()
        if self._beating is not None:
            await self._beating

    def end(self, outcome: Outcome, standing: Standing) -> LoadReport:
        """End the load: the last of several builds the graph and sets the alias. An error becomes the `failure`.

        Args:
            outcome: what became of all rows.
            standing: how the stored rows stand to the points of the collection.
        """
        keeps = self._options.request.insert_only
        report = LoadReport(
            lines=outcome.rows,
            stored=outcome.stored,
            skipped=outcome.skipped,
            rejected=outcome.rejected,
            tokens=outcome.tokens,
            points=standing.points,
            repeated=standing.repeated,
            replaced=0 if keeps else standing.lost,
            differing=standing.lost if keeps else 0,
            allow_lost=self._options.allow_lost,
            failure=outcome.failure or self.lost,
            alias=None if self._options.alias is None else False,
        )
        try:
            self._run(self._end(report))
        except WorkerError as error:
            report.failure = report.failure or error.message
        return report

    async def _end(self, report: LoadReport) -> None:
        await self._end_signs()
        load, options = self._load, self._options
        if load is None:
            return
        if report.failure is not None:
            if load.is_deferred:
                self._say("the HNSW graph is not built yet, so searches compare the query with every point")
            with suppress(WorkerError):  # then the next run waits for signs of life
                await load.stop()
            return
        self._say("all rows are stored or rejected; building the index unless another load is under way")
        end = await load.end(
            self._stopping,
            complete=(options.allow_rejected or not report.rejected) and not report.lost,
            rejected=report.rejected + report.lost,
            alias=options.alias if report.stored else None,
        )
        for other in end.others:
            if other.load != load.load_id:
                self._say(f"{described(other)} is under way, or lacks lines: the last to end finishes the collection")
        if options.alias is not None:
            report.alias = options.alias in end.aliases
            if not report.alias:
                lost = "not all rows are stored as given" if report.lost else "not all points of all loads are stored"
                self._say(f"the alias is not set: {lost}")

    def close(self) -> None:
        """Release the store. Idempotent."""
        if self._loop.is_closed():
            return
        self._run(self._end_signs())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        self._core.close()
