"""Requests of OpenAI's embeddings API: strict in their types, lenient about fields that others have added.

Beside OpenAI's fields there are vLLM's for truncation, and `vectors` for the other kinds of the model.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema, field_validator

from embedder import KINDS, Kind
from qdrant_sink import kind_of
from service.validation import counted, shown
from service.wire.fields import FIELDS_MAX, Kinds, Limits, NullIsAbsence, limits_of, tokens_within_model
from service.wire.parsing import validated
from service.wire.size import Encoding

WORKER_LIMIT: Final = -1
"""Value of `truncate_prompt_tokens` for the limit of the worker, `PASSAGE_MAX_LENGTH`."""

_LENGTH_MIN: Final = 3
"""Minimum of `truncate_prompt_tokens`: one token between the special ones."""

_NAMES_MAX: Final = 10
"""Maximum number of ignored fields that a warning names."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
"""Names that a warning may show, since it is sent in a header."""

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


def _valid_input(value: Any, info: ValidationInfo) -> Inputs:
    """Parse the inputs. Of too many, which are refused afterwards, only the first ones are checked."""
    if isinstance(value, str):
        return Inputs([value], is_single=True)
    if not isinstance(value, list) or not value:
        got = "an empty list" if value == [] else kind_of(value)
        raise ValueError(f"must be a string, or a list of strings, of token ids or of lists of token ids, got {got}")
    inputs = value if type(value[0]) is int else value[: limits_of(info).max_texts]
    kinds = Counter(kind for item in inputs if (kind := type(item)) in _ITEMS)
    if not kinds:
        raise ValueError(f"[0] must be a string, a token id or a list of token ids, got {kind_of(value[0])}")
    ((kind, _),) = kinds.most_common(1)
    for index, item in enumerate(inputs):
        if type(item) is not kind:
            raise ValueError(f"[{index}] must be {_ITEMS[kind]} like the other items, got {kind_of(item)}")
    if kind is str:
        return Inputs(value)
    if kind is int:
        return Inputs(token_ids=[value], is_single=True)
    for index, ids in enumerate(inputs):
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

    model_config = ConfigDict(
        strict=True, extra="forbid", frozen=True, json_schema_extra={"additionalProperties": True}
    )

    input: Annotated[Any, AfterValidator(_valid_input), WithJsonSchema(_INPUT)]
    model: str | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    user: str | None = None
    truncate_prompt_tokens: int | None = None
    truncation_side: Literal["right"] | None = None
    vectors: Kinds | None = None

    @field_validator("truncate_prompt_tokens")
    @classmethod
    def _is_length(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is None or value == WORKER_LIMIT:
            return value
        if value < _LENGTH_MIN:
            raise ValueError(f"must be {WORKER_LIMIT} or at least {_LENGTH_MIN}, got {shown(value)}")
        return tokens_within_model(value, info)

    @property
    def encoding(self) -> Encoding:
        """The encoding of the vectors."""
        return "list" if self.encoding_format == "float" else "base64"

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors to answer with; the dense one is always among them, since it is OpenAI's."""
        return tuple(kind for kind in KINDS if kind == "dense" or kind in (self.vectors or ()))


class QueueJob(NullIsAbsence):
    """A job's input from RunPod's OpenAI proxy."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    openai_route: str
    openai_input: Any = None


def parse_embeddings(raw: object, limits: Limits, *, strict: bool) -> tuple[EmbeddingsRequest, list[str]]:
    """Parse the body of `/v1/embeddings`.

    Args:
        raw: the body.
        limits: the limits of the worker.
        strict: whether an unknown field is an error. Otherwise it is ignored.

    Returns:
        The request, and the names of the ignored fields.

    Raises:
        InvalidRequest: the body is invalid.
    """
    ignored: list[str] = []
    if not strict and isinstance(raw, dict) and len(raw) <= FIELDS_MAX:
        fields = EmbeddingsRequest.model_fields
        ignored = [name for name, value in raw.items() if name not in fields and value is not None]
        raw = {name: value for name, value in raw.items() if name in fields}
    return validated(EmbeddingsRequest, raw, limits, root="the request"), ignored


def ignored_warning(names: Sequence[str]) -> str:
    """The warning about ignored fields, in printable ASCII: the first names, and the number of the others.

    A name of other characters than letters, digits, dot, hyphen and underscore is only counted.
    """
    shown = [name for name in names if _NAME.fullmatch(name)][:_NAMES_MAX]
    hidden = len(names) - len(shown)
    if hidden:
        shown.append(f"and {hidden} more" if shown else counted(hidden, "field"))
    return f"unknown fields ignored: {', '.join(shown)}"
