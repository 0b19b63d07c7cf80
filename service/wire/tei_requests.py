"""The requests of Text Embeddings Inference: fields and defaults of its server, each with its own validation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator, ConfigDict, Field, ValidationInfo, WithJsonSchema

from qdrant_sink import kind_of
from service.operations import Role
from service.validation import is_unicode, shown
from service.wire.fields import NullIsAbsence, RankWeights, limits_of

ROLES: Final[Mapping[str | None, Role]] = {None: "either", "query": "query", "passage": "passage"}
"""The role of texts by the name of their prompt. The prompts are empty, since the model needs none."""


def _check_text(text: Any, item: str) -> None:
    """Check a text; `item` is its index with a blank behind it, or empty for a text by itself."""
    if isinstance(text, int | list) and not isinstance(text, bool):
        raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
            f"{item}must be a string: token ids are refused, since those of another tokenizer give wrong vectors"
        )
    if not isinstance(text, str):
        raise ValueError(f"{item}must be a string, got {kind_of(text)}")  # noqa: TRY004 - as above
    if not is_unicode(text):
        raise ValueError(f"{item}is not valid Unicode (a lone surrogate)")


def _valid_inputs(inputs: Any, info: ValidationInfo) -> Any:
    """Check the inputs: a string, or a list of strings. Of a list that has too many, the answer says only that."""
    if not isinstance(inputs, str | list):
        raise ValueError(f"must be a string or a list of strings, got {kind_of(inputs)}")  # noqa: TRY004 - as above
    if isinstance(inputs, str):
        _check_text(inputs, "")
        return inputs
    return _valid_texts(inputs, info)


def _valid_texts(texts: list[Any], info: ValidationInfo) -> list[Any]:
    if len(texts) <= limits_of(info).max_texts:
        for index, text in enumerate(texts):
            _check_text(text, f"[{index}] ")
    return texts


def _valid_query(query: str) -> str:
    _check_text(query, "")
    return query


def _valid_direction(direction: str) -> str:
    if direction.lower() != "right":
        raise ValueError(f'must be "right", got {shown(direction)}; texts are truncated at their end')
    return direction


def _valid_prompt(name: str) -> str:
    if name not in ROLES:
        raise ValueError(f"must be 'query' or 'passage', got {shown(name)}; leave it out for either")
    return name


def _is_normalized(normalize: bool) -> bool:  # noqa: FBT001 - a validator's
    if not normalize:
        raise ValueError("must be true, got false: the model's dense vectors always have an L2 norm of 1")
    return normalize


_INPUTS = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "items": {"type": "string", "minLength": 1}},
    ]
}
_RIGHT = {"enum": ["right", "Right"]}
_PROMPT = {"enum": ["query", "passage"]}


class _Tei(NullIsAbsence):
    """Base of requests: strict types; null is absence, and unknown fields are ignored as TEI's server does."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    truncate: bool = True
    truncation_direction: Annotated[str, AfterValidator(_valid_direction), WithJsonSchema(_RIGHT)] = "right"


class TeiSparseRequest(_Tei):
    """The body of `/embed_sparse`."""

    inputs: Annotated[Any, AfterValidator(_valid_inputs), WithJsonSchema(_INPUTS)]
    prompt_name: Annotated[str, AfterValidator(_valid_prompt), WithJsonSchema(_PROMPT)] | None = None

    @property
    def texts(self) -> list[str]:
        """The inputs as a list."""
        return [self.inputs] if self.is_single else self.inputs

    @property
    def is_single(self) -> bool:
        """Whether the inputs are one text by itself rather than a list."""
        return isinstance(self.inputs, str)


class TeiEmbedRequest(TeiSparseRequest):
    """The body of `/`, and of `/embed` with `inputs`."""

    normalize: Annotated[bool, AfterValidator(_is_normalized), WithJsonSchema({"enum": [True]})] = True
    dimensions: Annotated[int, Field(ge=1)] | None = None


class TeiRerankRequest(_Tei):
    """The body of `/rerank` with `texts`."""

    query: Annotated[str, AfterValidator(_valid_query)]
    texts: Annotated[
        list[Any], AfterValidator(_valid_texts), WithJsonSchema({**_INPUTS["anyOf"][1], "items": {"type": "string"}})
    ]
    raw_scores: bool = False
    return_text: bool = False
    top_n: Annotated[int, Field(ge=1)] | None = None
    weights: RankWeights | None = None
