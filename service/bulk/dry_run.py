"""A load that is only tried: it reads, cuts and tokenizes everything, and says what a load would do."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, Final

from embedder import InvalidRequest, Outputs, WorkerError
from qdrant_sink import Taken, WriteReport
from service.bulk.account import Account
from service.bulk.line import BadLine, InputError, Line
from service.bulk.line_batches import batches
from service.bulk.line_index import IndexFullError
from service.bulk.line_ingest import line_ingest
from service.bulk.load import LoadOptions
from service.bulk.rejections import Rejections
from service.bulk.report import LoadReport
from service.operations import EmbedRequest, Operations, VectorOperations
from service.operations.ingest_job import report_of
from service.planning import CollectionSize, Passages, StoredVectors, collection_size

MEASURED_MIN_S: Final = 2.0
"""Time for which texts of the input are embedded to measure the model, if there are as many."""

MEASURED_MAX_TEXTS: Final = 64
"""Maximum texts that are embedded together to measure the model."""


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a load would do.

    Attributes:
        report: its report: `stored` and `points` are those that it would store, and `tokens` those that it would embed.
        tokens_per_s: rate of the model; None if nothing was measured.
        size: size of a collection of these points; None without points.
    """

    report: LoadReport
    tokens_per_s: float | None
    size: CollectionSize | None

    @property
    def load_seconds(self) -> float | None:
        """Time that the model needs for all tokens in seconds; None if its rate is unknown."""
        return None if self.tokens_per_s is None else self.report.tokens / self.tokens_per_s

    def summary(self, collection: str) -> dict[str, Any]:
        """The forecast as JSON values."""
        summary = {**self.report.summary(collection), "dry_run": True}
        if self.tokens_per_s is not None and self.load_seconds is not None:
            summary |= {"tokens_per_s": round(self.tokens_per_s), "load_seconds": round(self.load_seconds, 1)}
        if self.size is not None:
            size = self.size
            summary |= {"disk_bytes": size.disk_bytes, "ram_bytes": size.ram_bytes, "kinds_bytes": size.by_kind()}
        return summary


class DryRun:
    """A load that is only tried. It does not ask the store, and writes nothing but the files of rejections.

    Args:
        core: the operations, whose store is not opened; those of given vectors take lines that have their vectors.
        options: the options of the load.
        rejects: file for rejections, one JSON object per line; None prints the first ones.
        say: prints a message.
        rejected_lines: file for the rejected lines; None for none.
        progress: called with the report after each batch.
        tokens_per_s: rate of the model; None to measure it, if there is a model.
    """

    def __init__(
        self,
        core: Operations | VectorOperations,
        options: LoadOptions,
        rejects: BinaryIO | None,
        say: Callable[[str], None],
        *,
        rejected_lines: BinaryIO | None = None,
        progress: Callable[[LoadReport], None] = lambda _report: None,
        tokens_per_s: float | None = None,
    ) -> None:
        self._core = core
        self._ingest_lines = line_ingest(core)
        self._options = options
        self._progress = progress
        self._tokens_per_s = tokens_per_s
        self._report = LoadReport(allow_lost=options.allow_lost)
        rejections = Rejections(rejects, rejected_lines, say, self._fail, self._report)
        self._scope = options.alias or options.collection
        self._account = Account(self._report, rejections, self._scope, keeps=options.request.insert_only)
        self._written = 0
        self._colbert_rows = 0
        self._sparse_weights = 0
        self._text_bytes = 0
        self._payload_bytes = 0

    def run(self, lines: Iterable[Line | BadLine]) -> Forecast:
        """Read all lines. An error becomes the report's `failure`."""
        try:
            asyncio.run(self._run(lines))
        except (InputError, IndexFullError) as error:
            self._fail(str(error))
        except WorkerError as error:
            self._fail(error.message)
        finally:
            self._account.close()
        return Forecast(self._report, self._tokens_per_s, self._size())

    async def _run(self, lines: Iterable[Line | BadLine]) -> None:
        for batch in batches(self._documents(lines), self._scope):
            if self._report.failure is not None:
                return
            await self._try(batch.lines)
            self._progress(self._report)
        self._account.finish()

    def _documents(self, lines: Iterable[Line | BadLine]) -> Iterator[Line]:
        for line in lines:
            if isinstance(line, BadLine):
                self._account.no_document(line)
            else:
                yield line

    async def _try(self, lines: Sequence[Line]) -> None:
        """Plan a batch as an ingest does. Of one that is refused as a whole, the invalid lines are searched."""
        try:
            planned = await self._ingest_lines.planned(self._options.request, lines)
        except InvalidRequest as error:
            if len(lines) == 1:
                self._account.refused(lines, error)
                return
            middle = len(lines) // 2
            await self._try(lines[:middle])
            await self._try(lines[middle:])
            return
        plan = planned.plan
        refused = {rejection.index for rejection in plan.rejected}
        stored = tuple(index for index in range(len(plan.points)) if index not in refused)
        report = report_of(plan, WriteReport(stored, tuple(plan.rejected)), Taken())
        self._account.ingested(lines, report, planned.tokens)
        self._written += len(plan.owners)
        self._colbert_rows += planned.colbert_rows
        self._sparse_weights += planned.sparse_weights
        for line, span in zip(lines, plan.spans, strict=True):
            points = sum(index not in refused for index in span)
            self._text_bytes += len(line.text.encode("utf-8", "surrogatepass")) if points else 0
            self._payload_bytes += points * len(json.dumps(line.payload or {}))
        if self._tokens_per_s is None and stored and isinstance(self._core, Operations):
            self._tokens_per_s = await self._measured(self._core, [line.text for line in lines])

    async def _measured(self, core: Operations, texts: Sequence[str]) -> float:
        """The rate of the model with texts of the input in tokens/s."""
        request = self._options.request
        length = request.max_length if request.chunk is None else request.chunk.max_tokens
        outputs = Outputs.of(tuple(self._ingest_lines.kinds(request)))
        tokens = 0
        started = time.perf_counter()
        for first in range(0, len(texts), MEASURED_MAX_TEXTS):
            portion = texts[first : first + MEASURED_MAX_TEXTS]
            embedded = await core.embed(EmbedRequest(portion, outputs=outputs, role="passage", max_length=length))
            tokens += embedded.tokens
            if time.perf_counter() - started >= MEASURED_MIN_S:
                break
        return max(tokens, 1) / (time.perf_counter() - started)

    def _size(self) -> CollectionSize | None:
        report = self._report
        if not report.stored:
            return None
        kinds = self._ingest_lines.kinds(self._options.request)
        stored = StoredVectors.of(self._core.collections.wanted).only(kinds)
        passages = Passages.of_tokens(
            report.points,
            1 + self._colbert_rows / self._written,
            text_bytes=self._text_bytes / report.stored,
            payload_bytes=self._payload_bytes / report.stored,
        )
        passages = replace(passages, distinct=self._sparse_weights / self._written)
        return collection_size(stored, passages)

    def _fail(self, reason: str) -> None:
        if self._report.failure is None:
            self._report.failure = reason
