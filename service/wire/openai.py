"""OpenAI's embeddings API: `/v1/embeddings` and `/v1/models`, over HTTP and on the queue.

Its answer has no field for a truncated or a failed text, so either is an error of the whole request.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import Embedding, FieldError, ModelFailure, NotFound, Outputs, WorkerError
from qdrant_sink import kind_of
from service import operations
from service.operations import EmbedResult, Operations
from service.validation import counted, invalid_field, is_unicode, shown
from service.wire.answer_types import Count, Numbers
from service.wire.answers import numbers
from service.wire.body import Base64Array, Body
from service.wire.errors import ErrorCode, error_answer, wire_error
from service.wire.fields import NullIsAbsence
from service.wire.outcome import Outcome
from service.wire.parsing import validated
from service.wire.size import SizeLimit, vectors_min_bytes

EMBEDDINGS: Final = "/v1/embeddings"
MODELS: Final = "/v1/models"

_REMEDY: Final = 'send fewer inputs, or set encoding_format "base64"'

_TYPES: Final[Mapping[str, str]] = {
    "invalid_request": "invalid_request_error",
    "not_found": "invalid_request_error",
    "response_too_large": "invalid_request_error",
    "overloaded": "rate_limit_error",
}
"""OpenAI's error `type` by the worker's error code; that of other codes is `server_error`."""


_ITEMS: Final[Mapping[type, str]] = {str: "a string", int: "a token id", list: "a list of token ids"}
"""The kinds of items of an input, of which all items have the same."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """The inputs of a request.

    Attributes:
        texts: the texts; empty if the inputs are token ids.
        token_ids: the token ids of each input; empty if the inputs are texts.
        is_single: whether the request has one input by itself rather than a list of them.
    """

    texts: Sequence[str] = ()
    token_ids: Sequence[Sequence[int]] = ()
    is_single: bool = False

    def __len__(self) -> int:
        """Number of inputs."""
        return len(self.texts) or len(self.token_ids)


def _valid_input(value: Any) -> Inputs:
    """Parse the inputs."""
    if isinstance(value, str):
        return Inputs([value], is_single=True)
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind_of(value)
        raise ValueError(f"must be a string, or a list of strings, of token ids or of lists of token ids, got {got}")
    kinds = Counter(kind for item in value if (kind := type(item)) in _ITEMS)
    if not kinds:
        raise ValueError(f"[0] must be a string, a token id or a list of token ids, got {kind_of(value[0])}")
    ((kind, _),) = kinds.most_common(1)
    for index, item in enumerate(value):
        if type(item) is not kind:
            raise ValueError(f"[{index}] must be {_ITEMS[kind]} like the other items, got {kind_of(item)}")
    if kind is str:
        return Inputs(value)
    if kind is int:
        return Inputs(token_ids=[value], is_single=True)
    for index, ids in enumerate(value):
        if not ids:
            raise ValueError(f"[{index}] must have at least 1 token id, got 0")
        for number, token in enumerate(ids):
            if type(token) is not int:
                raise ValueError(f"[{index}][{number}] must be a token id, got {kind_of(token)}")
    return Inputs(token_ids=value)


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_INPUT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        _IDS,
        {"type": "array", "minItems": 1, "items": _IDS},
    ]
}


class EmbeddingsRequest(NullIsAbsence):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    input: Annotated[Any, AfterValidator(_valid_input), WithJsonSchema(_INPUT)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class QueueJob(NullIsAbsence):
    """A job's input from RunPod's OpenAI proxy."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    openai_route: str
    openai_input: Any = None


class EmbeddingAnswer(TypedDict):
    """An embedding: numbers, or little-endian float32 in base64."""

    object: Literal["embedding"]
    index: Count
    embedding: Numbers | str


class EmbeddingsUsage(TypedDict):
    """Tokens of all inputs."""

    prompt_tokens: Count
    total_tokens: Count


class EmbeddingsAnswer(TypedDict):
    """The answer of `/v1/embeddings`."""

    object: Literal["list"]
    data: list[EmbeddingAnswer]
    model: str
    usage: EmbeddingsUsage


class OpenAIErrorBody(TypedDict):
    """The content of OpenAI's error object; `code` is the worker's error code."""

    message: str
    type: str
    param: str | None
    code: ErrorCode


class OpenAIError(TypedDict):
    """An error in OpenAI's form."""

    error: OpenAIErrorBody


class OpenAIDialect:
    """Answers OpenAI's requests.

    Args:
        core: the operations.
        max_bytes: maximum size of an answer.
    """

    def __init__(self, core: Operations, max_bytes: int) -> None:
        self._core = core
        self._limit = SizeLimit(max_bytes, _REMEDY)
        self._created = int(time.time())

    async def route(self, raw: object) -> Outcome:
        """Answer a job's input from RunPod's OpenAI proxy, `{"openai_route", "openai_input"}`.

        Raises:
            WorkerError: the request failed; `openai_error` renders the error.
        """
        job = validated(QueueJob, raw)
        if job.openai_route == EMBEDDINGS:
            return await self.embeddings(job.openai_input)
        if job.openai_route == MODELS or job.openai_route.startswith(f"{MODELS}/"):
            return self.models(job.openai_route)
        raise NotFound(f"openai_route must be {EMBEDDINGS}, {MODELS} or /v1/rerank, got {shown(job.openai_route)}")

    async def embeddings(self, raw: object) -> Outcome:
        """Answer a request body of `/v1/embeddings`.

        Raises:
            WorkerError: the request failed; `openai_error` renders the error.
        """
        request = await asyncio.to_thread(validated, EmbeddingsRequest, raw, root="the request")
        inputs = operations.EmbedRequest(
            texts=request.input.texts,
            token_ids=request.input.token_ids,
            outputs=Outputs.of(("dense",)),
            role="either",
            refuse_truncation=True,
            label="input",
            is_single=request.input.is_single,
        )
        self._check(request, inputs)
        result = await self._core.embed(inputs)
        return await asyncio.to_thread(self._rendered, request, inputs, result)

    def models(self, path: str) -> Outcome:
        """Answer `/v1/models`, or the path of one model.

        Raises:
            NotFound: the path names another model.
        """
        described_model = {"id": self._core.model_name, "object": "model", "created": self._created, "owned_by": "BAAI"}
        if path == MODELS:
            return Outcome(Body.of({"object": "list", "data": [described_model]}))
        if path == f"{MODELS}/{self._core.model_name}":
            return Outcome(Body.of(described_model))
        raise NotFound(self._unknown_model_message(path.removeprefix(f"{MODELS}/")))

    def _check(self, request: EmbeddingsRequest, inputs: operations.EmbedRequest) -> None:
        max_texts = self._core.settings.max_texts
        if len(request.input) > max_texts:
            raise invalid_field(
                "input", f"must have at most {counted(max_texts, 'item')} (MAX_TEXTS), got {len(request.input)}"
            )
        if request.model not in (None, self._core.model_name):
            message = self._unknown_model_message(request.model or "")
            raise NotFound(message, fields=[FieldError("model", message)])
        size = self._core.hidden_size
        if request.dimensions not in (None, size):
            raise invalid_field(
                "dimensions", f"must be {size}, the size of the model's vectors, got {request.dimensions}"
            )
        encoding: Literal["list", "base64"] = "list" if request.encoding_format == "float" else "base64"
        lengths = [1] * len(request.input)
        self._limit.check_minimum(vectors_min_bytes(lengths, dense=size, colbert=0, encoding=encoding, dtype="float32"))
        for index, text in enumerate(inputs.texts):
            if not is_unicode(text):
                raise invalid_field(inputs.field(index), "is not valid Unicode (a lone surrogate)")

    def _rendered(self, request: EmbeddingsRequest, inputs: operations.EmbedRequest, result: EmbedResult) -> Outcome:
        data: list[EmbeddingAnswer] = []
        for index, embedding in enumerate(result.texts):
            if isinstance(embedding, ModelFailure):
                raise embedding.at(inputs.field(index))
            data.append({"object": "embedding", "index": index, "embedding": _dense(embedding, request)})
        answer: EmbeddingsAnswer = {
            "object": "list",
            "data": data,
            "model": self._core.model_name,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        }
        body = Body.of(answer)
        self._limit.check(body)
        return Outcome(body, tokens=result.tokens)

    def _unknown_model_message(self, model: str) -> str:
        return f"model must be '{self._core.model_name}', as GET {MODELS} lists it, got {shown(model)}"


def is_openai(raw: object) -> bool:
    """Whether a job's input comes from RunPod's OpenAI proxy."""
    return isinstance(raw, dict) and raw.get("openai_route") is not None


def openai_error(error: WorkerError) -> OpenAIError:
    """Render an error as OpenAI's object."""
    answer = error_answer(error)
    fields = answer["details"].get("errors") or [{"field": None}]
    return {
        "error": {
            "message": answer["error"],
            "type": _TYPES.get(wire_error(error).code, "server_error"),
            "param": fields[0]["field"],
            "code": answer["error_code"],
        }
    }


def _dense(embedding: Embedding, request: EmbeddingsRequest) -> Any:
    if embedding.dense is None:
        raise ModelFailure("the model gave no dense vector")
    dense = numbers(embedding.dense)
    return dense if request.encoding_format == "float" else Base64Array(dense.astype("<f4", copy=False))
