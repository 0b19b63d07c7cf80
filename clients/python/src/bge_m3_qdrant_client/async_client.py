"""The client that awaits, for asyncio."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx
from typing_extensions import Self, Unpack

from bge_m3_qdrant_client.answers import (
    CollectionAnswer,
    CollectionsAnswer,
    CountAnswer,
    DeleteAnswer,
    EmbedAnswer,
    LoadAnswer,
    PointsAnswer,
    ReadPointsAnswer,
    RerankAnswer,
    ScoreAnswer,
    SearchAnswer,
)
from bge_m3_qdrant_client.core import CONCURRENCY, RETRIES, TEXTS_PER_REQUEST, TIMEOUT_S, Core, target_of
from bge_m3_qdrant_client.errors import InvalidOption
from bge_m3_qdrant_client.exchange import Target
from bge_m3_qdrant_client.gathering import Gathering, Outcome
from bge_m3_qdrant_client.options import (
    CountOptions,
    DeleteOptions,
    EmbedOptions,
    IngestOptions,
    LoadOptions,
    PointsOptions,
    RerankOptions,
    ScoreOptions,
    SearchOptions,
)
from bge_m3_qdrant_client.report import Health, IngestReport, Progress
from bge_m3_qdrant_client.runpod_target import BASE_URL, RunPodTarget
from bge_m3_qdrant_client.splitting import Payload, PointId
from bge_m3_qdrant_client.steps import Send, Step, Steps
from bge_m3_qdrant_client.transport import arequest, client_error

T = TypeVar("T")
A = TypeVar("A", EmbedAnswer, PointsAnswer)
R = TypeVar("R")


class AsyncClient:
    """A client of the worker for asyncio; its methods are those of `Client`. Its connections belong to one event loop.

    Args:
        target: the address of a worker, such as `http://host:8000`, or a `Target`.
        api_key: the key of the worker, if it has one.
        headers: further headers, such as `api-key` behind RunPod's load balancer, whose own key is `api_key`.
        timeout: maximum seconds of a request, with its retries and waits; at most 24 days. A call with many texts has
            many requests.
        retries: maximum repetitions of a request whose error is retryable.
        concurrency: maximum requests of one call at the same time.
        texts_per_request: maximum texts of a request, at most the worker's `MAX_TEXTS`.
        http: an httpx.AsyncClient to send with, which stays open after `aclose`; by default one of its own.

    Every method raises `ClientError`: a `WorkerError` that the worker answered, or a `TransportError` of the way.

    Raises:
        InvalidOption: an argument is invalid.
    """

    def __init__(
        self,
        target: str | Target,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
        concurrency: int = CONCURRENCY,
        texts_per_request: int = TEXTS_PER_REQUEST,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        self._core = Core(
            target_of(target, api_key, headers),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            texts_per_request=texts_per_request,
        )
        self._own = http is None
        self._http = http or httpx.AsyncClient()
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    def runpod(
        cls,
        endpoint_id: str,
        *,
        api_key: str,
        base_url: str = BASE_URL,
        timeout: float = TIMEOUT_S,
        retries: int = RETRIES,
        concurrency: int = CONCURRENCY,
        texts_per_request: int = TEXTS_PER_REQUEST,
        http: httpx.AsyncClient | None = None,
    ) -> Self:
        """A client of an endpoint on RunPod, as `Client.runpod`."""
        return cls(
            RunPodTarget(endpoint_id, api_key=api_key, base_url=base_url),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            texts_per_request=texts_per_request,
            http=http,
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self._core.target.name!r})"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        if self._own:
            await self._http.aclose()

    async def embed(
        self,
        texts: str | Iterable[str],
        *,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbedAnswer:
        """See `Client.embed`."""
        return await self._gathered(self._core.embed(texts, progress, options))

    async def ingest(
        self,
        texts: str | Iterable[str],
        *,
        ids: Iterable[PointId] | None = None,
        payloads: Iterable[Payload] | None = None,
        job: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[IngestOptions],
    ) -> IngestReport:
        """See `Client.ingest`."""
        return await self._gathered(self._core.ingest(texts, ids, payloads, job=job, progress=progress, given=options))

    async def search(
        self, queries: str | Sequence[str] | None = None, **options: Unpack[SearchOptions]
    ) -> SearchAnswer:
        """See `Client.search`."""
        return await self._run(self._core.search(queries, options))

    async def score(self, pairs: Sequence[tuple[str, str]], **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """See `Client.score`."""
        return await self._run(self._core.score(pairs, options))

    async def rerank(
        self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Unpack[RerankOptions]
    ) -> RerankAnswer:
        """See `Client.rerank`."""
        return await self._run(self._core.rerank(query, documents, options))

    async def count(self, **options: Unpack[CountOptions]) -> CountAnswer:
        """See `Client.count`."""
        return await self._run(self._core.count(options))

    async def delete(self, **options: Unpack[DeleteOptions]) -> DeleteAnswer:
        """See `Client.delete`."""
        return await self._run(self._core.delete(options))

    async def load(self, action: Literal["begin", "end", "finish"], **options: Unpack[LoadOptions]) -> LoadAnswer:
        """See `Client.load`."""
        return await self._run(self._core.load(action, options))

    async def points(self, **options: Unpack[PointsOptions]) -> ReadPointsAnswer:
        """See `Client.points`."""
        return await self._run(self._core.points(options))

    async def collections(self) -> CollectionsAnswer:
        """See `Client.collections`."""
        return await self._run(self._core.collections())

    async def collection(self, name: str) -> CollectionAnswer:
        """See `Client.collection`."""
        return await self._run(self._core.collection(name))

    async def health(self) -> Health:
        """See `Client.health`."""
        return await self._run(self._core.health())

    async def _gathered(self, gathering: Gathering[A, R]) -> R:
        waiting: deque[asyncio.Task[list[Outcome[A]]]] = deque()
        try:
            while True:
                while len(waiting) < self._core.concurrency and (part := gathering.take()) is not None:
                    waiting.append(asyncio.create_task(self._run(gathering.steps(part))))
                if not waiting:
                    return gathering.finish()
                pending = [task for task in waiting if not task.done()]
                if pending and not waiting[0].done():
                    await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in [task for task in waiting if task.done()]:
                    task.result()  # an exception of the caller's callback does not wait for its turn
                while waiting and waiting[0].done():
                    gathering.add(waiting.popleft().result())
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _run(self, steps: Steps[T]) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = await self._perform(step)
                except BaseException as error:  # noqa: BLE001, PERF203 - the steps raise it again
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stop:
            value: T = stop.value
            return value

    async def _perform(self, step: Step) -> Any:
        if not isinstance(step, Send):
            return await asyncio.sleep(step.seconds)
        loop = asyncio.get_running_loop()
        if self._loop not in {None, loop}:
            raise InvalidOption("the connections belong to another event loop; make an AsyncClient in each")
        self._loop = loop
        try:
            return await arequest(self._http, step)
        except httpx.HTTPError as error:
            raise client_error(error, step) from None
