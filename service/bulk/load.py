"""The bulk load: it ingests any number of lines into a collection, in memory that does not grow with their number."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from threading import Thread
from typing import BinaryIO, Final

from embedder import Internal, InvalidRequest, Overloaded, WorkerError, whereabouts
from embedder.threads import Threads
from qdrant_sink.loading import Shard
from service.bulk.account import Account
from service.bulk.backend import Backend, LoadRun
from service.bulk.end_messages import end_messages
from service.bulk.handover import hand_over
from service.bulk.line import BadLine, InputError, Line
from service.bulk.line_batches import BATCH_MAX_TEXTS, LineBatch, batches
from service.bulk.line_index import IndexFullError
from service.bulk.line_ingest import line_ingest
from service.bulk.rejections import Rejections
from service.bulk.report import LoadReport
from service.bulk.shard_lines import ShardLines
from service.operations import (
    IngestFailed,
    IngestReport,
    IngestRequest,
    LoadCounts,
    LoadEnd,
    LoadRequest,
    Operations,
    VectorOperations,
)
from service.operations.load_values import INTERRUPTED
from service.wire.errors import cause_of
from service.wire.shared_fields import is_about_all_texts

log = logging.getLogger(__name__)

CONCURRENT_BATCHES_MAX: Final = 3
"""Batches that are ingested concurrently, so that the model never waits for the end of a batch."""

OVERLOADED_PAUSE_S: Final = 1.0
"""Pause before a batch is retried for which the queue of the model was full."""

STANDARD_INPUT_ID: Final = "standard-input"
"""Default id of a load from the standard input."""

UNFINISHED: Final = "not all loads are complete, so neither the graph is built nor an alias moved"


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """The options of a load.

    Attributes:
        request: the request of every batch, without its texts, ids and payloads.
        collection: name of the collection.
        alias: alias that is set to the collection when it is complete and indexed, and from which ids are derived; None
            for no alias.
        allow_rejected: set the alias even if lines were rejected.
        allow_lost: set the alias even if lines were replaced by later ones or, with `insert_only`, differ from points
            that were kept.
        defer_index: defer the HNSW graph even if the collection has points.
        load_id: id of the load, by which its next run and its operator know it.
        shard: load only the lines of this shard, and leave the graph and the alias to the finish of all shards; None to
            load all lines.
        read_by: options by which the lines are read from their files, with their names, as the record of the load keeps
            them.
    """

    request: IngestRequest
    collection: str
    alias: str | None = None
    allow_rejected: bool = False
    allow_lost: bool = False
    defer_index: bool = False
    load_id: str = STANDARD_INPUT_ID
    shard: Shard | None = None
    read_by: Mapping[str, object] = field(default_factory=dict)

    @property
    def scope(self) -> str:
        """The name from which ids are derived."""
        return self.alias or self.collection

    @property
    def moves_alias(self) -> bool:
        """Whether this load, or the last of several, moves the alias."""
        return self.alias is not None and self.shard is None


class BulkLoad:
    """A bulk load.

    Args:
        core: the operations; those of given vectors store lines that have their vectors, and an endpoint embeds and
            stores lines elsewhere.
        options: the options of the load.
        rejects: file for rejections, one JSON object per line; None prints the first ones.
        say: prints a message.
        rejected_lines: file for the rejected lines themselves; None for none.
        progress: called with the report after each batch.
        batch_texts: maximum number of lines in a batch.
        concurrent_batches: maximum number of batches that are ingested concurrently.
        overloaded_pause_s: pause before a batch is retried for which the queue of the model was full.
    """

    def __init__(
        self,
        core: Operations | VectorOperations | Backend,
        options: LoadOptions,
        rejects: BinaryIO | None,
        say: Callable[[str], None],
        *,
        rejected_lines: BinaryIO | None = None,
        progress: Callable[[LoadReport], None] = lambda _report: None,
        batch_texts: int = BATCH_MAX_TEXTS,
        concurrent_batches: int = CONCURRENT_BATCHES_MAX,
        overloaded_pause_s: float = OVERLOADED_PAUSE_S,
    ) -> None:
        self._core = core
        self._ingest_lines = line_ingest(core)
        self._options = options
        self._say = say
        self._progress = progress
        self._batch_texts = batch_texts
        self._concurrent_batches = concurrent_batches
        self._overloaded_pause_s = overloaded_pause_s
        alias = False if options.moves_alias else None
        self.report = LoadReport(alias=alias, allow_lost=options.allow_lost, shard=options.shard)
        rejections = Rejections(rejects, rejected_lines, say, self._fail, self.report)
        self._account = Account(self.report, rejections, options.scope, keeps=options.request.insert_only)
        self._shard_lines = ShardLines(options.shard, options.scope)
        self._accounting = Threads("account", 1)
        self._stopping = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._running: dict[asyncio.Task[None], LineBatch] = {}
        self._deferred = False
        self._input_known = asyncio.Event()
        self._has_documents = False
        self._input_failure: str | None = None

    def stop(self) -> None:
        """Start no further batch. Thread-safe."""
        self._call_in_loop(self._stopping.set)

    def interrupt(self) -> None:
        """Start no further batch, and print what is still running; for signal handlers."""
        self._call_in_loop(self._interrupted)

    def _interrupted(self) -> None:
        self._stopping.set()
        texts = sum(len(batch.lines) for batch in self._running.values())
        if texts:
            self._say(f"stopping after the running batches ({texts} lines at most); a second signal stops immediately")

    def _call_in_loop(self, call: Callable[[], None]) -> None:
        if self._loop is None:
            call()
        else:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(call)

    def run(self, lines: Iterable[Line | BadLine]) -> LoadReport:
        """Load all lines, build the index and set the alias. An error becomes the report's `failure`.

        Without a document no collection is created.
        """
        try:
            asyncio.run(self._run(lines))
        except WorkerError as error:
            self.report.failure = error.message
        finally:
            self._account.close()
        if self._deferred:
            builder = "--finish" if self._options.shard else "this load, or another into the collection,"
            self._say(
                f"the HNSW graph is not built yet, so searches compare the query with every point; {builder} builds it "
                "at its end"
            )
        return self.report

    async def _run(self, lines: Iterable[Line | BadLine]) -> None:
        self._loop = asyncio.get_running_loop()
        options, collections = self._options, self._core.collections
        await self._ingest_lines.check(options.request)
        if options.alias is not None:
            await collections.check_alias(options.alias, options.collection)
        read: asyncio.Queue[LineBatch | None] = asyncio.Queue(maxsize=1)
        Thread(target=self._read, args=(lines, read), name="lines", daemon=True).start()  # a pipe may never end
        await self._first_of(self._input_known, self._stopping)
        # Input without a document leaves no new collection behind.
        is_needed = self.report.failure is None and (
            self._has_documents or (options.shard is None and await collections.exists(options.collection))
        )
        load = await self._core.loads.load(self._load_request, self._say) if is_needed else None
        if load is not None and self._has_documents and await load.begin(self._stopping):
            self._deferred = load.is_deferred
            if self._deferred:
                when = "at the end" if options.shard is None else "by --finish"
                self._say(f"the HNSW graph will be built {when}")
            async with load.alive(lambda error: self._fail(error.message)):
                await self._ingest_all(read)
                await self._finish_account()
        else:
            await self._finish_account()
        if self._input_failure is not None:
            self._fail(self._input_failure)
        if self.report.failure is None and self._stopping.is_set():
            self.report.failure = INTERRUPTED
        if self.report.failure is not None:
            if load is not None and self._has_documents:
                await load.stop()
            return
        end = None if load is None else await self._end(load)
        if end is not None and end.outcome == "stopped":
            self.report.failure = INTERRUPTED
            return
        self._deferred = False
        if options.moves_alias:
            self.report.alias = end is not None and options.alias in end.aliases
            if self._lacking is not None:
                self._say(f"the alias is not set: {self._lacking}")

    @property
    def _load_request(self) -> LoadRequest:
        options = self._options
        return LoadRequest(
            options.collection,
            options.load_id,
            options.alias,
            options.defer_index,
            has_lines=self._has_documents,
            shard=options.shard,
            content=self._ingest_lines.content(options.request, options.scope, options.read_by),
            keeps=options.request.insert_only,
        )

    async def _end(self, load: LoadRun) -> LoadEnd:
        """End the load, and finish the collection if it is the last."""
        options, report = self._options, self.report
        if options.shard is None:
            self._say("all lines are ingested; building the index unless another load is under way")
        end = await load.end(
            self._stopping,
            complete=(options.allow_rejected or not report.rejected) and not report.lost,
            rejected=report.rejected + report.lost,
            alias=options.alias if report.stored or options.shard is not None else None,
            counts=LoadCounts(self._shard_lines.read, report.lines, report.points),
        )
        if end.outcome == "unfinished":
            report.failure = UNFINISHED
        if end.outcome == "blocked" and report.stored and report.rejected:
            self._say(f"load the corrected lines with --load-id {load.load_id}")
        if options.shard is not None:
            self._say(f"shard {options.shard} has ended; when all have, --finish builds the index and moves the alias")
            return end
        for text in end_messages(end, load.load_id, options.alias):
            self._say(text)
        return end

    @property
    def _lacking(self) -> str | None:
        """Why the lines of this load keep the alias where it is; None if they do not."""
        report = self.report
        if not report.lines:
            return "no line was read"
        if not report.stored or (report.rejected and not self._options.allow_rejected):
            return "not all points are stored"
        return "not all lines are stored as given" if report.lost else None

    async def _finish_account(self) -> None:
        try:
            await self._accounting.run(self._account.finish)
        except IndexFullError as error:
            self._fail(str(error))

    async def _ingest_all(self, read: asyncio.Queue[LineBatch | None]) -> None:
        stopping = asyncio.create_task(self._stopping.wait())
        running = self._running
        try:
            while not self._ending:
                next_batch = asyncio.create_task(read.get())
                await asyncio.wait({next_batch, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if not next_batch.done():
                    next_batch.cancel()
                    break
                batch = next_batch.result()
                if batch is None:
                    break
                # Lines of the same point must be stored in their order.
                while len(running) >= self._concurrent_batches or any(
                    batch.keys & other.keys for other in running.values()
                ):
                    done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                    for task in done:
                        del running[task]
                if not self._ending:
                    self.report.worked_from = self.report.worked_from or time.monotonic()
                    running[asyncio.create_task(self._ingest_batch(batch.lines))] = batch
        finally:
            stopping.cancel()
            await asyncio.gather(*running)
            running.clear()

    def _read(self, lines: Iterable[Line | BadLine], read: asyncio.Queue[LineBatch | None]) -> None:
        """Read lines into batches, in a thread of its own, so that a slow pipe does not delay complete batches."""
        loop = self._loop
        if loop is None:
            return

        try:
            found = batches(self._documents(lines), self._options.scope, max_texts=self._batch_texts)
            hand_over(chain(found, (None,)), read, loop)
        except Exception as error:  # noqa: BLE001 - otherwise the load would wait forever
            self._fail_unexpectedly(error)
        finally:
            self._call_in_loop(self._input_known.set)

    def _documents(self, lines: Iterable[Line | BadLine]) -> Iterator[Line]:
        """The lines that are documents. The others are rejected. What was read before a wrong file is stored."""
        try:
            for line in lines:
                is_mine = self._shard_lines.has(line)
                self.report.read = self._shard_lines.read
                if isinstance(line, BadLine):
                    if is_mine:
                        self._account.no_document(line)
                    continue
                if not self._has_documents:
                    self._has_documents = True
                    self._call_in_loop(self._input_known.set)
                if is_mine:
                    yield line
        except InputError as error:
            self._input_failure = str(error)

    async def _ingest_batch(self, lines: Sequence[Line]) -> None:
        """Ingest a batch. An unexpected error becomes the failure of the load."""
        try:
            await self._ingest(lines)
        except IndexFullError as error:
            self._fail(str(error))
        except Exception as error:  # noqa: BLE001 - otherwise the batch would be missing from the report
            self._fail_unexpectedly(error)

    async def _ingest(self, lines: Sequence[Line]) -> None:
        failure, report, tokens = await self._try_ingest(lines)
        while isinstance(failure, Overloaded):
            if await self._stops_within(self._overloaded_pause_s):
                return
            failure, report, tokens = await self._try_ingest(lines)
        if isinstance(failure, InvalidRequest) and is_about_all_texts(failure.message):
            self._fail(failure.message)
            return
        if isinstance(failure, InvalidRequest) and len(lines) > 1:
            middle = len(lines) // 2  # find the invalid line, and ingest the others
            await self._ingest(lines[:middle])
            if not self._ending:
                await self._ingest(lines[middle:])
            return
        if failure is not None and (report is None or isinstance(failure, InvalidRequest)):
            refusal = failure
            await self._accounting.run(lambda: self._account.refused(lines, refusal))
            return
        if report is not None:
            # In the task of the batch, so that lines of the same point are counted in their order.
            ingested = report
            await self._accounting.run(lambda: self._account.ingested(lines, ingested, tokens))
        if failure is not None:
            self._fail(failure.message)
        self._progress(self.report)

    async def _try_ingest(self, lines: Sequence[Line]) -> tuple[WorkerError | None, IngestReport | None, int]:
        """Ingest lines; returns the failure of the whole ingest, if any, its report, if any, and its tokens."""
        try:
            result = await self._ingest_lines(self._options.request, lines)
        except IngestFailed as error:
            return cause_of(error), error.report, 0
        except WorkerError as error:
            return error, None, 0
        except Exception as error:  # noqa: BLE001 - other batches must continue
            log.error("internal error: %s", whereabouts(error))
            return Internal(f"internal error ({type(error).__name__})"), None, 0
        return None, result.report, result.tokens

    @staticmethod
    async def _first_of(*events: asyncio.Event) -> None:
        """Wait until one of the events is set."""
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    @property
    def _ending(self) -> bool:
        return self._stopping.is_set() or self.report.failure is not None

    async def _stops_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True

    def _fail(self, reason: str) -> None:
        """End the load with a reason; later reasons are ignored. Thread-safe."""
        if self.report.failure is None:
            self.report.failure = reason
        self.stop()

    def _fail_unexpectedly(self, error: Exception) -> None:
        log.error("the load failed: %s", whereabouts(error))
        self._fail(f"internal error ({type(error).__name__})")
