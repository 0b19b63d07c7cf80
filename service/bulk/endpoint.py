"""A serverless endpoint as the backend of a bulk load: its workers embed and store, and this process holds no model."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any, Final, Literal, cast, get_args

from bge_m3_qdrant_client import AsyncClient, ClientError, IngestReport, InvalidOption, Unauthorized, UnexpectedAnswer
from bge_m3_qdrant_client import InvalidRequest as EndpointInvalidRequest
from bge_m3_qdrant_client import WorkerError as EndpointError

from embedder import Cancelled, Internal, InvalidRequest, ModelFailure, NotFound, Overloaded, WorkerError
from qdrant_sink import Refusal, SchemaMismatch, StoreRejected, StoreUnavailable
from qdrant_sink.loading import LoadContent
from service import operations
from service.bulk.endpoint_calls import JOB_RETRIES, LOST_JOBS_MAX, EndpointCalls
from service.bulk.line_batches import BATCH_MAX_TEXTS
from service.operations import (
    IngestFailed,
    IngestRequest,
    IngestResult,
    LoadCounts,
    LoadEnd,
    LoadRequest,
    RejectedPoint,
)
from service.operations.finish import FINISH_ID
from service.operations.load_actions import WHOLE
from service.operations.load_values import LoadOutcome
from service.validation import shown

SUPERSEDED: Final = "superseded"
"""Code of the chunks of a document of which another job has stored a later version."""

_ERRORS: Final[Mapping[str, type[WorkerError]]] = {
    "invalid_request": InvalidRequest,
    "not_found": NotFound,
    "overloaded": Overloaded,
    "model_failure": ModelFailure,
    "store_unavailable": StoreUnavailable,
    "store_rejected": StoreRejected,
    "schema_mismatch": SchemaMismatch,
    "cancelled": Cancelled,
}


_OPTIONS: Final = ("content.", "qdrant.", "vectors")
"""What the fields of a job begin with that are options of the load."""

_LINES: Final = ("qdrant.ids", "qdrant.payloads")
"""Those of them that are of the lines."""


class Endpoint:
    """The operations of a bulk load on an endpoint.

    Args:
        client: makes a client of the endpoint, for jobs that may take so many seconds.

    Attributes:
        ingest: embeds and stores texts, a job for each batch.
        loads: records loads in their collections, with jobs whose operation the worker must allow.
        collections: the collections.
    """

    def __init__(self, client: Callable[[float], AsyncClient]) -> None:
        self._calls = EndpointCalls(client)
        self.ingest = _Ingest(self._calls)
        self.loads = _Loads(self._calls)
        self.collections = _Collections(self._calls)

    async def finish(
        self,
        collection: str,
        alias: str | None,
        *,
        gives_up: Sequence[str] = (),
        say: Callable[[str], None],
        stopping: asyncio.Event,
    ) -> LoadEnd:
        """Compare all shards, build the graph and move the aliases; see `Finish`.

        Raises:
            InvalidRequest: the worker does not allow it, or loads are to be given up, which needs the store.
            WorkerError: the endpoint or its store fails.
        """
        if gives_up:
            raise InvalidRequest("loads cannot be given up over an endpoint; give them up with the store")
        load = await self.loads.load(LoadRequest(collection, FINISH_ID, alias, has_lines=False), say)
        return await load.end(stopping, complete=True, rejected=0, alias=alias, counts=LoadCounts())

    def cancel(self) -> None:
        """Cancel all jobs in flight. Nothing is known of their lines then. Thread-safe."""
        self._calls.cancel()

    def close(self) -> None:
        """Close the connections. Idempotent."""
        self._calls.close()


class _Ingest:
    def __init__(self, calls: EndpointCalls) -> None:
        self._calls = calls

    async def __call__(self, request: IngestRequest) -> IngestResult:
        """Embed and store the texts of a batch."""
        options = _options(request)
        ids, payloads = cast("Any", request.ids), cast("Any", request.payloads)

        async def ingested(client: AsyncClient) -> IngestReport:
            return await client.ingest(request.texts, ids=ids, payloads=payloads, job=True, **options)

        try:
            report = await self._calls.run(ingested)
            for _ in range(LOST_JOBS_MAX):
                # A job whose number was lost may still run, and be the one that has stored a later version.
                if not any(point.code == SUPERSEDED for point in report.rejected):
                    break
                report = await self._calls.run(ingested)
        except ClientError as error:
            cause = _cause(error)
            if error.report is None or isinstance(cause, InvalidRequest):  # a line may be wrong
                raise cause from None
            raise IngestFailed(cause, _report(error.report)) from None  # the load cannot go on
        return IngestResult((), report.tokens, _report(report))


def _options(request: IngestRequest) -> dict[str, Any]:
    """The options of an ingest."""
    options: dict[str, Any] = {
        "collection": request.collection,
        "mode": "insertOnly" if request.insert_only else "upsert",
        "include_text": False,
        "colbert_pooling": "mean" if request.pool_colbert else "none",
    }
    if request.compare_kept:
        options["compare_kept"] = True
    if request.vectors:
        options["vectors"] = list(request.vectors)
    if request.id_scope is not None:
        options["id_scope"] = request.id_scope
    if request.text_key is not None:
        options["text_key"] = request.text_key
    if request.chunk is not None:
        options["chunk"] = {"max_tokens": request.chunk.max_tokens, "overlap": request.chunk.overlap}
    return options


def _content(content: LoadContent) -> dict[str, Any]:
    """What decides the content of the points of a load."""
    options: dict[str, Any] = {"colbert_pooling": content.colbert_pooling, "input": dict(content.input)}
    if content.vectors:
        options["vectors"] = list(content.vectors)
    if content.chunk_tokens is not None:
        options["chunk"] = {"max_tokens": content.chunk_tokens, "overlap": content.chunk_overlap}
    named = {"max_length": content.max_length, "text_key": content.text_key, "id_scope": content.id_scope}
    return {**options, **{name: value for name, value in named.items() if value is not None}}


class _Collections:
    def __init__(self, calls: EndpointCalls) -> None:
        self._calls = calls

    async def check_alias(self, alias: str, collection: str) -> None:
        """Nothing: the worker checks the alias when the load begins."""

    async def exists(self, collection: str) -> bool:
        """Whether a collection exists."""
        try:
            await self._calls.run(lambda client: client.collection(collection))
        except ClientError as error:
            cause = _cause(error)
            if isinstance(cause, NotFound):
                return False
            raise cause from None
        return True


class _Loads:
    def __init__(self, calls: EndpointCalls) -> None:
        self._calls = calls

    async def load(self, request: LoadRequest, say: Callable[[str], None]) -> _Run:
        """A load that has not begun."""
        return _Run(self._calls, request, say)


class _Run:
    """One run of a load: the only shard of its input, unless it is one of several."""

    def __init__(self, calls: EndpointCalls, request: LoadRequest, say: Callable[[str], None]) -> None:
        self._calls = calls
        self._request = request
        self._say = say
        self._shard = request.shard or WHOLE
        self.is_deferred = False

    @property
    def load_id(self) -> str:
        """The id of the load."""
        return self._request.load_id

    async def begin(self, stopping: asyncio.Event) -> bool:
        """Create or verify the collection, record the load, and defer the graph if the collection is empty."""
        request = self._request
        options: dict[str, Any] = {"defer_index": request.defer_index}
        if request.content is not None:
            options["content"] = _content(request.content)
        if request.keeps:
            options["mode"] = "insertOnly"
        await self._step("begin", **options)
        return not stopping.is_set()

    @asynccontextmanager
    async def alive(self, lost: Callable[[WorkerError], None]) -> AsyncIterator[None]:  # noqa: ARG002 - see `LoadRun`
        """Nothing: no process of the endpoint lives as long as the load."""
        yield

    async def end(
        self, stopping: asyncio.Event, *, complete: bool, rejected: int, alias: str | None, counts: LoadCounts
    ) -> LoadEnd:
        """Record the end of the load, and finish the collection unless other shards belong to it."""
        if self._request.has_lines:
            await self._step(
                "end",
                read=counts.read,
                lines=counts.lines,
                points=counts.points,
                rejected=rejected,
                complete=complete,
                alias=alias,
            )
        if self._request.shard is not None:
            return LoadEnd("left")
        if stopping.is_set():
            return LoadEnd("stopped")
        return await self._finished(alias, stopping)

    async def stop(self) -> None:
        """Nothing: a load that has begun counts as interrupted until it ends."""

    async def _step(self, action: Literal["begin", "end"], **options: Any) -> None:
        named = {**self._named, **options}
        try:
            answer = await self._calls.run(lambda client: client.load(action, **named))
        except ClientError as error:
            raise _cause(error) from None
        for message in answer.messages:
            self._say(message)

    async def _finished(self, alias: str | None, stopping: asyncio.Event) -> LoadEnd:
        named = {**self._named, "alias": alias}
        try:
            answer = await self._calls.finish(lambda client: client.load("finish", **named), stopping)
        except ClientError as error:
            raise _cause(error) from None
        if answer is None:
            return LoadEnd("stopped")
        for message in answer.messages:
            self._say(message)
        if answer.outcome not in get_args(LoadOutcome):
            raise Internal(
                f"the endpoint failed: its worker says that the load is {shown(answer.outcome)}, which this release "
                "does not know; use the release of the worker"
            )
        return LoadEnd(cast("LoadOutcome", answer.outcome), tuple(answer.aliases))

    @property
    def _named(self) -> dict[str, Any]:
        """The names of the load."""
        request = self._request
        named = {"collection": request.collection, "alias": request.alias}
        if request.has_lines:
            named |= {"shard": str(self._shard), "load_id": self._shard.name_of(request.load_id)}
        return named


def client_of(make: Callable[..., AsyncClient]) -> Callable[[float], AsyncClient]:
    """A function that makes clients for jobs that may take so many seconds, from one that makes clients."""
    return lambda timeout_s: make(
        timeout=timeout_s, retries=JOB_RETRIES, concurrency=1, texts_per_request=BATCH_MAX_TEXTS
    )


def _cause(error: ClientError) -> WorkerError:
    """The error as one of this process. An `InvalidRequest` is that of a line."""
    if isinstance(error, InvalidOption):
        return InvalidRequest(error.message)
    if isinstance(error, EndpointError) and not isinstance(error, Unauthorized):
        if isinstance(error, EndpointInvalidRequest) and _is_of_options(error):
            return Internal(f"the endpoint refuses the options of the load: {error.message}")
        kind = _ERRORS.get(error.code)
        if kind is not None:
            return kind(error.message)
    if isinstance(error, UnexpectedAnswer) and error.status == HTTPStatus.NOT_FOUND:
        return NotFound("the platform has no endpoint of this id (status 404)")
    if error.retryable:
        return StoreUnavailable(f"the endpoint does not answer: {error.message}; run the same command again")
    return Internal(f"the endpoint failed: {error.message}")


def _is_of_options(error: EndpointInvalidRequest) -> bool:
    """Whether a request is invalid for its options, which all jobs share, and not for a line."""
    fields = [str(part.get("field", "")) for part in error.details.get("errors") or () if isinstance(part, dict)]
    options = [field for field in fields if field.startswith(_OPTIONS) and not field.startswith(_LINES)]
    return bool(options)


def _report(report: IngestReport) -> operations.IngestReport:
    """The report of a job as one of this process.

    Raises:
        IngestFailed: it names a text that the job did not have, or has a negative count.
    """
    indices = [*(point.index for point in report.rejected), *report.differing]
    counts = [report.stored, report.skipped, report.tokens, *(text.chunks or 0 for text in report.results if text)]
    if min(counts) < 0 or not all(0 <= index < report.texts for index in indices):
        failure = Internal("the endpoint failed: the report of a job does not fit its texts; is it one of this worker?")
        unknown = tuple(RejectedPoint(index, None, failure) for index in range(report.texts))
        raise IngestFailed(failure, operations.IngestReport("", 0, 0, unknown, stored_of_texts=(0,) * report.texts))
    rejected_of = Counter(point.index for point in report.rejected)
    rejected = tuple(
        RejectedPoint(point.index, point.chunk, Refusal(cast("Any", point.code), point.message))
        for point in report.rejected
    )
    stored_of = tuple(
        0 if result is None else max(0, (1 if result.chunks is None else result.chunks) - rejected_of[index])
        for index, result in enumerate(report.results)
    )
    return operations.IngestReport(
        report.collection or "",
        report.stored,
        report.skipped,
        rejected,
        stored_of_texts=stored_of,
        differing=frozenset(report.differing),
    )
