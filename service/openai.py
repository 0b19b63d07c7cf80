"""OpenAI's embeddings API over the model: `/v1/embeddings` and `/v1/models`, for the queue and for HTTP alike.

On the queue a job's input is `{"openai_route": "/v1/embeddings", "openai_input": {...}}`. Answers are OpenAI's
objects. Its answer has no place to say that a text was cut, so one that is too long is refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema

from embedder.batching import Priority
from embedder.embedder import Embedder
from embedder.errors import InvalidRequest, ModelFailure, NotFound
from embedder.forward import Result
from embedder.tokenizer import EncodedText
from embedder.vectors import Embedding, Outputs
from service.naming import at, named
from service.requests import validated
from service.responses import Json, check_least_size, check_size, vectors_json

EMBEDDINGS: Final = "/v1/embeddings"
MODELS: Final = "/v1/models"

REMEDY: Final = "send fewer inputs, or use encoding_format base64"

_TYPES: Mapping[str, str] = {
    "invalid_request": "invalid_request_error",
    "not_found": "invalid_request_error",
    "response_too_large": "invalid_request_error",
    "overloaded": "rate_limit_error",
}
"""OpenAI's `type` of an error by our code; of all others `server_error`."""


def _valid_input(value: Any) -> list[str] | list[list[int]]:
    """The inputs as a list, all of one kind."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("must be a string, or a list of strings, of token ids or of lists of token ids, not empty")
    if all(isinstance(one, str) for one in value):
        return value
    texts = [value] if all(_is_integer(one) for one in value) else value
    for index, ids in enumerate(texts):
        if not isinstance(ids, list) or not ids or not all(_is_integer(one) for one in ids):
            raise ValueError(f"[{index}] must be of the same kind as the others: strings, or lists of token ids")
    return texts


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


_IDS = {"type": "array", "minItems": 1, "items": {"type": "integer", "minimum": 0}}
_INPUT = {
    "anyOf": [
        {"type": "string"},
        {"type": "array", "minItems": 1, "items": {"type": "string"}},
        _IDS,
        {"type": "array", "minItems": 1, "items": _IDS},
    ]
}


class EmbeddingsRequest(BaseModel):
    """The body of `/v1/embeddings`."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    input: Annotated[Any, AfterValidator(_valid_input), WithJsonSchema(_INPUT)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None


class QueueJob(BaseModel):
    """A job's input as RunPod's OpenAI proxy writes it."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    openai_route: str
    openai_input: Any = None


class OpenAIRoutes:
    """Answers OpenAI's requests.

    Args:
        embedder: the loaded model.
        model: its name on the wire.
        max_texts: inputs at most.
        query_length: tokens up to which a single input counts as a query, which goes before passages.
        max_length: tokens of an input at most; a longer one is refused.
        max_bytes: of an answer.
    """

    def __init__(
        self, embedder: Embedder, *, model: str, max_texts: int, query_length: int, max_length: int, max_bytes: int
    ) -> None:
        self._embedder = embedder
        self._model = model
        self._max_texts = max_texts
        self._query_length = query_length
        self._max_length = max_length
        self._max_bytes = max_bytes
        self._created = int(time.time())

    async def answer(self, raw: object) -> Json:
        """OpenAI's object for a job's input.

        Raises:
            WorkerError: see `openai_error` for its form on the wire.
        """
        job = validated(QueueJob, raw)
        if job.openai_route == EMBEDDINGS:
            return await self._embeddings(job.openai_input)
        if job.openai_route == MODELS:
            return {"object": "list", "data": [self._listed()]}
        if job.openai_route == f"{MODELS}/{self._model}":
            return self._listed()
        if job.openai_route.startswith(f"{MODELS}/"):
            raise NotFound(self._other_model())
        raise NotFound(f"openai_route must be {EMBEDDINGS} or {MODELS}")

    async def _embeddings(self, raw: object) -> Json:
        request = await asyncio.to_thread(validated, EmbeddingsRequest, raw)
        if len(request.input) > self._max_texts:
            message = f"input must have at most {self._max_texts} items (MAX_TEXTS), got {len(request.input)}"
            raise at("input", InvalidRequest, message)
        if request.model not in (None, self._model):
            raise at("model", NotFound, self._other_model())
        size = self._embedder.hidden_size
        if request.dimensions not in (None, size):
            message = f"dimensions must be the model's own, {size}, got {request.dimensions}"
            raise at("dimensions", InvalidRequest, message)
        bytes_per_number = 4 if request.encoding_format == "float" else 16 / 3
        check_least_size(int(len(request.input) * size * bytes_per_number), self._max_bytes, remedy=REMEDY)
        texts = await asyncio.to_thread(self._tokenized, request.input)
        single = len(texts) == 1 and len(texts[0]) <= self._query_length
        with named("input"):
            results = await self._embedder.embed_tokens(
                texts, Outputs.of(["dense"]), priority=Priority.QUERY if single else Priority.PASSAGE
            )
        return await asyncio.to_thread(self._embedded, request, results)

    def _tokenized(self, inputs: Sequence[Any]) -> list[EncodedText]:
        if isinstance(inputs[0], str):
            _check_unicode(inputs)
            with named("input"):
                texts = self._embedder.tokenize(inputs, self._max_length, at_once=True)
        else:
            texts = [self._framed(index, ids) for index, ids in enumerate(inputs)]
        for index, text in enumerate(texts):
            if text.truncated or len(text) > self._max_length:
                rule = f"input[{index}] must have at most {self._max_length} tokens (PASSAGE_MAX_LENGTH)"
                got = ", got more" if text.truncated else f" with the special ones, got {len(text)}"
                raise at(f"input[{index}]", InvalidRequest, rule + got)
        return texts

    def _framed(self, index: int, ids: Sequence[int]) -> EncodedText:
        try:
            return self._embedder.encoded(ids)
        except ValueError as error:
            raise at(f"input[{index}]", InvalidRequest, f"input[{index}]{error}") from None

    def _embedded(self, request: EmbeddingsRequest, results: Sequence[Result]) -> Json:
        data = []
        tokens = 0
        for index, result in enumerate(results):
            if isinstance(result, ModelFailure):  # OpenAI's answer has no place for the error of one input
                raise type(result)(f"input[{index}]: {result.message}")
            data.append({"object": "embedding", "index": index, "embedding": _dense(result, request.encoding_format)})
            tokens += result.tokens
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        answer: Json = {"object": "list", "data": data, "model": self._model, "usage": usage}
        return check_size(answer, self._max_bytes, remedy=REMEDY)

    def _other_model(self) -> str:
        return f"model: this worker serves '{self._model}' only (GET {MODELS} names it)"

    def _listed(self) -> Json:
        return {"id": self._model, "object": "model", "created": self._created, "owned_by": "BAAI"}


def is_openai(raw: object) -> bool:
    """Whether a job's input is one of OpenAI's."""
    return isinstance(raw, dict) and "openai_route" in raw


def openai_error(error: Json) -> Json:
    """An error of ours as OpenAI's object."""
    named = error["details"].get("errors") or [{"field": None}]
    return {
        "error": {
            "message": error["error"],
            "type": _TYPES.get(error["error_code"], "server_error"),
            "param": named[0]["field"],
            "code": error["error_code"],
        }
    }


def _check_unicode(texts: Sequence[str]) -> None:
    for index, text in enumerate(texts):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            message = f"input[{index}] is not valid Unicode (a lone surrogate)"
            raise at(f"input[{index}]", InvalidRequest, message) from None


def _dense(embedding: Embedding, encoding_format: str) -> Any:
    if encoding_format == "float":
        return vectors_json(embedding)["dense"]
    return vectors_json(embedding, encoding="base64")["dense"]["data"]
