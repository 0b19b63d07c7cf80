"""OpenAI's embeddings API: `/v1/embeddings` and `/v1/models`, over HTTP and on the queue.

Its answer has no field for a truncated or a failed text, so either is an error of the whole request.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NotRequired

from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import Embedding, FieldError, ModelFailure, NotFound, Outputs, WorkerError
from service import operations
from service.operations import EmbedResult, Operations
from service.validation import counted, invalid_field, is_unicode, shown
from service.wire.answer_types import ArrayAnswer, Count, Numbers, Rows, SparseAnswer, TextAnswer
from service.wire.answers import add_vectors, numbers
from service.wire.body import Base64Array, Body
from service.wire.errors import ErrorCode, error_answer, wire_error
from service.wire.fields import Limits
from service.wire.openai_requests import (
    WORKER_LIMIT,
    EmbeddingsRequest,
    QueueJob,
    ignored_warning,
    parse_embeddings,
)
from service.wire.outcome import Outcome
from service.wire.parsing import validated
from service.wire.rendered_memory import rendered_max_bytes
from service.wire.size import SizeLimit, vectors_min_bytes
from service.wire.work import beside

EMBEDDINGS: Final = "/v1/embeddings"
MODELS: Final = "/v1/models"
AZURE_MODELS: Final = "/openai/models"

DEPLOYMENT: Final = "/openai/deployments/{model}/embeddings"
"""Template of the path of Azure's clients, whose deployment is the model."""

_WORKER: Final = "bge-m3-qdrant"
"""Owner of a model whose name has no organisation."""

_REMEDY: Final = 'send fewer inputs, or set encoding_format "base64"'
_COLBERT_REMEDY: Final = 'send fewer inputs, leave "colbert" out of vectors, or set encoding_format "base64"'

_LENGTH_REMEDY: Final = (
    'shorten it, send "truncate_prompt_tokens": -1 to have it cut, or set OPENAI_TRUNCATE=true on the worker'
)

_IDS_REFUSED: Final = (
    "must be a string or a list of strings, got token ids; those of another tokenizer give wrong vectors. Send texts "
    "(LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False), or set ALLOW_TOKEN_IDS=true on the worker if "
    "they are ids of this model's tokenizer"
)

_TYPES: Final[Mapping[str, str]] = {
    "invalid_request": "invalid_request_error",
    "not_found": "invalid_request_error",
    "response_too_large": "invalid_request_error",
    "overloaded": "rate_limit_error",
}
"""OpenAI's error `type` by the worker's error code; that of other codes is `server_error`."""


class EmbeddingAnswer(TypedDict):
    """An embedding: numbers, or little-endian float32 in base64. The other kinds are there if `vectors` names them."""

    object: Literal["embedding"]
    index: Count
    embedding: Numbers | str
    sparse_embedding: NotRequired[SparseAnswer]
    colbert_embedding: NotRequired[Rows | ArrayAnswer]


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
        self._max_bytes = max_bytes
        self._limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
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

    async def embeddings(self, raw: object, deployment: str | None = None) -> Outcome:
        """Answer a request body of `/v1/embeddings`.

        Args:
            raw: the body.
            deployment: the model in the path of Azure's form, in place of the body's.

        Raises:
            WorkerError: the request failed; `openai_error` renders the error.
        """
        if deployment is not None and isinstance(raw, dict):
            raw = {**raw, "model": deployment}
        strict = self._core.settings.openai_strict
        request, ignored = await beside(lambda: parse_embeddings(raw, self._limits, strict=strict), raw)
        truncation = request.truncate_prompt_tokens
        inputs = operations.EmbedRequest(
            texts=request.input.texts,
            token_ids=request.input.token_ids,
            outputs=Outputs.of(request.kinds),
            role="either",
            max_length=None if truncation == WORKER_LIMIT else truncation,
            refuse_truncation=truncation is None and not self._core.settings.openai_truncate,
            length_remedy=_LENGTH_REMEDY,
            label="input",
            is_single=request.input.is_single,
        )
        self._check(request, inputs)
        result = await self._core.embed(inputs, lambda tokens: self._admit(request, tokens))
        body = await beside(lambda: self._rendered(request, inputs, result), result)
        return Outcome(body, result.tokens, warnings=_warnings(ignored, result))

    def models(self, path: str) -> Outcome:
        """Answer `/v1/models`, or the path of one model.

        Raises:
            NotFound: the path names another model.
        """
        names = self._core.model_names
        if path in (MODELS, AZURE_MODELS):
            return Outcome(Body.of({"object": "list", "data": [self._described(name) for name in names.names]}))
        name = path.removeprefix(f"{MODELS}/")
        if name not in names:
            raise NotFound(self._unknown_model_message(name))
        return Outcome(Body.of(self._described(name if name in names.names else names.first)))

    def _described(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self._created, "owned_by": _owner(name)}

    def _check(self, request: EmbeddingsRequest, inputs: operations.EmbedRequest) -> None:
        settings, count = self._core.settings, len(request.input)
        if inputs.token_ids and not settings.allow_token_ids:
            raise invalid_field("input", _IDS_REFUSED)
        if count > settings.max_texts:
            raise invalid_field(
                "input", f"must have at most {counted(settings.max_texts, 'item')} (MAX_TEXTS), got {count}"
            )
        if request.model is not None and request.model not in self._core.model_names:
            message = self._unknown_model_message(request.model)
            raise NotFound(message, fields=[FieldError("model", message)])
        size = self._core.hidden_size
        if request.dimensions not in (None, size):
            raise invalid_field(
                "dimensions", f"must be {size}, the size of the model's vectors, got {shown(request.dimensions)}"
            )
        self._check_minimum(request, [1] * count)
        for index, text in enumerate(inputs.texts):
            if not is_unicode(text):
                raise invalid_field(inputs.field(index), "is not valid Unicode (a lone surrogate)")

    def _check_minimum(self, request: EmbeddingsRequest, tokens: Sequence[int]) -> None:
        """Check that the vectors of inputs with these numbers of tokens can fit into an answer."""
        colbert = self._core.colbert_size if "colbert" in request.kinds else 0
        size = vectors_min_bytes(
            tokens, dense=self._core.hidden_size, colbert=colbert, encoding=request.encoding, dtype="float32"
        )
        self._limit(request).check_minimum(size)

    def _admit(self, request: EmbeddingsRequest, tokens: Sequence[int]) -> None:
        """Check the size of the answer, and reserve its memory."""
        self._check_minimum(request, tokens)
        self._core.memory.grow(
            rendered_max_bytes(
                tokens,
                request.kinds,
                dense=self._core.hidden_size,
                colbert=self._core.colbert_size,
                encoding=request.encoding,
            )
        )

    def _limit(self, request: EmbeddingsRequest) -> SizeLimit:
        return SizeLimit(self._max_bytes, _COLBERT_REMEDY if "colbert" in request.kinds else _REMEDY)

    def _rendered(self, request: EmbeddingsRequest, inputs: operations.EmbedRequest, result: EmbedResult) -> Body:
        data: list[EmbeddingAnswer] = []
        for index, embedding in enumerate(result.texts):
            if isinstance(embedding, ModelFailure):
                raise embedding.at(inputs.field(index))
            data.append(_embedding(index, embedding, request))
        answer: EmbeddingsAnswer = {
            "object": "list",
            "data": data,
            "model": self._core.model_name,
            "usage": {"prompt_tokens": result.tokens, "total_tokens": result.tokens},
        }
        body = Body.of(answer)
        self._limit(request).check(body)
        return body

    def _unknown_model_message(self, model: str) -> str:
        names = self._core.model_names
        them = "it" if len(names.names) == 1 else "them"
        return f"model must be {names.listed}, as GET {MODELS} lists {them}, got {shown(model)}"


def is_openai(raw: object) -> bool:
    """Whether a job's input comes from RunPod's OpenAI proxy."""
    return isinstance(raw, dict) and raw.get("openai_route") is not None


def is_openai_path(path: str) -> bool:
    """Whether a path of a URL, known or not, is one of OpenAI's or Azure's."""
    return path.startswith(("/v1/", "/openai/"))


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


def _owner(name: str) -> str:
    """The organisation in a model name, or the worker if the name has none."""
    organisation, _, rest = name.partition("/")
    return organisation if rest else _WORKER


def _embedding(index: int, embedding: Embedding, request: EmbeddingsRequest) -> EmbeddingAnswer:
    if embedding.dense is None:
        raise ModelFailure("the model gave no dense vector")
    dense: Any = numbers(embedding.dense)
    if request.encoding == "base64":
        dense = Base64Array(dense.astype("<f4", copy=False))
    answer: EmbeddingAnswer = {"object": "embedding", "index": index, "embedding": dense}
    vectors: TextAnswer = {}
    add_vectors(vectors, embedding, request.encoding, "float32")
    if "sparse" in vectors:
        answer["sparse_embedding"] = vectors["sparse"]
    if "colbert" in vectors:
        answer["colbert_embedding"] = vectors["colbert"]
    return answer


def _warnings(ignored: Sequence[str], result: EmbedResult) -> list[str]:
    """The warnings of an answer, which has no field for them."""
    warnings = [ignored_warning(ignored)] if ignored else []
    if truncated := sum(embedding.truncated for embedding in result.embeddings):
        warnings.append(f"truncated: {counted(truncated, 'input')}")
    return warnings
