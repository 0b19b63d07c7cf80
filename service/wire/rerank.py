"""The rerank API of Cohere and Jina: `/v1/rerank`, `/v2/rerank` and `/rerank`, over HTTP and on the queue.

The answer has no field for a document that failed, so a failure is an error of the whole request. An error object has
the message under `message`, as Cohere's, and under `detail`, as Jina's.
"""

from __future__ import annotations

import uuid
from typing import Annotated, Any, Final, Literal, NotRequired

import orjson
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import FieldError, NotFound, WorkerError
from qdrant_sink import kind_of
from service import operations
from service.logs import REQUEST_ID
from service.operations import Operations, RankedDocument, RerankResult, Weights
from service.validation import is_unicode, shown
from service.wire.answer_types import Count
from service.wire.body import Body
from service.wire.errors import ErrorCode, error_answer
from service.wire.fields import Limits, NullIsAbsence, RankWeights, check_count
from service.wire.outcome import Outcome
from service.wire.parsing import validated
from service.wire.rendered_memory import texts_max_bytes
from service.wire.size import SizeLimit
from service.wire.work import beside

RERANK: Final = "/rerank"
RERANK_V1: Final = "/v1/rerank"
RERANK_V2: Final = "/v2/rerank"
PATHS: Final = (RERANK_V1, RERANK_V2, RERANK)

_REMEDY: Final = "send fewer documents, or set return_documents false"

_TOKENS_MIN: Final = 3
"""Minimum of `max_tokens_per_doc`: the two special tokens and one of the text."""

Scored = Annotated[float, Field(ge=0, le=1)]


def _valid_query(query: Any) -> str:
    """Parse the query: a string, or an object with the string under `text`."""
    text = query.get("text") if isinstance(query, dict) else query
    if not isinstance(text, str):
        raise ValueError(f"must be a string or an object with text, got {kind_of(query)}")  # noqa: TRY004 - as below
    if not text:
        raise ValueError("must have at least 1 character, got 0")
    if not is_unicode(text):
        raise ValueError("is not valid Unicode (a lone surrogate)")
    return text


def _valid_documents(documents: list[Any]) -> list[Any]:
    for index, document in enumerate(documents):
        text = document.get("text") if isinstance(document, dict) else document
        if not isinstance(text, str):
            got = "an object without it" if isinstance(document, dict) else kind_of(document)
            raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
                f"[{index}] must be a string or an object with the string text, got {got}"
            )
        if not is_unicode(text):
            raise ValueError(f"[{index}] is not valid Unicode (a lone surrogate)")
        if isinstance(document, dict):
            _check_returnable(index, document)
    return documents


def _check_returnable(index: int, document: dict[str, Any]) -> None:
    """Check that the answer can contain the document, whose other keys nothing else validates."""
    try:
        orjson.dumps(document)
    except TypeError:
        rule = "must have neither a lone surrogate, an integer beyond 64 bits nor 250 levels of nesting"
        raise ValueError(f"[{index}] {rule}") from None


def _valid_rank_fields(fields: list[str]) -> list[str]:
    if fields != ["text"]:
        raise ValueError('must be ["text"], the only field of a document that is ranked; leave it out')
    return fields


def _valid_chunks(count: int) -> int:
    if count != 1:
        raise ValueError(f"must be 1, since a document is ranked as a whole, got {shown(count)}; leave it out")
    return count


_DOCUMENT = {
    "type": "object",
    "properties": {"text": {"type": "string"}},
    "required": ["text"],
    "additionalProperties": True,
}
_QUERY = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {**_DOCUMENT, "properties": {"text": {"minLength": 1, "type": "string"}}},
    ]
}
_DOCUMENTS = {"type": "array", "minItems": 1, "items": {"anyOf": [{"type": "string"}, _DOCUMENT]}}


class RerankRequest(NullIsAbsence):
    """The body of `/v1/rerank`, `/v2/rerank` and, with `documents`, of `/rerank`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str | None = None
    query: Annotated[Any, AfterValidator(_valid_query), WithJsonSchema(_QUERY)]
    documents: Annotated[
        list[Any],
        Field(min_length=1),
        BeforeValidator(check_count),
        AfterValidator(_valid_documents),
        WithJsonSchema(_DOCUMENTS),
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    max_tokens_per_doc: Annotated[int, Field(ge=_TOKENS_MIN)] | None = None
    max_chunks_per_doc: Annotated[int, AfterValidator(_valid_chunks), WithJsonSchema({"const": 1})] | None = None
    rank_fields: (
        Annotated[
            list[str], Field(fail_fast=True), AfterValidator(_valid_rank_fields), WithJsonSchema({"const": ["text"]})
        ]
        | None
    ) = None
    priority: int | None = None
    weights: RankWeights | None = None


class RerankJob(NullIsAbsence):
    """A job's input from RunPod's OpenAI proxy."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    openai_route: Literal["/v1/rerank"]
    openai_input: Any = None


class RankedDocumentAnswer(TypedDict):
    """A document in the ranking: its index in the request, and its relevance from 0 to 1."""

    index: Count
    relevance_score: Scored
    document: NotRequired[Annotated[dict[str, Any], Field(description="with return_documents")]]


class RerankUsage(TypedDict):
    """Tokens of the query and of the distinct documents."""

    prompt_tokens: Count
    total_tokens: Count


class RerankTokens(TypedDict):
    """The same tokens in Cohere's form."""

    input_tokens: Count
    output_tokens: Count


class RerankVersion(TypedDict):
    """The version of Cohere's API."""

    version: Literal["1", "2"]


class RerankMeta(TypedDict):
    """The block in which Cohere's clients look for the version and the tokens."""

    api_version: RerankVersion
    tokens: RerankTokens


class RerankAnswer(TypedDict):
    """The ranking, best first; equal documents are in the order of the request."""

    id: Annotated[str, Field(description="the request id")]
    model: str
    results: list[RankedDocumentAnswer]
    usage: RerankUsage
    meta: RerankMeta


class RerankError(TypedDict):
    """An error, with its message where clients of Cohere and of Jina look for it."""

    message: str
    detail: str
    error_code: ErrorCode


class RerankDialect:
    """Answers rerank requests in the form of Cohere and Jina.

    Args:
        core: the operations.
        limits: the limits of requests.
        max_bytes: maximum size of an answer.
    """

    def __init__(self, core: Operations, limits: Limits, max_bytes: int) -> None:
        self._core = core
        self._limits = limits
        self._limit = SizeLimit(max_bytes, _REMEDY)

    async def route(self, raw: object) -> Outcome:
        """Answer a job's input from RunPod's OpenAI proxy, `{"openai_route", "openai_input"}`.

        Raises:
            WorkerError: the request failed; `rerank_error` renders the error.
        """
        return await self.rerank(validated(RerankJob, raw).openai_input, RERANK_V1)

    async def rerank(self, raw: object, path: str) -> Outcome:
        """Answer a request body of one of `PATHS`.

        Raises:
            WorkerError: the request failed; `rerank_error` renders the error.
        """
        request = await beside(lambda: validated(RerankRequest, raw, self._limits, root="the request"), raw)
        self._check_model(request.model)
        texts = [_text(document) for document in request.documents]
        if request.return_documents:
            self._core.memory.grow(texts_max_bytes(texts))
        result = await self._core.rerank(
            operations.RerankRequest(
                request.query,
                texts,
                weights=Weights(*(request.weights or self._core.settings.rerank_weights)),
                max_document_length=self._document_length(request.max_tokens_per_doc),
            )
        )
        version: Literal["1", "2"] = "2" if path == RERANK_V2 else "1"
        return await beside(lambda: self._rendered(request, result, version), request, result)

    def _check_model(self, model: str | None) -> None:
        if model is not None and model not in self._core.model_names:
            message = f"model must be {self._core.model_names.listed}, as GET /v1/models shows, got {shown(model)}"
            raise NotFound(message, fields=[FieldError("model", message)])

    def _document_length(self, max_tokens: int | None) -> int | None:
        """The limit of documents. Cohere's clients may send a number that is above the model's limit."""
        return None if max_tokens is None else min(max_tokens, self._core.max_length)

    def _rendered(self, request: RerankRequest, result: RerankResult, version: Literal["1", "2"]) -> Outcome:
        answer: RerankAnswer = {
            "id": REQUEST_ID.get() or uuid.uuid4().hex,
            "model": self._core.model_name,
            "results": [_result(request, document) for document in result.ranking[: request.top_n]],
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
            "meta": {
                "api_version": {"version": version},
                "tokens": {"input_tokens": result.tokens, "output_tokens": 0},
            },
        }
        body = Body.of(answer)
        self._limit.check(body)
        return Outcome(body, tokens=result.tokens)


def is_rerank_job(raw: object) -> bool:
    """Whether a job's input is a rerank request from RunPod's OpenAI proxy."""
    return isinstance(raw, dict) and raw.get("openai_route") == RERANK_V1


def rerank_error(error: WorkerError) -> RerankError:
    """Render an error in the form of Cohere and Jina."""
    answer = error_answer(error)
    return {"message": answer["error"], "detail": answer["error"], "error_code": answer["error_code"]}


def _text(document: Any) -> str:
    text: str = document["text"] if isinstance(document, dict) else document
    return text


def _result(request: RerankRequest, ranked: RankedDocument) -> RankedDocumentAnswer:
    answer: RankedDocumentAnswer = {"index": ranked.index, "relevance_score": ranked.relevance}
    if request.return_documents:
        document = request.documents[ranked.index]
        answer["document"] = document if isinstance(document, dict) else {"text": document}
    return answer
