"""The ingest of the rows of a batch, in an actor or a task: what is invalid is rejected row by row."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator, Sequence

from embedder import Internal, InvalidRequest, Overloaded, WorkerError, whereabouts
from service.bulk.account import stored_lines
from service.bulk.line import BadLine, InputError, Line, as_json
from service.bulk.line_batches import batches
from service.bulk.line_ingest import LineIngest
from service.bulk.load import OVERLOADED_PAUSE_S
from service.operations import IngestFailed, IngestRequest, IngestResult
from service.ray_data.outcome import FailedRow, Outcome
from service.wire.errors import cause_of, code_for, code_of

log = logging.getLogger(__name__)


class BatchIngest:
    """Stores the rows of batches.

    Args:
        ingest: stores lines.
        request: the request of every batch, without its texts, ids and payloads.
    """

    def __init__(self, ingest: LineIngest, request: IngestRequest) -> None:
        self._ingest = ingest
        self._request = request
        self._scope = request.id_scope or request.collection or ""

    async def __call__(self, rows: Iterable[Line | BadLine | FailedRow]) -> Outcome:
        """Store rows. Rows of the same point are stored in their order.

        After a failure the other rows are left, and the outcome has its message. A missing column is a failure too.
        """
        outcome = Outcome()
        try:
            for batch in batches(_documents(rows, outcome), self._scope):
                await self._store(batch.lines, outcome)
                if outcome.failure is not None:
                    break
        except InputError as error:
            outcome.failure = str(error)
        return outcome

    async def _store(self, lines: Sequence[Line], outcome: Outcome) -> None:
        failure, result = await self._tried(lines)
        while isinstance(failure, Overloaded):
            await asyncio.sleep(OVERLOADED_PAUSE_S)
            failure, result = await self._tried(lines)
        if isinstance(failure, InvalidRequest) and len(lines) > 1:
            middle = len(lines) // 2  # find the invalid row, and store the others
            await self._store(lines[:middle], outcome)
            if outcome.failure is None:
                await self._store(lines[middle:], outcome)
            return
        if isinstance(failure, InvalidRequest):
            outcome.rows += 1
            outcome.reject(FailedRow(as_json(lines[0]), code_of(failure), failure.message))
        elif failure is not None:
            outcome.failure = failure.message
        elif result is not None:
            report = result.report
            outcome.rows += len(lines)
            outcome.stored += report.stored
            outcome.skipped += report.skipped
            outcome.tokens += result.tokens
            outcome.stored_rows += stored_lines(lines, report, self._scope)
            for point in report.rejected:
                row = as_json(lines[point.text])
                outcome.reject(FailedRow(row, code_of(point.cause), point.cause.message, point.chunk))

    async def _tried(self, lines: Sequence[Line]) -> tuple[WorkerError | None, IngestResult | None]:
        try:
            return None, await self._ingest(self._request, lines)
        except IngestFailed as error:
            return cause_of(error), None
        except WorkerError as error:
            return error, None
        except Exception as error:  # noqa: BLE001 - the driver must learn of it as of every other failure
            log.error("internal error: %s", whereabouts(error))
            return Internal(f"internal error ({type(error).__name__})"), None


def _documents(rows: Iterable[Line | BadLine | FailedRow], outcome: Outcome) -> Iterator[Line]:
    """The rows that are documents. The others are rejected."""
    for row in rows:
        if isinstance(row, BadLine):
            outcome.rows += not row.is_part
            outcome.reject(FailedRow(as_json(row), code_for(InvalidRequest), row.message))
        elif isinstance(row, FailedRow):
            outcome.rows += not row.is_part
            outcome.reject(row)
        else:
            yield row
