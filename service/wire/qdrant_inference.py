"""Qdrant's inference protocol, `/qdrant/inference`: a Qdrant server sends texts here, and stores or searches vectors.

The server collects the `Document`s of one request of its client: each text once per model and options, in no particular
order. The answer has a vector per input and no place for a failed text, so one failure is an error of the whole
request. The server reads the message of an error from the status 400 alone, and from the only field `error`; it logs
an answer in any other form and returns all of it to its client.
"""

from __future__ import annotations

import asyncio
import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Annotated, Any, Final, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, WithJsonSchema
from typing_extensions import TypedDict  # pydantic cannot describe that of Python 3.11

from embedder import KINDS, Embedding, InvalidRequest, Kind, ModelFailure, Outputs, WorkerError
from qdrant_sink import kind_of
from service import operations
from service.operations import Operations
from service.validation import counted, invalid_field, is_unicode, shown
from service.wire.answer_types import Count, Numbers, Rows, SparseAnswer
from service.wire.body import Body
from service.wire.errors import ResponseTooLarge, error_answer
from service.wire.fields import NullIsAbsence, or_null
from service.wire.outcome import Answer, Outcome
from service.wire.parsing import validated
from service.wire.streamed import NUMBER_MAX_BYTES, Streamed
from service.wire.work import beside

INFERENCE: Final = "/qdrant/inference"

INPUTS_MAX: Final = 200_000
"""Maximum inputs of a request, each of which takes half a kilobyte: so many of ten tokens each can wait for the model.
"""

INPUT_BYTES: Final = 1024
"""Memory of an input in bytes beside its text and vector, with its part of the answer."""

_QUICK_MAX_INPUTS: Final = 16
"""Maximum inputs of a request that the event loop parses itself, which takes no longer than a thread switch."""

_WHOLE_MAX_BYTES: Final = 256 * 1024
"""Maximum size of an answer that the event loop writes in one piece, in 0.6 ms."""

_INDEX_MAX_BYTES: Final = 10
"""Maximum bytes of a token id in JSON."""

_BRACKETS_BYTES: Final = 32
"""Bytes around the numbers of a vector, such as `{"indices":[],"values":[]},`, and around those of all vectors."""

_OPTION_NAME_MAX: Final = 64
"""Maximum characters of an unknown option's name in an error."""

_TOKEN_NAMES_MAX: Final = 16
"""Maximum occurrences of the name `token`, from the end of a body, at which its value is looked for."""

_TOKEN: Final = re.compile(rb'"token"\s*:\s*("(?:[^"\\]|\\.){0,1024}+")')
"""A token of bounded length, and without backtracking, since the body may be a stranger's."""

_SERVER_STATUSES: Final = frozenset({400, 401, 403, 429})
"""Statuses of a client error that the server understands."""


def _text_type(value: Any) -> Any:
    if value != "text":
        raise ValueError(f"must be 'text', got {shown(value)}; this worker embeds texts as {', '.join(KINDS)}")
    return value


def _check_count(inputs: Any) -> Any:
    if isinstance(inputs, list) and len(inputs) > INPUTS_MAX:
        raise ValueError(f"must have at most {INPUTS_MAX} items, got {len(inputs)}; send fewer points in a request")
    return inputs


def _unicode(text: str) -> str:
    if not is_unicode(text):
        raise ValueError("is not valid Unicode (a lone surrogate)")
    return text


def _output(options: Any) -> Kind | None:
    """The kind of vector that the options of an input ask for."""
    if not isinstance(options, dict):
        raise ValueError(f"must be an object, got {kind_of(options)}")  # noqa: TRY004 - pydantic collects ValueErrors
    for name in options:
        if name != "output":
            known = name[:_OPTION_NAME_MAX].encode("utf-8", "replace").decode()
            raise ValueError(f".{known} is an unknown option; the only option is output: {', '.join(KINDS)}")
    output = options.get("output")
    if output is not None and output not in KINDS:
        raise ValueError(f".output must be {', '.join(KINDS[:-1])} or {KINDS[-1]}, got {shown(output)}")
    return output


_OPTIONS = {
    "type": "object",
    "properties": {"output": or_null({"enum": list(KINDS), "default": "dense", "description": "the kind of vector"})},
    "additionalProperties": False,
}


class InferenceInput(NullIsAbsence):
    """A text, and the vector that is wanted of it."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    data_type: Annotated[Any, AfterValidator(_text_type), WithJsonSchema({"enum": ["text"]})] = "text"
    data: Annotated[str, AfterValidator(_unicode)]
    model: Annotated[str, Field(description="the served name, or one with :dense, :sparse or :colbert behind it")]
    output: Annotated[Kind | None, BeforeValidator(_output), WithJsonSchema(_OPTIONS), Field(alias="options")] = None


class InferenceRequest(NullIsAbsence):
    """The body of `/qdrant/inference`."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    inputs: Annotated[list[InferenceInput], Field(fail_fast=True, min_length=1), BeforeValidator(_check_count)]
    inference: Literal["update", "search"] = "update"
    token: Annotated[str, Field(description="the key of this worker, unless it is in a header or in ?key=")] | None = (
        None
    )


class ModelUsage(TypedDict):
    """Tokens of the texts of one model."""

    tokens: Count


class InferenceUsage(TypedDict):
    """Tokens by the name of the model in the request."""

    models: dict[str, ModelUsage]


class InferenceAnswer(TypedDict):
    """The vectors in the order of the inputs: numbers (dense), indices and values (sparse), or rows (ColBERT)."""

    embeddings: list[Numbers | SparseAnswer | Rows]
    usage: InferenceUsage


class InferenceError(TypedDict):
    """An error in the form that the server reads."""

    error: Annotated[str, Field(description="message with the field, the limit and the value")]


@dataclass(frozen=True, slots=True, eq=False)
class _Text:
    """A distinct text of a request.

    Attributes:
        text: the text.
        model: name of the model in the first input with this text, without the kind behind it.
        kinds: the kind of vector of each input with this text.
    """

    text: str
    model: str
    kinds: list[Kind]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The texts of a request, each once, and the vectors that its inputs want.

    Attributes:
        role: the role of all texts.
        texts: the distinct texts.
        wanted: text and kind of each input.
    """

    role: operations.Role
    texts: Sequence[_Text]
    wanted: Sequence[tuple[_Text, Kind]]

    def groups(self) -> list[tuple[Outputs, list[_Text]]]:
        """The texts by the union of their kinds. ColBERT rows in float16 take half the memory until they are sent."""
        groups: dict[Outputs, list[_Text]] = {}
        for text in self.texts:
            groups.setdefault(Outputs.of(frozenset(text.kinds), "float16"), []).append(text)
        return list(groups.items())


class InferenceDialect:
    """Answers the requests of a Qdrant server.

    Args:
        core: the operations.
    """

    def __init__(self, core: Operations) -> None:
        self._core = core

    async def embeddings(self, raw: object) -> Outcome:
        """Answer a request body of `/qdrant/inference`.

        Everything that can fail fails here; a large answer is then written as fast as it is read.

        Raises:
            WorkerError: the request failed; `inference_error` renders the error.
        """
        inputs = raw.get("inputs") if isinstance(raw, dict) else None
        if isinstance(inputs, list) and len(inputs) <= INPUTS_MAX:
            self._core.memory.grow(len(inputs) * INPUT_BYTES)
        quick = isinstance(inputs, list) and len(inputs) <= _QUICK_MAX_INPUTS
        batch = self._parsed(raw) if quick else await beside(lambda: self._parsed(raw), raw)
        admission = _Admission(self._core)
        embeddings = await self._embedded(batch, admission)
        usage: dict[str, ModelUsage] = {}
        for text in batch.texts:
            usage.setdefault(text.model, {"tokens": 0})["tokens"] += embeddings[text].tokens
        parts: list[bytes | NDArray[Any]] = [b'{"embeddings":[']
        for text, kind in batch.wanted:
            parts += [*_vector(embeddings[text], kind), b","]
        parts[-1] = b'],"usage":%b}' % bytes(Body.of({"models": usage}))
        answer = Streamed(parts)
        small = admission.size <= _WHOLE_MAX_BYTES
        return Outcome(Body((), bytes(answer)) if small else answer, sum(model["tokens"] for model in usage.values()))

    def _parsed(self, raw: object) -> _Batch:
        request = validated(InferenceRequest, raw, root="the body")
        models: dict[str, tuple[str, Kind | None]] = {}
        texts: dict[str, _Text] = {}
        wanted: list[tuple[_Text, Kind]] = []
        for index, item in enumerate(request.inputs):
            if item.model not in models:
                models[item.model] = self._model(item.model, f"inputs[{index}].model")
            model, suffix = models[item.model]
            if suffix is not None and item.output not in {None, suffix}:
                message = f"must be '{suffix}' like the kind behind the model, or left out, got '{item.output}'"
                raise invalid_field(f"inputs[{index}].options.output", message)
            kind = suffix or item.output or "dense"
            text = texts.setdefault(item.data, _Text(item.data, model, []))
            text.kinds.append(kind)
            wanted.append((text, kind))
        return _Batch("query" if request.inference == "search" else "passage", list(texts.values()), wanted)

    def _model(self, name: str, field: str) -> tuple[str, Kind | None]:
        """The served name and the kind that the name of a model consists of."""
        names = self._core.model_names
        base, _, suffix = name.rpartition(":")
        if name not in names.names:  # any other name can have a suffix, also where the worker accepts any
            for kind in KINDS:
                if suffix == kind and base in names:
                    return base, kind
        if name in names:
            return name, None
        suffixes = ", ".join(f":{kind}" for kind in KINDS)
        message = f"must be {names.listed}, or that with one of {suffixes} behind it, got {shown(name)}"
        raise invalid_field(field, message)

    async def _embedded(self, batch: _Batch, admission: _Admission) -> dict[_Text, Embedding]:
        """The embedding of each text. Texts that want different kinds are embedded concurrently."""
        works = [self._embedded_group(batch.role, group, outputs, admission) for outputs, group in batch.groups()]
        if len(works) == 1:
            return await works[0]
        tasks = [asyncio.ensure_future(work) for work in works]
        try:
            results = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return {text: embedding for embeddings in results for text, embedding in embeddings.items()}

    async def _embedded_group(
        self, role: operations.Role, group: Sequence[_Text], outputs: Outputs, admission: _Admission
    ) -> dict[_Text, Embedding]:
        request = operations.EmbedRequest([text.text for text in group], outputs=outputs, role=role, label="inputs")
        result = await self._core.embed(request, lambda tokens: admission.admit(group, tokens))
        embeddings = {}
        for text, embedding in zip(group, result.texts, strict=True):
            if isinstance(embedding, ModelFailure):
                raise embedding.at("inputs")
            embeddings[text] = embedding
        return embeddings


class _Admission:
    """Refuses a request that exceeds a limit before the model computes the texts of which that is known.

    Args:
        core: the operations, with the sizes of vectors and the limits.

    Attributes:
        size: upper bound on the size of the answer in bytes.
    """

    def __init__(self, core: Operations) -> None:
        self._dense = core.hidden_size
        self._colbert = core.colbert_size
        self._max_bytes = core.settings.inference_max_response_bytes
        self._max_tokens = core.settings.queue_tokens
        self.size = _BRACKETS_BYTES
        self._tokens = 0

    def admit(self, group: Sequence[_Text], tokens: Sequence[int]) -> None:
        """Count the texts of a group, given with their numbers of tokens.

        Raises:
            InvalidRequest: the texts can never wait for the model together. The message says how many of them fit.
            ResponseTooLarge: the answer could exceed the limit. The message says how many texts fit.
        """
        sizes = [
            sum(self._vector_max_bytes(kind, length) for kind in text.kinds)
            for text, length in zip(group, tokens, strict=True)
        ]
        size, waiting = self.size + sum(sizes), self._tokens + sum(tokens)
        if waiting > self._max_tokens:
            fitting = _fitting(tokens, self._max_tokens - self._tokens)
            raise InvalidRequest(
                f"only {fitting} of {counted(len(group), 'text')} fit into the queue "
                f"(QUEUE_TOKENS={self._max_tokens}, got {waiting}); {_remedy(fitting)}"
            )
        if size > self._max_bytes:
            fitting = _fitting(sizes, self._max_bytes - self.size)
            raise ResponseTooLarge(
                f"only {fitting} of {counted(len(group), 'text')} fit into an answer of {self._max_bytes} bytes "
                f"(INFERENCE_MAX_RESPONSE_MB), which could have {size}; {_remedy(fitting)}",
                size=size,
                limit=self._max_bytes,
            )
        self.size, self._tokens = size, waiting

    def _vector_max_bytes(self, kind: Kind, tokens: int) -> int:
        """Upper bound on the JSON of a vector of a text with so many tokens."""
        number = NUMBER_MAX_BYTES + len(",")
        match kind:
            case "dense":
                return _BRACKETS_BYTES + self._dense * number
            case "sparse":  # a weight per token at most
                return _BRACKETS_BYTES + tokens * (number + _INDEX_MAX_BYTES + len(","))
            case "colbert":
                return _BRACKETS_BYTES + (tokens - 1) * (self._colbert * number + len("[],"))


def _remedy(fitting: int) -> str:
    """The way out where so many texts of a request fit."""
    return "send fewer points in a request" if fitting else "shorten the texts, or raise the limit"


def _fitting(sizes: Sequence[int], limit: int) -> int:
    """How many texts of these sizes fit together, from the first one on."""
    return bisect_right(list(accumulate(sizes)), limit)


def _vector(embedding: Embedding, kind: Kind) -> Sequence[bytes | NDArray[Any]]:
    """The JSON of a vector in parts, with its numbers as arrays."""
    if kind == "dense" and embedding.dense is not None:
        return (np.ascontiguousarray(embedding.dense),)
    if kind == "sparse" and embedding.sparse is not None:
        indices, values = embedding.sparse.indices, embedding.sparse.values
        return b'{"indices":', np.ascontiguousarray(indices), b',"values":', np.ascontiguousarray(values), b"}"
    if kind == "colbert" and embedding.colbert is not None:
        return (np.ascontiguousarray(embedding.colbert),)
    raise ModelFailure(f"the model gave no {kind} vector")


def inference_error(error: WorkerError) -> InferenceError:
    """Render an error as the server reads it."""
    return {"error": error_answer(error)["error"]}


def as_server_reads(answer: Answer) -> Answer:
    """The answer with status 400 in place of every client error that the server does not understand."""
    other = 400 <= answer.status < 500 and answer.status not in _SERVER_STATUSES
    return replace(answer, status=400) if other else answer


def token_in(body: bytes | bytearray) -> str | None:
    """The `token` of a request body, found without parsing the body of a caller who may not have the key.

    The server writes it last, so it is looked for from the end. The result is only a candidate: it may be that of an
    object inside, until the body is parsed.
    """
    end = len(body)
    for _ in range(_TOKEN_NAMES_MAX):
        end = body.rfind(b'"token"', 0, end)
        if end < 0:
            return None
        found = _TOKEN.match(body, end)
        if found is not None:
            try:
                token: str = json.loads(found[1])
            except ValueError:
                return None
            return token
    return None
