"""The codec between JSON and the operations: it parses, runs, renders, limits the size, counts and times.

Every transport uses it. HTTP sends an answer as bytes, the queue as JSON values.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from embedder import BODIES, KINDS, Kind, WorkerError, is_quick
from service.memory_budget import Reservation
from service.operations import (
    CollectionsResult,
    EmbedResult,
    IngestedText,
    IngestFailed,
    IngestProgress,
    IngestResult,
    Operations,
)
from service.wire.ahead import WrittenAhead
from service.wire.answers import (
    REJECTION_MAX_BYTES,
    embed_answer,
    ingest_answer,
    score_answer,
    search_answer,
    upsert_answer,
)
from service.wire.body import Body
from service.wire.errors import error_answer
from service.wire.fields import Limits
from service.wire.instrumentation import Instrumentation, RenderError
from service.wire.json_limits import JsonLimits
from service.wire.json_values import size_of
from service.wire.load_requests import LoadRequest
from service.wire.openai import OpenAIDialect, is_openai, is_openai_path, openai_error
from service.wire.outcome import Answer, Content, Outcome
from service.wire.parsing import operation_name, parse, without_timings
from service.wire.qdrant_inference import INFERENCE, InferenceDialect, as_server_reads, inference_error
from service.wire.read_answers import collection_answer, collections_answer, load_answer, points_answer
from service.wire.read_requests import CollectionsRequest, ReadPointsRequest
from service.wire.rendered_memory import rendered_max_bytes, texts_max_bytes
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, QdrantTarget, ScoreRequest, SearchRequest
from service.wire.rerank import PATHS as RERANK_PATHS
from service.wire.rerank import RERANK, RerankDialect, is_rerank_job, rerank_error
from service.wire.size import LIST_NUMBER_MIN_BYTES, RESPONSE_MB, SizeLimit, vectors_min_bytes
from service.wire.tei import EMBED_SPARSE, INFO, ROOT, TeiDialect, is_tei_rerank, tei_error, tei_status
from service.wire.values import Values
from service.wire.work import beside

Progress = Callable[[dict[str, int]], None]
"""Callback for the progress of a job that stores points, `{"settled", "points"}`. Called from any thread."""

_EMBED_REMEDY: Final = 'send fewer texts, leave "colbert" out of vectors, or set encoding "base64" and dtype "float16"'
_INGEST_REMEDY: Final = "send fewer texts, or set includeText false"
_SEARCH_REMEDY: Final = "send fewer queries, lower limit, or set withVectors, withPayload or explain false"
_SCORE_REMEDY: Final = "send fewer pairs"
_POINTS_REMEDY: Final = (
    'lower limit, send fewer ids, set withVectors or withPayload false, or set encoding "base64" and dtype "float16"'
)
_COLLECTIONS_REMEDY: Final = "list fewer collections with QDRANT_COLLECTIONS, or raise MAX_RESPONSE_MB"

_JOB_MAX_BYTES: Final = 20_000_000
"""Maximum input of a job in bytes (the platform's limit)."""

_QUICK_MAX_BYTES: Final = 65_536
"""Maximum JSON bytes that the event loop serializes or parses itself, which takes no longer than a thread switch."""

_VALUES_FACTOR: Final = 8
"""Memory of an answer by its bytes while it is parsed: a number of ten bytes takes 66, most of them for a moment."""

_QUICK_MAX_NUMBERS: Final = 1024
"""Maximum numbers in lists that the event loop renders itself."""

_INGESTED_TEXT_BYTES: Final = 1024
"""Memory of the result of a stored text in bytes, in the answer and as fields of it."""

PAIR_BYTES: Final = 512
"""Memory of the scores of a pair in bytes, as values and in the answer."""

_QUICK_FIELDS: Final = frozenset(
    {"operation", "texts", "isPassage", "batchSize", "maxLength", "vectors", "encoding", "dtype", "includeText"}
)
"""Fields of a job's input whose sizes are bounded by that of its texts."""


class Codec:
    """Answers JSON with JSON. Usable from any event loop.

    Args:
        core: the operations.
        response_mb: maximum size of an answer where `MAX_RESPONSE_MB` is unset, in megabytes.

    Attributes:
        core: the operations.
    """

    def __init__(self, core: Operations, response_mb: float = RESPONSE_MB) -> None:
        self.core = core
        self._limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
        self._json_limits = JsonLimits.of(core.settings.json_max_nodes, _JOB_MAX_BYTES)
        self._max_bytes = core.settings.max_response_bytes(response_mb)
        self._openai = OpenAIDialect(core, self._max_bytes)
        self._inference = InferenceDialect(core)
        self._rerank = RerankDialect(core, self._limits, self._max_bytes)
        self._tei = TeiDialect(core, self._limits, self._max_bytes)
        self._instrumentation = Instrumentation(core.metrics, core.memory, self._max_bytes)

    async def answer(self, raw: object, progress: Progress | None = None) -> Answer:
        """Answer a job's input.

        Args:
            raw: the input, any JSON value.
            progress: callback for the progress of a job that stores points.

        Raises:
            asyncio.CancelledError: the call was cancelled. All other errors become answers.
        """
        return await self._answer(raw, progress, Body)

    async def check(self, raw: object) -> None:
        """Check a job's input without running it.

        Raises:
            InvalidRequest: the input is invalid.
        """
        await beside(lambda: parse(without_timings(raw), self._limits), raw)

    async def _answer(
        self, raw: object, progress: Progress | None, form: type[Content], memory: Reservation | None = None
    ) -> Answer:
        with_timings = isinstance(raw, dict) and raw.get("timings") is True

        async def run() -> Outcome:
            return await self._run(without_timings(raw), progress, form)

        work = run if memory is None else self._held(raw, memory, run)
        return await self._instrumentation.answer(operation_name(raw), work, render_error, with_timings=with_timings)

    async def job(self, raw: object, progress: Progress | None = None) -> Any:
        """Answer a job's input as JSON values, as the queue expects them.

        The answer to an OpenAI request, also an error, is a list that holds one object. The memory of the input is
        reserved until it is answered, and that of the answer until the task ends, if the transport has asked for that.
        """
        with self.core.memory.joined() as memory:
            if is_rerank_job(raw):
                work = self._held(raw, memory, lambda: self._rerank.route(raw))
                return [await _values(await self._instrumentation.answer("rerank", work, rerank_error), memory)]
            if is_openai(raw):
                work = self._held(raw, memory, lambda: self._openai.route(raw))
                return [await _values(await self._instrumentation.answer("openai", work, openai_error), memory)]
            return await _values(await self._answer(raw, progress, Values, memory), memory)

    def _held(
        self, raw: object, memory: Reservation, work: Callable[[], Awaitable[Outcome]]
    ) -> Callable[[], Awaitable[Outcome]]:
        """The work of a job whose size is checked, and whose memory is reserved, before."""

        async def held() -> Outcome:
            size = await size_of(raw, self._json_limits)
            memory.grow(size.max_bytes)
            return await work()

        return held

    async def openai_embeddings(self, raw: object, deployment: str | None = None) -> Answer:
        """Answer a request body of OpenAI's `/v1/embeddings`, or of Azure's path with a deployment."""
        return await self._instrumentation.answer(
            "openai", lambda: self._openai.embeddings(raw, deployment), openai_error
        )

    async def openai_models(self, path: str) -> Answer:
        """Answer OpenAI's `/v1/models`, or the path of one model."""

        async def work() -> Outcome:
            return self._openai.models(path)

        return await self._instrumentation.answer("openai", work, openai_error)

    async def qdrant_inference(self, raw: object) -> Answer:
        """Answer a request body of `/qdrant/inference`."""

        async def work() -> Outcome:
            return await self._inference.embeddings(raw)

        return as_server_reads(await self._instrumentation.answer("qdrant_inference", work, inference_error))

    async def rerank(self, raw: object, path: str) -> Answer:
        """Answer a request body of a rerank path: Cohere's and Jina's, or TEI's at `/rerank`."""
        if path == RERANK and is_tei_rerank(raw):
            return await self._answer_tei("rerank", lambda: self._tei.rerank(raw))
        return await self._instrumentation.answer("rerank", lambda: self._rerank.rerank(raw, path), rerank_error)

    async def tei(self, raw: object, path: str) -> Answer:
        """Answer a request body of TEI's `/`, `/embed` or `/embed_sparse`."""
        work = self._tei.embed_sparse if path == EMBED_SPARSE else self._tei.embed
        return await self._answer_tei("tei", lambda: work(raw))

    async def tei_info(self) -> Answer:
        """Answer TEI's `/info`."""

        async def work() -> Outcome:
            return self._tei.info()

        return await self._answer_tei("tei", work)

    async def _answer_tei(self, operation: str, work: Callable[[], Awaitable[Outcome]]) -> Answer:
        return await self._instrumentation.answer(operation, work, tei_error, error_status=tei_status)

    async def _run(self, raw: object, progress: Progress | None, form: type[Content]) -> Outcome:
        core = self.core
        match parse(raw, self._limits) if _is_quick(raw) else await beside(lambda: parse(raw, self._limits), raw):
            case EmbedRequest(qdrant=QdrantTarget() as target) as request:
                return await self._ingest(request, target, progress, form)
            case EmbedRequest() as request:
                return await self._embed(request, form)
            case SearchRequest() as request:
                result = await core.search(request.value(), SizeLimit(self._max_bytes, _SEARCH_REMEDY).check_parts)
                body = await beside(
                    lambda: self._bounded(search_answer(result, core.model_name), _SEARCH_REMEDY, Body), result
                )
                return Outcome(body, result.tokens)
            case ScoreRequest() as request:
                core.memory.grow(len(request.pairs) * PAIR_BYTES)
                scores = await core.score(request.value())
                return Outcome(self._bounded(score_answer(scores, core.model_name), _SCORE_REMEDY, Body), scores.tokens)
            case request:
                return await self._stored(request, form)

    async def _stored(
        self,
        request: CountRequest | DeleteRequest | ReadPointsRequest | CollectionsRequest | LoadRequest,
        form: type[Content],
    ) -> Outcome:
        """Run a request that concerns the store alone."""
        match request:
            case CountRequest():
                return Outcome(Body.of({"count": (await self.core.collections.count(request.value())).count}))
            case DeleteRequest():
                return Outcome(Body.of({"deleted": (await self.core.collections.delete(request.value())).deleted}))
            case ReadPointsRequest():
                return await self._points(request, form)
            case CollectionsRequest():
                return await self._collections(request)
            case LoadRequest():
                return Outcome(Body.of(load_answer(await self.core.load_action(request.value()))))

    async def _embed(self, request: EmbedRequest, form: type[Content]) -> Outcome:
        if form is not Values or request.encoding != "base64" or not request.wants_vectors or is_quick(request.texts):
            result = await self.core.embed(request.embed_value(), self._admit(request, KINDS, form))

            def render() -> Content:
                return self._bounded(embed_answer(request, result, self.core.model_name), _EMBED_REMEDY, form)

            quick = self._is_quickly_written(request, result)
            return Outcome(render() if quick else await beside(render, request, result), result.tokens)
        return await self._embed_ahead(request, form)

    async def _embed_ahead(self, request: EmbedRequest, form: type[Content]) -> Outcome:
        """Embed, and encode base64 while the model computes, since encoding a large answer takes long."""
        ahead = WrittenAhead(request)
        try:
            result = await self.core.embed(request.embed_value(), self._admit(request, KINDS, form), ahead.encode)
        except BaseException:
            ahead.cancel()
            raise

        def render() -> Content:
            answer = embed_answer(request, result, self.core.model_name, ahead.vectors())
            return self._bounded(answer, _EMBED_REMEDY, form)

        return Outcome(await BODIES.run(render), result.tokens)

    async def _ingest(
        self, request: EmbedRequest, target: QdrantTarget, progress: Progress | None, form: type[Content]
    ) -> Outcome:
        answer = _IngestAnswer(request, self.core, self._max_bytes, form)
        result = await self.core.ingest(
            request.ingest_value(target),
            admit=lambda lengths, kinds: self._admit(request, kinds, form)(lengths),
            admit_texts=answer.admit,
            progress=None if progress is None else lambda done: progress(_progress(done)),
        )
        return await beside(lambda: answer.completed(result), request, result)

    async def _points(self, request: ReadPointsRequest, form: type[Content]) -> Outcome:
        limit = SizeLimit(self._max_bytes, _POINTS_REMEDY)

        def admit(size: int, numbers: int) -> None:
            limit.check_parts(size, numbers, request.encoding, request.dtype)

        points = await self.core.points(request.value(), admit)
        return Outcome(
            await beside(lambda: self._bounded(points_answer(request, points), _POINTS_REMEDY, form), points)
        )

    async def _collections(self, request: CollectionsRequest) -> Outcome:
        result = await self.core.inventory(request.value())
        if isinstance(result, CollectionsResult):
            return Outcome(self._bounded(collections_answer(result), _COLLECTIONS_REMEDY, Body))
        return Outcome(self._bounded(collection_answer(result, self.core.model_name), _COLLECTIONS_REMEDY, Body))

    def _admit(
        self, request: EmbedRequest, default_kinds: Sequence[Kind], form: type[Content]
    ) -> Callable[[Sequence[int]], None]:
        """A check that raises, before the model runs, if the answer is certain to be too large or has no memory."""
        kinds = request.vectors or default_kinds
        limit = SizeLimit(self._max_bytes, _EMBED_REMEDY)

        def admit(tokens: Sequence[int]) -> None:
            if request.wants_vectors:
                limit.check_minimum(self._min_bytes(request, kinds, tokens))
                self.core.memory.grow(self._rendered_max_bytes(request, kinds, tokens, form))
            if request.include_text:
                self.core.memory.grow(texts_max_bytes(request.texts))

        return admit

    def _rendered_max_bytes(
        self, request: EmbedRequest, kinds: Sequence[Kind], tokens: Sequence[int], form: type[Content]
    ) -> int:
        """Maximum memory of the rendered vectors of texts with these numbers of tokens."""
        return rendered_max_bytes(
            tokens,
            kinds,
            dense=self.core.hidden_size,
            colbert=self.core.colbert_size,
            encoding=request.encoding,
            dtype=request.dtype,
            as_values=form is Values,
        )

    def _is_quickly_written(self, request: EmbedRequest, result: EmbedResult) -> bool:
        """Whether the answer is so small that the event loop writes it itself."""
        if request.include_text and sum(map(len, request.texts)) > _QUICK_MAX_BYTES:
            return False
        kinds = request.vectors or KINDS
        if "sparse" in kinds and result.tokens > _QUICK_MAX_NUMBERS:  # a weight per token at most
            return False
        most = _QUICK_MAX_BYTES if request.encoding == "base64" else LIST_NUMBER_MIN_BYTES * _QUICK_MAX_NUMBERS
        return self._min_bytes(request, kinds, [text.tokens for text in result.embeddings]) <= most

    def _min_bytes(self, request: EmbedRequest, kinds: Sequence[Kind], tokens: Sequence[int]) -> int:
        """Minimum bytes of the vectors in an answer for texts with these numbers of tokens."""
        return vectors_min_bytes(
            tokens,
            dense=self.core.hidden_size if "dense" in kinds else 0,
            colbert=self.core.colbert_size if "colbert" in kinds else 0,
            encoding=request.encoding,
            dtype=request.dtype,
        )

    def _bounded(self, answer: Mapping[str, Any], remedy: str, form: type[Content]) -> Content:
        content = form.of(answer)
        SizeLimit(self._max_bytes, remedy).check(content)
        return content


class _IngestAnswer:
    """The answer of one ingest. Its size is checked before any point is stored, since storing cannot be undone.

    Args:
        request: the request.
        core: the operations.
        max_bytes: maximum size of the answer.
        form: the type of the answer's content.
    """

    def __init__(self, request: EmbedRequest, core: Operations, max_bytes: int, form: type[Content]) -> None:
        self._request = request
        self._model = core.model_name
        self._memory = core.memory
        self._form = form
        self._limit = SizeLimit(max_bytes, _EMBED_REMEDY if request.wants_vectors else _INGEST_REMEDY)
        self._admitted = form.of({})

    def admit(self, texts: Sequence[IngestedText], points: int) -> None:
        """Render the answer without its `upsert` block, and check that the block will fit.

        Raises:
            ResponseTooLarge: the answer could exceed the limit.
            Overloaded: the answer has no memory now.
        """
        self._memory.grow(len(texts) * _INGESTED_TEXT_BYTES + min(points * REJECTION_MAX_BYTES, self._limit.max_bytes))
        if self._request.include_text and not self._request.wants_vectors:  # reserved with the vectors otherwise
            self._memory.grow(texts_max_bytes(self._request.texts))
        content = self._rendered(texts, sum(text.tokens for text in texts))
        self._limit.check(content, reserve=points * REJECTION_MAX_BYTES)
        self._admitted = content

    def completed(self, result: IngestResult) -> Outcome:
        """Render the whole answer. Blocks while it renders."""
        upsert = upsert_answer(result.report)
        content = self._admitted
        if not self._request.wants_vectors:  # rendered before the model ran and outdated since, but small
            content = self._rendered(result.texts, result.tokens)
        content = content.with_member("upsert", Body.of(upsert))
        return Outcome(content, result.tokens, [point["code"] for point in upsert["rejected"]])

    def _rendered(self, texts: Sequence[IngestedText], tokens: int) -> Content:
        return self._form.of(ingest_answer(self._request, texts, tokens, self._model))


def render_error(error: WorkerError) -> Mapping[str, Any]:
    """The JSON of an error; for a failed ingest it includes the `upsert` block."""
    if isinstance(error, IngestFailed):
        return error_answer(error, upsert=upsert_answer(error.report))
    return error_answer(error)


def error_form(path: str) -> RenderError:
    """The form of errors of a path whose request was not parsed, for instance without a key."""
    if path in RERANK_PATHS:
        return rerank_error
    if path in (ROOT, EMBED_SPARSE, INFO):
        return tei_error
    if path == INFERENCE:
        return inference_error
    return openai_error if is_openai_path(path) else error_answer


def _is_quick(raw: object) -> bool:
    """Whether a job's input is so small that parsing it takes less time than a thread switch."""
    if not isinstance(raw, dict) or not raw.keys() <= _QUICK_FIELDS:
        return False
    texts = raw.get("texts")
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts) and is_quick(texts)


async def _values(answer: Answer, memory: Reservation) -> Any:
    """The JSON values of an answer; a large answer is parsed in a thread."""
    if isinstance(answer.content, Body) and len(answer.content) > _QUICK_MAX_BYTES:
        memory.settle(_VALUES_FACTOR * len(answer.content))
        return await BODIES.run(lambda: answer.json)
    return answer.json


def _progress(progress: IngestProgress) -> dict[str, int]:
    return {"settled": progress.done, "points": progress.points}
