"""The types of request fields, and the limits that they are validated against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError

from embedder import KINDS, InvalidRequest, Kind
from qdrant_sink import (
    COLLECTION_NAME,
    INTEGER_ID_MAX,
    OVERSAMPLING,
    PayloadKeys,
    WithPayload,
    canonical_selection_path,
    canonical_value_path,
    kind_of,
    parse_filter,
    path_of_key,
)
from service.validation import counted, is_unicode, shown

PAYLOAD_KEYS_MAX = 100
"""Maximum number of payload keys in one selection."""

FIELDS_MAX = 1000
"""Maximum number of fields in a request or in a block of it, unknown ones included."""

KINDS_SHOWN_MAX = 6
"""Maximum number of kinds that an error lists."""

_KEYS_OF_FIELD = frozenset({"default", "description", "title"})
"""Keys of a JSON schema that describe a field rather than its value."""

PATH_CHARACTERS_MAX = 255
"""Maximum length of a path of payload keys in characters."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of a worker that requests are validated against.

    Attributes:
        max_texts: maximum number of texts, queries or pairs in a request.
        max_length: maximum length of a text in tokens, which the model sets.
    """

    max_texts: int
    max_length: int


def limits_of(info: ValidationInfo) -> Limits:
    """The limits that a request is validated against."""
    context = info.context
    if not isinstance(context, Limits):
        raise TypeError("requests are validated by parse(), which knows the limits")
    return context


def tokens_within_model(value: int, info: ValidationInfo) -> int:
    """Validate that a number of tokens is within the model's limit."""
    limit = limits_of(info).max_length
    if value > limit:
        raise ValueError(f"must be at most {limit} tokens, the limit of the model, got {shown(value)}")
    return value


def check_count(items: object, info: ValidationInfo) -> object:
    """Check the number of texts before any of them is validated."""
    limit = limits_of(info).max_texts
    if isinstance(items, list) and len(items) > limit:
        raise ValueError(f"must have at most {counted(limit, 'item')} (MAX_TEXTS), got {len(items)}")
    return items


def check_weight_count(weights: object) -> object:
    """Check that there are no more weights than kinds of vectors, before any of them is validated."""
    if isinstance(weights, list) and len(weights) > len(KINDS):
        raise ValueError(f"must have at most {counted(len(KINDS), 'item')}, got {len(weights)}")
    return weights


def _valid_texts(texts: list[str]) -> list[str]:
    for index, text in enumerate(texts):
        if not is_unicode(text):
            raise ValueError(f"[{index}] is not valid Unicode (a lone surrogate)")
    return texts


def _valid_pairs(pairs: list[list[str]]) -> list[list[str]]:
    for index, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"[{index}] must have 2 items, a query and a passage, got {len(pair)}")
        for side, text in enumerate(pair):
            if not is_unicode(text):
                raise ValueError(f"[{index}][{side}] is not valid Unicode (a lone surrogate)")
    return pairs


def _valid_rank_weights(weights: list[float]) -> list[float]:
    if len(weights) != 3:
        raise ValueError(f"must have exactly 3 items (dense, sparse, colbert), got {len(weights)}")
    if not any(weights):
        raise ValueError("must be above 0 for at least one kind of vector, got 0 for all")
    return weights


def without_nulls(raw: object) -> object:
    """An object without its fields that are null, since null is absence; other values unchanged."""
    if isinstance(raw, dict) and None in raw.values():
        return {name: value for name, value in raw.items() if value is not None}
    return raw


def or_null(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON schema of a field that may be null as well, beside its default and description."""
    if _allows_null(schema):
        return schema
    of_field = {key: value for key, value in schema.items() if key in _KEYS_OF_FIELD}
    of_value = {key: value for key, value in schema.items() if key not in _KEYS_OF_FIELD}
    kinds = of_value["anyOf"] if of_value.keys() == {"anyOf"} else [of_value]
    return {"anyOf": [*kinds, {"type": "null"}], **of_field}


def _allows_null(schema: dict[str, Any]) -> bool:
    if "anyOf" in schema:
        return any(_allows_null(kind) for kind in schema["anyOf"])
    return schema.get("type") == "null" or not schema.keys() & {"type", "$ref", "enum", "const"}


def _check_field_count(raw: object) -> object:
    """Check the number of fields of an object: each is copied, and each unknown one would be an error."""
    if isinstance(raw, dict) and len(raw) > FIELDS_MAX:
        raise PydanticCustomError("too_many_fields", "", {"max": FIELDS_MAX, "count": len(raw)})
    return raw


def _valid_ids(ids: list[Any]) -> list[int | str]:
    for index, raw in enumerate(ids):
        if isinstance(raw, str):
            if not raw:
                raise ValueError(f"[{index}] must have at least 1 character, got 0")
            if not is_unicode(raw):
                raise ValueError(f"[{index}] is not valid Unicode (a lone surrogate)")
        elif isinstance(raw, bool) or not isinstance(raw, int):
            raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
                f"[{index}] must be an integer or a string, got {kind_of(raw)}"
            )
        elif not 0 <= raw <= INTEGER_ID_MAX:
            raise ValueError(f"[{index}] must be from 0 to 2^64 - 1, got {shown(raw)}")
    return ids


def _distinct(kinds: list[Kind]) -> list[Kind]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"must not repeat a kind, got {_listed(kinds)}")
    return kinds


def _listed(kinds: list[Kind]) -> str:
    hidden = len(kinds) - KINDS_SHOWN_MAX
    return ", ".join(kinds[:KINDS_SHOWN_MAX]) + (f" and {hidden} more" if hidden > 0 else "")


def _valid_key(key: str) -> str:
    if not is_unicode(key):
        raise ValueError("is not valid Unicode (a lone surrogate)")
    return key


def _valid_text_key(key: str) -> str:
    path_of_key(_valid_key(key))
    return key


def payload_selection(raw: object) -> WithPayload:
    """Parse `withPayload`: the whole payload, none, these keys, or all keys but these."""
    if isinstance(raw, bool):
        return raw
    if isinstance(raw, list):
        return PayloadKeys(_keys(raw, ""))
    raw = without_nulls(raw)
    if isinstance(raw, dict) and len(raw) == 1 and raw.keys() <= {"include", "exclude"}:
        ((which, keys),) = raw.items()
        if not isinstance(keys, list):
            raise ValueError(f".{which} must be a list, got {kind_of(keys)}")
        return PayloadKeys(_keys(keys, f".{which}"), excluded=which == "exclude")
    got = f"an object with {_fields(raw)}" if isinstance(raw, dict) else kind_of(raw)
    raise ValueError(f"must be a boolean, a list of keys, or an object with either include or exclude, got {got}")


def _fields(raw: dict[str, object]) -> str:
    if not raw:
        return "neither"
    return "both" if raw.keys() == {"include", "exclude"} else "other fields"


def vector_selection(raw: object) -> tuple[Kind, ...]:
    """Parse `withVectors`: all vectors, none, or these kinds."""
    if isinstance(raw, bool):
        return KINDS if raw else ()
    if not isinstance(raw, list):
        raise ValueError(f"must be a boolean or a list of kinds, got {kind_of(raw)}")  # noqa: TRY004 - as above
    for index, kind in enumerate(raw):
        if kind not in KINDS:
            raise ValueError(f"[{index}] must be one of {', '.join(KINDS)}, got {shown(kind)}")
    return tuple(_distinct(raw))


def _keys(raw: list[object], path: str) -> tuple[str, ...]:
    if not 1 <= len(raw) <= PAYLOAD_KEYS_MAX:
        raise ValueError(f"{path} must have 1 to {PAYLOAD_KEYS_MAX} keys, got {len(raw)}".strip())
    for index, key in enumerate(raw):
        if not isinstance(key, str):
            raise ValueError(f"{path}[{index}] must be a string, got {kind_of(key)}")  # noqa: TRY004 - as above
        if len(key) > PATH_CHARACTERS_MAX:
            rule = f"must have at most {PATH_CHARACTERS_MAX} characters"
            raise ValueError(f"{path}[{index}] {rule}, got {len(key)}")
        try:
            canonical_selection_path(_valid_key(key))
        except ValueError as error:
            raise ValueError(f"{path}[{index}] {error}") from error
    return tuple(str(key) for key in raw)


def _valid_filter(raw: dict[str, Any]) -> Mapping[str, Any]:
    try:
        return parse_filter(raw)
    except InvalidRequest as error:
        raise ValueError(error.message) from None  # pydantic collects it beside those of other fields


def check_dtype(encoding: str, dtype: str) -> None:
    """Check that lists, which have no type, are not asked for in float16."""
    if encoding == "list" and dtype == "float16":
        raise ValueError("dtype: must be 'float32' with encoding 'list', got 'float16'; use encoding 'base64'")


def _rows(*schemas: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": {"anyOf": [*schemas, {"type": "null"}]}}


Collection = Annotated[str, Field(pattern=COLLECTION_NAME)]
# The first invalid item ends the validation of a list: an error for each of millions of items takes gigabytes.
Texts = Annotated[
    list[str], Field(fail_fast=True, min_length=1), BeforeValidator(check_count), AfterValidator(_valid_texts)
]
Pairs = Annotated[
    list[Annotated[list[str], Field(fail_fast=True)]],
    Field(fail_fast=True, min_length=1),
    BeforeValidator(check_count),
    AfterValidator(_valid_pairs),
]
Weight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
RankWeights = Annotated[
    list[Weight],
    Field(fail_fast=True, json_schema_extra={"minItems": 3, "maxItems": 3}),
    AfterValidator(_valid_rank_weights),
]
TextKey = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_valid_text_key)]
GroupBy = Annotated[str, Field(max_length=PATH_CHARACTERS_MAX), AfterValidator(canonical_value_path)]
Kinds = Annotated[list[Kind], Field(fail_fast=True, min_length=1), AfterValidator(_distinct)]
Ids = Annotated[list[Any], AfterValidator(_valid_ids)]
RowIds = Annotated[list[Any], WithJsonSchema(_rows({"type": "integer"}, {"type": "string"}))]
"""One id or null per text. The ingest validates them, since an invalid one rejects its own point alone."""

Payloads = Annotated[list[Any], WithJsonSchema(_rows({"type": "object", "additionalProperties": True}))]
"""One payload or null per text, validated as `RowIds` are."""

Filter = Annotated[dict[str, Any], BeforeValidator(_check_field_count), AfterValidator(_valid_filter)]


class NullIsAbsence(BaseModel):
    """Base of types in which a field that is null is absent, known or not."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, raw: object) -> object:
        return without_nulls(_check_field_count(raw))

    @classmethod
    def __get_pydantic_json_schema__(cls, core_schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        described = handler.resolve_ref_schema(handler(core_schema))
        required = described.get("required", ())
        for name, field in described.get("properties", {}).items():
            if name not in required:
                described["properties"][name] = or_null(field)
        if described.get("additionalProperties") is False:
            described["additionalProperties"] = {"type": "null"}
        return described


class Wire(NullIsAbsence):
    """Base of requests and their parts: strict types, camelCase names, no unknown fields; null is absence."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=to_camel)


class QuantizationParams(Wire):
    """Use of the quantized vectors, if the collection has them."""

    ignore: bool = False
    rescore: bool = True
    oversampling: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False)] = OVERSAMPLING


class SearchParams(Wire):
    """Parameters of the search in Qdrant: `hnswEf` widens the graph search, `exact` searches without the index."""

    hnsw_ef: Annotated[int, Field(ge=1, le=100_000)] | None = None
    exact: bool = False
    indexed_only: bool = False
    quantization: QuantizationParams = QuantizationParams()
