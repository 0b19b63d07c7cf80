"""The API of Hugging Face's Text Embeddings Inference: `/embed`, `/embed_sparse`, `/rerank` and `/info`.

Fields, defaults, answers and errors are those of its server (router/src/http). Like it, requests ignore unknown fields.
Its answers have no field for a truncated or a failed text: truncation is allowed unless `truncate` is false, and a
failure is an error of the whole request.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Final, Literal, NotRequired

import orjson
from pydantic import Field, RootModel
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import DeviceLost, Embedding, InvalidRequest, Kind, ModelFailure, Outputs, SparseVector, WorkerError
from service import __version__, operations
from service.operations import Operations, RerankResult, Weights
from service.validation import shown
from service.wire.answer_types import Count, Numbers
from service.wire.answers import numbers
from service.wire.body import Body
from service.wire.errors import Loading, cause_of, wire_error
from service.wire.fields import Limits
from service.wire.outcome import Outcome
from service.wire.parsing import validated
from service.wire.rendered_memory import rendered_max_bytes, texts_max_bytes
from service.wire.size import SizeLimit, vectors_min_bytes
from service.wire.tei_requests import ROLES, TeiEmbedRequest, TeiRerankRequest, TeiSparseRequest
from service.wire.work import beside

ROOT: Final = "/"
EMBED: Final = "/embed"
EMBED_SPARSE: Final = "/embed_sparse"
INFO: Final = "/info"

_EMBED_REMEDY: Final = "send fewer inputs"
_RERANK_REMEDY: Final = "send fewer texts, or set return_text false"

ErrorType = Literal["Unhealthy", "Backend", "Overloaded", "Validation", "Tokenizer", "Empty"]

_ERROR_TYPES: Final[Mapping[str, ErrorType]] = {
    "invalid_request": "Validation",
    "not_found": "Validation",
    "response_too_large": "Validation",
    "overloaded": "Overloaded",
    "model_failure": "Backend",
    "internal": "Backend",
    "cancelled": "Unhealthy",
}
"""TEI's `error_type` by the worker's error code."""

_STATUSES: Final[Mapping[str, int]] = {"invalid_request": 422, "response_too_large": 422, "model_failure": 424}
"""TEI's HTTP status by the worker's error code, where it differs from the worker's own."""


class EmptyInput(InvalidRequest):
    """There are no inputs, or one of them is empty."""


def _check_not_empty(texts: Sequence[str], label: str, *, is_single: bool = False) -> None:
    if not texts:
        raise EmptyInput(f"`{label}` cannot be empty")
    for index, text in enumerate(texts):
        if not text:
            raise EmptyInput(f"`{label if is_single else f'{label}[{index}]'}` cannot be empty")


class TeiDense(RootModel[list[Numbers]]):
    """The dense vectors, in the order of the inputs."""


class TeiWeight(TypedDict):
    """A token id and its weight."""

    index: Count
    value: float


class TeiSparse(RootModel[list[list[TeiWeight]]]):
    """The sparse vectors, in the order of the inputs; the indices of each are ascending."""


class TeiRank(TypedDict):
    """A text in the ranking: its index in the request, and its score."""

    index: Count
    text: NotRequired[Annotated[str, Field(description="with return_text")]]
    score: float


class TeiRanks(RootModel[list[TeiRank]]):
    """The ranking, best first; equal texts are in the order of the request."""


class TeiPooling(TypedDict):
    """How the dense vector follows from those of the tokens."""

    pooling: Literal["cls"]


class TeiModelType(TypedDict):
    """The type of the model."""

    embedding: TeiPooling


class TeiInfo(TypedDict):
    """The answer of `/info`."""

    model_id: str
    model_sha: str | None
    model_dtype: str
    served_model_name: str
    model_type: TeiModelType
    max_concurrent_requests: Count
    max_input_length: Count
    max_batch_tokens: Count
    max_batch_requests: Count | None
    max_client_batch_size: Count
    auto_truncate: bool
    tokenization_workers: Count
    version: str
    sha: str | None
    docker_label: str | None


class TeiError(TypedDict):
    """An error in TEI's form."""

    error: str
    error_type: ErrorType


class TeiDialect:
    """Answers TEI's requests.

    Args:
        core: the operations.
        limits: the limits of requests.
        max_bytes: maximum size of an answer.
    """

    def __init__(self, core: Operations, limits: Limits, max_bytes: int) -> None:
        self._core = core
        self._limits = limits
        self._embed_limit = SizeLimit(max_bytes, _EMBED_REMEDY)
        self._rerank_limit = SizeLimit(max_bytes, _RERANK_REMEDY)

    async def embed(self, raw: object) -> Outcome:
        """Answer a request body of `/` or `/embed`.

        Raises:
            WorkerError: the request failed; `tei_error` renders the error.
        """
        request = await beside(lambda: validated(TeiEmbedRequest, raw, self._limits, root="the request"), raw)
        size = self._core.hidden_size
        if request.dimensions not in (None, size):
            raise InvalidRequest(
                f"dimensions must be {size}, the size of the model's vectors, got {shown(request.dimensions)}"
            )
        self._check_texts(request)
        self._embed_limit.check_minimum(
            vectors_min_bytes([1] * len(request.texts), dense=size, colbert=0, encoding="list", dtype="float32")
        )
        return await self._embedded(request, "dense", _dense)

    async def embed_sparse(self, raw: object) -> Outcome:
        """Answer a request body of `/embed_sparse`.

        Raises:
            WorkerError: the request failed; `tei_error` renders the error.
        """
        request = await beside(lambda: validated(TeiSparseRequest, raw, self._limits, root="the request"), raw)
        self._check_texts(request)
        return await self._embedded(request, "sparse", _sparse)

    async def rerank(self, raw: object) -> Outcome:
        """Answer a request body of `/rerank` with `texts`.

        Raises:
            WorkerError: the request failed; `tei_error` renders the error.
        """
        request = await beside(lambda: validated(TeiRerankRequest, raw, self._limits, root="the request"), raw)
        if not request.texts:
            raise EmptyInput("`texts` cannot be empty")
        self._check_count(len(request.texts))
        if request.return_text:
            self._core.memory.grow(texts_max_bytes(request.texts))
        result = await self._core.rerank(
            operations.RerankRequest(
                request.query,
                request.texts,
                weights=Weights(*(request.weights or self._core.settings.rerank_weights)),
                refuse_truncation=not request.truncate,
                label="texts",
            )
        )
        body = await beside(lambda: Body.of(_ranks(request, result)), request.texts, result)
        self._rerank_limit.check(body)
        return Outcome(body, tokens=result.tokens)

    def info(self) -> Outcome:
        """Answer `/info`."""
        core, settings = self._core, self._core.settings
        answer: TeiInfo = {
            "model_id": core.model_name,
            "model_sha": settings.model_revision,
            "model_dtype": core.model_dtype,
            "served_model_name": core.model_name,
            "model_type": {"embedding": {"pooling": "cls"}},
            # So many requests of one text each wait for the model before it is overloaded, however long the texts are.
            "max_concurrent_requests": max(1, settings.queue_tokens // core.limits.passage),
            "max_input_length": core.limits.passage,
            "max_batch_tokens": core.token_budget,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_texts,
            "auto_truncate": True,
            "tokenization_workers": os.cpu_count() or 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
        return Outcome(Body.of(answer))

    def _check_texts(self, request: TeiSparseRequest) -> None:
        _check_not_empty(request.texts, "inputs", is_single=request.is_single)
        self._check_count(len(request.texts))

    def _check_count(self, count: int) -> None:
        if count > self._limits.max_texts:
            raise InvalidRequest(
                f"batch size {count} > maximum allowed batch size {self._limits.max_texts} (MAX_TEXTS)"
            )

    async def _embedded(self, request: TeiSparseRequest, kind: Kind, render: Callable[[Embedding], object]) -> Outcome:
        texts = operations.EmbedRequest(
            texts=request.texts,
            outputs=Outputs.of((kind,)),
            role=ROLES[request.prompt_name],
            refuse_truncation=not request.truncate,
            label="inputs",
            is_single=request.is_single,
        )
        core = self._core

        def admit(tokens: Sequence[int]) -> None:
            core.memory.grow(
                rendered_max_bytes(tokens, (kind,), dense=core.hidden_size, colbert=core.colbert_size, encoding="list")
            )

        result = await core.embed(texts, admit)

        def rendered() -> Body:
            for index, text in enumerate(result.texts):
                if isinstance(text, ModelFailure):
                    raise text.at(texts.field(index))
            return Body.of([render(embedding) for embedding in result.embeddings])

        body = await beside(rendered, result)
        self._embed_limit.check(body)
        return Outcome(body, tokens=result.tokens)


def is_tei_embed(raw: object) -> bool:
    """Whether a request body of `/embed` is TEI's: it has `inputs` in place of `texts`. Null is absence."""
    return isinstance(raw, dict) and "inputs" in raw and raw.get("texts") is None


def is_tei_rerank(raw: object) -> bool:
    """Whether a request body of `/rerank` is TEI's: it has `texts` in place of `documents`. Null is absence."""
    return isinstance(raw, dict) and raw.get("texts") is not None and raw.get("documents") is None


def tei_error(error: WorkerError) -> TeiError:
    """Render an error in TEI's form."""
    cause = cause_of(error)
    if isinstance(cause, EmptyInput):
        return {"error": cause.message, "error_type": "Empty"}
    if isinstance(cause, Loading | DeviceLost):
        return {"error": cause.message, "error_type": "Unhealthy"}
    wire = wire_error(cause)
    error_type = _ERROR_TYPES.get(wire.code, "Backend")
    prefix = "Backend error: " if error_type == "Backend" else ""
    if wire.status in (400, 413):  # an invalid request rather than a missing key or a wrong method
        prefix = "Input validation error: "
    return {"error": prefix + cause.message, "error_type": error_type}


def tei_status(error: WorkerError) -> int:
    """The HTTP status that TEI's server gives an error of an operation."""
    wire = wire_error(error)
    if isinstance(cause_of(error), DeviceLost):  # unlike another failure of the model it passes on another worker
        return wire.status
    return 400 if isinstance(cause_of(error), EmptyInput) else _STATUSES.get(wire.code, wire.status)


def _dense(embedding: Embedding) -> object:
    if embedding.dense is None:
        raise ModelFailure("the model gave no dense vector")
    return numbers(embedding.dense)


def _sparse(embedding: Embedding) -> object:
    if embedding.sparse is None:
        raise ModelFailure("the model gave no sparse vector")
    return _weights(embedding.sparse)


def _weights(sparse: SparseVector) -> orjson.Fragment:
    """The `{"index", "value"}` objects of a sparse vector, written from its buffers without creating Python numbers."""
    indices, values = (
        orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY)[1:-1].split(b",")
        for array in (sparse.indices, numbers(sparse.values))
    )
    if not len(sparse.indices):
        return orjson.Fragment(b"[]")
    pairs = (b'{"index":%b,"value":%b}' % pair for pair in zip(indices, values, strict=True))
    return orjson.Fragment(b"[%b]" % b",".join(pairs))


def _ranks(request: TeiRerankRequest, result: RerankResult) -> list[TeiRank]:
    ranks: list[TeiRank] = []
    for document in result.ranking[: request.top_n]:
        rank: TeiRank = {
            "index": document.index,
            "score": document.mean if request.raw_scores else document.relevance,
        }
        if request.return_text:
            rank["text"] = request.texts[document.index]
        ranks.append(rank)
    return ranks
