"""The one codec between JSON and the operations: parse, run, render, bound the size, count and time.

Every transport uses it: HTTP sends the bytes of an answer, the queue the values that they stand for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from embedder import WorkerError, is_quick
from service.operations import EmbedResult, IngestedText, IngestFailed, IngestProgress, IngestResult, Operations
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
from service.wire.instrumentation import Instrumentation
from service.wire.openai import OpenAIDialect, is_openai, openai_error
from service.wire.outcome import Answer, Content, Outcome
from service.wire.parsing import operation_name, parse, without_timings
from service.wire.requests import CountRequest, DeleteRequest, EmbedRequest, QdrantTarget, ScoreRequest, SearchRequest
from service.wire.size import LIST_NUMBER_MIN_BYTES, SizeLimit, vectors_min_bytes
from service.wire.values import Values

Progress = Callable[[dict[str, int]], None]
"""Told how far a job that stores has come, as `{"settled", "points"}`; from any thread."""

_EMBED_REMEDY: Final = (
    'send fewer texts, ask for fewer vectors (`vectors` without "colbert"), or use encoding base64 with dtype float16'
)
_INGEST_REMEDY: Final = "send fewer texts, or includeText false"
_SEARCH_REMEDY: Final = "send fewer queries, lower limit, or use withVectors false, withPayload false or explain false"
_SCORE_REMEDY: Final = "send fewer pairs"

_QUICK_MAX_BYTES: Final = 65_536
"""Bytes of JSON that are written or parsed by the event loop itself: that takes no longer than a change of threads."""

_QUICK_MAX_NUMBERS: Final = 1024
"""Numbers of lists that are made there."""

_QUICK_FIELDS: Final = frozenset(
    {"operation", "texts", "isPassage", "batchSize", "maxLength", "vectors", "encoding", "dtype", "includeText"}
)
"""Fields of a job's input that are small if its texts are."""


class Codec:
    """JSON in, JSON out. Usable from any event loop.

    Args:
        core: the operations.

    Attributes:
        core: as given.
    """

    def __init__(self, core: Operations) -> None:
        self.core = core
        self._limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
        self._max_bytes = core.settings.max_response_bytes
        self._openai = OpenAIDialect(core, self._max_bytes)
        self._instrumentation = Instrumentation(core.metrics, self._max_bytes)

    async def answer(self, raw: object, progress: Progress | None = None) -> Answer:
        """The answer to a job's input.

        Args:
            raw: anything.
            progress: told while a job stores.

        Raises nothing but `asyncio.CancelledError`.
        """
        return await self._answer(raw, progress, Body)

    async def _answer(self, raw: object, progress: Progress | None, form: type[Content]) -> Answer:
        with_timings = isinstance(raw, dict) and raw.get("timings") is True

        async def work() -> Outcome:
            return await self._run(without_timings(raw), progress, form)

        return await self._instrumentation.answer(operation_name(raw), work, render_error, with_timings=with_timings)

    async def job(self, raw: object, progress: Progress | None = None) -> Any:
        """The answer to a job's input as JSON values, in the form of the queue.

        OpenAI's objects, and its errors, come in a list of one.
        """
        if not is_openai(raw):
            return await _values(await self._answer(raw, progress, Values))
        return [
            await _values(await self._instrumentation.answer("openai", lambda: self._openai.route(raw), openai_error))
        ]

    async def openai_embeddings(self, raw: object) -> Answer:
        """The answer to the body of OpenAI's `/v1/embeddings`."""
        return await self._instrumentation.answer("openai", lambda: self._openai.embeddings(raw), openai_error)

    async def openai_models(self, path: str) -> Answer:
        """The answer to OpenAI's `/v1/models`, or to the path of one model."""

        async def work() -> Outcome:
            return self._openai.models(path)

        return await self._instrumentation.answer("openai", work, openai_error)

    async def _run(self, raw: object, progress: Progress | None, form: type[Content]) -> Outcome:
        core = self.core
        match parse(raw, self._limits) if _is_quick(raw) else await asyncio.to_thread(parse, raw, self._limits):
            case EmbedRequest(qdrant=QdrantTarget() as target) as request:
                return await self._ingest(request, target, progress, form)
            case EmbedRequest() as request:
                return await self._embed(request, form)
            case SearchRequest() as request:
                result = await core.search(request.value())
                body = await asyncio.to_thread(
                    lambda: self._bounded(search_answer(result, core.model_name), _SEARCH_REMEDY, Body)
                )
                return Outcome(body, result.tokens)
            case ScoreRequest() as request:
                scores = await core.score(request.value())
                return Outcome(self._bounded(score_answer(scores, core.model_name), _SCORE_REMEDY, Body), scores.tokens)
            case CountRequest() as request:
                return Outcome(Body.of({"count": (await core.collections.count(request.value())).count}))
            case DeleteRequest() as request:
                return Outcome(Body.of({"deleted": (await core.collections.delete(request.value())).deleted}))

    async def _embed(self, request: EmbedRequest, form: type[Content]) -> Outcome:
        if form is not Values or request.encoding != "base64" or not request.wants_vectors or is_quick(request.texts):
            result = await self.core.embed(request.embed_value(), self._admit(request))

            def answered() -> Content:
                return self._bounded(embed_answer(request, result, self.core.model_name), _EMBED_REMEDY, form)

            quick = self._is_quickly_written(request, result)
            return Outcome(answered() if quick else await asyncio.to_thread(answered), result.tokens)
        return await self._embed_ahead(request, form)

    async def _embed_ahead(self, request: EmbedRequest, form: type[Content]) -> Outcome:
        """As `_embed`, where writing takes long and need not wait for the last vector."""
        ahead = WrittenAhead(request)
        try:
            result = await self.core.embed(request.embed_value(), self._admit(request), ahead.take)
        except BaseException:
            ahead.cancel()
            raise

        def answered() -> Content:
            answer = embed_answer(request, result, self.core.model_name, ahead.items())
            return self._bounded(answer, _EMBED_REMEDY, form)

        return Outcome(await asyncio.to_thread(answered), result.tokens)

    async def _ingest(
        self, request: EmbedRequest, target: QdrantTarget, progress: Progress | None, form: type[Content]
    ) -> Outcome:
        answer = _IngestAnswer(request, self.core.model_name, self._max_bytes, form)
        result = await self.core.ingest(
            request.ingest_value(target),
            admit=self._admit(request),
            admit_texts=answer.admit,
            progress=None if progress is None else lambda done: progress(_progress(done)),
        )
        return await asyncio.to_thread(answer.completed, result)

    def _admit(self, request: EmbedRequest) -> Callable[[Sequence[int]], None]:
        """Refuses, before anything is computed, an answer that is sure to be too large."""
        limit = SizeLimit(self._max_bytes, _EMBED_REMEDY)

        def admit(tokens: Sequence[int]) -> None:
            if request.wants_vectors:
                limit.check_minimum(self._min_bytes(request, tokens))

        return admit

    def _is_quickly_written(self, request: EmbedRequest, result: EmbedResult) -> bool:
        """Whether the answer is so small that the event loop writes it itself."""
        if request.include_text and sum(map(len, request.texts)) > _QUICK_MAX_BYTES:
            return False
        if "sparse" in request.vectors and result.tokens > _QUICK_MAX_NUMBERS:  # a weight per token at most
            return False
        most = _QUICK_MAX_BYTES if request.encoding == "base64" else LIST_NUMBER_MIN_BYTES * _QUICK_MAX_NUMBERS
        return self._min_bytes(request, [text.tokens for text in result.embeddings]) <= most

    def _min_bytes(self, request: EmbedRequest, tokens: Sequence[int]) -> int:
        """Bytes of vectors that an answer has at least, for texts of so many tokens."""
        return vectors_min_bytes(
            tokens,
            dense=self.core.hidden_size if "dense" in request.vectors else 0,
            colbert=self.core.colbert_size if "colbert" in request.vectors else 0,
            encoding=request.encoding,
            dtype=request.dtype,
        )

    def _bounded(self, answer: Mapping[str, Any], remedy: str, form: type[Content]) -> Content:
        content = form.of(answer)
        SizeLimit(self._max_bytes, remedy).check(content)
        return content


class _IngestAnswer:
    """The answer of one ingest. Its size is checked before anything is stored, since what is stored stays.

    Args:
        request: of the wire.
        model: name of the model.
        max_bytes: limit on the answer.
        form: of the answer.
    """

    def __init__(self, request: EmbedRequest, model: str, max_bytes: int, form: type[Content]) -> None:
        self._request = request
        self._model = model
        self._form = form
        self._limit = SizeLimit(max_bytes, _EMBED_REMEDY if request.wants_vectors else _INGEST_REMEDY)
        self._admitted = form.of({})

    def admit(self, texts: Sequence[IngestedText], points: int) -> None:
        """Render the answer without its `upsert` block, and check that it has room for the block.

        Raises:
            ResponseTooLarge: it has not.
        """
        content = self._rendered(texts, sum(text.tokens for text in texts))
        self._limit.check(content, reserve=points * REJECTION_MAX_BYTES)
        self._admitted = content

    def completed(self, result: IngestResult) -> Outcome:
        """The whole answer. Blocks for as long as it takes to render."""
        upsert = upsert_answer(result.report)
        content = self._admitted
        if not self._request.wants_vectors:  # what was admitted before the model ran may have changed, and is small
            content = self._rendered(result.texts, result.tokens)
        content = content.with_member("upsert", Body.of(upsert))
        return Outcome(content, result.tokens, [point["code"] for point in upsert["rejected"]])

    def _rendered(self, texts: Sequence[IngestedText], tokens: int) -> Content:
        return self._form.of(ingest_answer(self._request, texts, tokens, self._model))


def render_error(error: WorkerError) -> Mapping[str, Any]:
    """The JSON of an error; that of an ingest says what became of every point."""
    if isinstance(error, IngestFailed):
        return error_answer(error, upsert=upsert_answer(error.report))
    return error_answer(error)


def _is_quick(raw: object) -> bool:
    """Whether a job's input is so small that parsing it takes less than a change of threads."""
    if not isinstance(raw, dict) or not raw.keys() <= _QUICK_FIELDS:
        return False
    texts = raw.get("texts")
    return isinstance(texts, list) and all(isinstance(text, str) for text in texts) and is_quick(texts)


async def _values(answer: Answer) -> Any:
    """The JSON values of an answer, made by a thread if there is much to parse."""
    if isinstance(answer.content, Values) or len(answer.content) <= _QUICK_MAX_BYTES:
        return answer.json
    return await asyncio.to_thread(lambda: answer.json)


def _progress(progress: IngestProgress) -> dict[str, int]:
    return {"settled": progress.done, "points": progress.points}
