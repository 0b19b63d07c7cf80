"""The client that blocks."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
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
from bge_m3_qdrant_client.exchange import TIDY_UP_TIMEOUT_S, Target
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
from bge_m3_qdrant_client.transport import client_error, request

T = TypeVar("T")
A = TypeVar("A", EmbedAnswer, PointsAnswer)
R = TypeVar("R")


class _Stopped(BaseException):
    """The call was interrupted in another thread."""


class Client:
    """A client of the worker.

    Args:
        target: the address of a worker, such as `http://host:8000`, or a `Target`.
        api_key: the key of the worker, if it has one.
        headers: further headers, such as `api-key` behind RunPod's load balancer, whose own key is `api_key`.
        timeout: maximum seconds of a request, with its retries and waits; at most 24 days. A call with many texts has
            many requests.
        retries: maximum repetitions of a request whose error is retryable.
        concurrency: maximum requests of one call at the same time.
        texts_per_request: maximum texts of a request, at most the worker's `MAX_TEXTS`.
        http: an httpx.Client to send with, which stays open after `close`; by default one of its own.

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
        http: httpx.Client | None = None,
    ) -> None:
        self._core = Core(
            target_of(target, api_key, headers),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            texts_per_request=texts_per_request,
        )
        self._own = http is None
        self._http = http or httpx.Client()

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
        http: httpx.Client | None = None,
    ) -> Self:
        """A client of an endpoint on RunPod.

        Args:
            endpoint_id: the id of the endpoint.
            api_key: the key of RunPod.
            base_url: the address of RunPod's API.
            timeout: as of `Client`. A cold start and the wait in the queue count.
            retries: as of `Client`.
            concurrency: as of `Client`.
            texts_per_request: as of `Client`.
            http: as of `Client`.

        Raises:
            InvalidOption: an argument is invalid.
        """
        return cls(
            RunPodTarget(endpoint_id, api_key=api_key, base_url=base_url),
            timeout=timeout,
            retries=retries,
            concurrency=concurrency,
            texts_per_request=texts_per_request,
            http=http,
        )

    def __repr__(self) -> str:
        return f"Client({self._core.target.name!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        if self._own:
            self._http.close()

    def embed(
        self,
        texts: str | Iterable[str],
        *,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[EmbedOptions],
    ) -> EmbedAnswer:
        """Compute vectors of texts; many texts become several requests.

        Vectors are arrays of numpy, float32 or with `dtype="float16"` float16. A text that the model cannot encode has
        an `error` in place of its vectors.

        Args:
            texts: one text, or any iterable of texts, which is read no further than requests are sent.
            progress: callback after each request, never called twice at the same time.
            **options: the fields of a request; by default texts are queries (`is_passage=False`).

        Raises:
            ClientError: a request failed.
            TypeError: an option is unknown.
        """
        return self._gathered(self._core.embed(texts, progress, options))

    def ingest(
        self,
        texts: str | Iterable[str],
        *,
        ids: Iterable[PointId] | None = None,
        payloads: Iterable[Payload] | None = None,
        job: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
        **options: Unpack[IngestOptions],
    ) -> IngestReport:
        """Compute vectors of texts and store them as points; many texts become several requests.

        Sending the same texts again leaves the same points, so a failed ingest may be repeated as a whole.

        Args:
            texts: one text, or any iterable of texts, which is read no further than requests are sent.
            ids: an id for each text; None derives them from the texts.
            payloads: a payload for each text.
            job: whether requests are jobs, whose answer is asked for again and again: `Prefer: respond-async` over
                HTTP, `/run` on RunPod. By default those from 256 KiB on, which may take longer than proxies wait.
            progress: callback after each request and while jobs run, never called twice at the same time.
            **options: the fields of a request and of its `qdrant` block.

        Returns:
            The report over all requests.

        Raises:
            ClientError: a request failed, and no more were sent. The error's `report` has the points so far.
            TypeError: an option is unknown.
        """
        return self._gathered(self._core.ingest(texts, ids, payloads, job=job, progress=progress, given=options))

    def search(self, queries: str | Sequence[str] | None = None, **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Find stored points for each query, or for the stored points of `like`.

        Args:
            queries: one query or several; None with `like`.
            **options: the fields of a request, such as `collection`, `limit`, `filter` and `rerank`.
        """
        return self._run(self._core.search(queries, options))

    def score(self, pairs: Sequence[tuple[str, str]], **options: Unpack[ScoreOptions]) -> ScoreAnswer:
        """Say how well passages answer queries.

        Args:
            pairs: pairs of a query and a passage.
            **options: the fields of a request.
        """
        return self._run(self._core.score(pairs, options))

    def rerank(
        self, query: str, documents: Sequence[str | Mapping[str, Any]], **options: Unpack[RerankOptions]
    ) -> RerankAnswer:
        """Rank documents by their relevance to a query.

        Args:
            query: the query.
            documents: strings, or objects with the string under `text`.
            **options: the fields of a request.
        """
        return self._run(self._core.rerank(query, documents, options))

    def count(self, **options: Unpack[CountOptions]) -> CountAnswer:
        """Count the points of a collection, or those that match a `filter`."""
        return self._run(self._core.count(options))

    def delete(self, **options: Unpack[DeleteOptions]) -> DeleteAnswer:
        """Delete points by `ids`, all chunks of documents by `doc_ids`, or the points that match a `filter`.

        If its answer is lost, a deletion is not repeated, since the second answer would count the points that are left.
        """
        return self._run(self._core.delete(options))

    def load(self, action: Literal["begin", "end", "finish"], **options: Unpack[LoadOptions]) -> LoadAnswer:
        """Begin or end a load whose points `ingest` stores, or finish its collection; the worker needs `ALLOW_LOADS`.

        `begin` creates the collection and defers its graph, `end` records what was counted, and `finish` builds the
        graph and moves the alias, or says what is missing. Each may be repeated.
        """
        return self._run(self._core.load(action, options))

    def points(self, **options: Unpack[PointsOptions]) -> ReadPointsAnswer:
        """Read stored points by `ids`, or a page of them; `after` is the `next` of the page before."""
        return self._run(self._core.points(options))

    def collections(self) -> CollectionsAnswer:
        """List the collections and aliases."""
        return self._run(self._core.collections())

    def collection(self, name: str) -> CollectionAnswer:
        """Describe a collection.

        Args:
            name: its name, or an alias.
        """
        return self._run(self._core.collection(name))

    def health(self) -> Health:
        """Ask for the state of the worker, or of the endpoint on RunPod. A worker that is not ready is no error.

        Raises:
            ClientError: nothing answers, or not as a worker.
        """
        return self._run(self._core.health())

    def _gathered(self, gathering: Gathering[A, R]) -> R:
        first, second = gathering.take(), gathering.take()
        if second is None:  # most calls, and a thread would cost them more than all else
            if first is not None:
                gathering.add(self._run(gathering.steps(first)))
            return gathering.finish()
        stop = threading.Event()
        pool = ThreadPoolExecutor(self._core.concurrency, thread_name_prefix="bge-m3-qdrant-client")
        waiting: deque[Future[list[Outcome[A]]]] = deque()
        ahead = [part for part in (second, first) if part is not None]
        try:
            while True:
                while len(waiting) < self._core.concurrency and (part := ahead.pop() if ahead else gathering.take()):
                    waiting.append(pool.submit(self._run, gathering.steps(part), stop))
                if not waiting:
                    return gathering.finish()
                pending = [future for future in waiting if not future.done()]
                if pending and not waiting[0].done():
                    wait(pending, return_when=FIRST_COMPLETED)
                for future in [future for future in waiting if future.done()]:
                    future.result()  # an interrupt does not wait for its turn
                while waiting and waiting[0].done():
                    gathering.add(waiting.popleft().result())
        finally:
            # After an interrupt the threads cancel their jobs; one that waits for an answer is left alone.
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            wait(waiting, TIDY_UP_TIMEOUT_S)

    def _run(self, steps: Steps[T], stop: threading.Event | None = None) -> T:
        try:
            step = next(steps)
            while True:
                try:
                    result = self._perform(step, stop)
                except BaseException as error:  # noqa: BLE001, PERF203 - the steps raise it again
                    step = steps.throw(error)
                else:
                    step = steps.send(result)
        except StopIteration as stopped:
            value: T = stopped.value
            return value

    def _perform(self, step: Step, stop: threading.Event | None) -> Any:
        if not isinstance(step, Send):
            if stop is None:
                return time.sleep(step.seconds)
            if stop.wait(step.seconds):
                raise _Stopped
            return None
        try:
            return request(self._http, step)
        except httpx.HTTPError as error:
            raise client_error(error, step) from None
