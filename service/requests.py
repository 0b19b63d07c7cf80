"""Job JSON to frozen request types, one per operation. What passes here needs no further check.

Wire names are camelCase, Python names snake_case. Types are strict (`1.0` is no integer, `"true"` no
boolean), unknown fields are refused by name, and every complaint is an `InvalidRequest` that names the
field, the limit and the value, but never quotes a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import ErrorDetails

from embedder.chunking import MIN_TOKENS
from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.filters import check_filter
from qdrant_sink.points import MAX_INTEGER_ID
from qdrant_sink.store import COLLECTION_NAME

MOST_HITS = 1_000_000
"""Of one search job, before they are cut to pages: what a worker can hold beside the model."""

MOST_EXPLAINED = 1000
"""Hits of one job that are explained: each is tokenized anew."""

MOST_EXPLAINED_ROWS = 100
"""Likewise where their ColBERT rows are fetched: a client's lists of 1023 rows of 1024 take 32 MB."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a request is checked against beyond its own form.

    Attributes:
        max_texts: most texts or queries of a job.
        max_length: the model's limit in tokens.
    """

    max_texts: int
    max_length: int


def _limits(info: ValidationInfo) -> Limits:
    context = info.context
    if not isinstance(context, Limits):
        raise TypeError("requests are validated by parse(), which knows the limits")
    return context


def _tokens_within_model(value: int, info: ValidationInfo) -> int:
    limit = _limits(info).max_length
    if value > limit:
        raise ValueError(f"must be at most the model's {limit} tokens, got {_shown(value)}")
    return value


def _valid_texts(texts: list[str], info: ValidationInfo) -> list[str]:
    limit = _limits(info).max_texts
    if len(texts) > limit:
        raise ValueError(f"must have at most {limit} items (MAX_TEXTS), got {len(texts)}")
    for index, text in enumerate(texts):
        if not _is_unicode(text):
            raise ValueError(f"[{index}] is not valid Unicode (a lone surrogate)")
    return texts


def _valid_pairs(pairs: list[list[str]], info: ValidationInfo) -> list[list[str]]:
    limit = _limits(info).max_texts
    if len(pairs) > limit:
        raise ValueError(f"must have at most {limit} items (MAX_TEXTS), got {len(pairs)}")
    for index, pair in enumerate(pairs):
        if len(pair) != 2:
            raise ValueError(f"[{index}] must be a query and a passage, got {len(pair)} items")
        for place, text in enumerate(pair):
            if not _is_unicode(text):
                raise ValueError(f"[{index}][{place}] is not valid Unicode (a lone surrogate)")
    return pairs


def _valid_ids(ids: list[Any]) -> list[int | str]:
    for index, one in enumerate(ids):
        if isinstance(one, str):
            if not one or not _is_unicode(one):
                raise ValueError(f"[{index}] must be a string of valid Unicode that is not empty")
        elif isinstance(one, bool) or not isinstance(one, int):
            raise ValueError(  # noqa: TRY004 - pydantic collects ValueErrors
                f"[{index}] must be an integer or a string, got {_kind(one)}"
            )
        elif not 0 <= one <= MAX_INTEGER_ID:
            raise ValueError(f"[{index}] must be from 0 to 2^64 - 1, got {_shown(one)}")
    return ids


def _distinct(kinds: list[Kind]) -> list[Kind]:
    if len(set(kinds)) < len(kinds):
        raise ValueError(f"must not repeat a kind, got {', '.join(kinds)}")
    return kinds


def _valid_key(key: str) -> str:
    if not _is_unicode(key):
        raise ValueError("is not valid Unicode (a lone surrogate)")
    return key


def _valid_filter(raw: dict[str, Any]) -> dict[str, Any]:
    check_filter(raw)
    return raw


Collection = Annotated[str, Field(pattern=COLLECTION_NAME)]
Texts = Annotated[list[str], Field(min_length=1), AfterValidator(_valid_texts)]
Pairs = Annotated[list[list[str]], Field(min_length=1), AfterValidator(_valid_pairs)]
Weight = Annotated[float, Field(ge=0, le=1_000_000, allow_inf_nan=False)]
Kinds = Annotated[list[Kind], Field(min_length=1), AfterValidator(_distinct)]
Ids = Annotated[list[Any], AfterValidator(_valid_ids)]
TextKey = Annotated[str, Field(min_length=1, max_length=255), AfterValidator(_valid_key)]
Filter = Annotated[dict[str, Any], AfterValidator(_valid_filter)]


class _Wire(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, alias_generator=to_camel)


class Chunking(_Wire):
    """How texts are cut into points: at most `maxTokens` each, of which `overlap` repeat the end of the one before."""

    max_tokens: Annotated[int, Field(ge=MIN_TOKENS)] = 512
    overlap: Annotated[int, Field(ge=0)] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _within_model(cls, value: int, info: ValidationInfo) -> int:
        return _tokens_within_model(value, info)

    @property
    def overlap_tokens(self) -> int:
        """`overlap`, by default an eighth of `maxTokens`."""
        return self.max_tokens // 8 if self.overlap is None else self.overlap


class QdrantTarget(_Wire):
    """The `qdrant` block of an embed request: where and how to store the points."""

    collection: Collection | None = None
    ids: Ids | None = None
    payloads: list[dict[str, Any]] | None = None
    text_key: TextKey = "text"
    mode: Literal["upsert", "insertOnly"] = "upsert"
    chunk: Chunking | None = None
    colbert_pooling: Literal["none", "mean"] = "none"


class EmbedRequest(_Wire):
    """Turn texts into vectors, and store them if `qdrant` says where."""

    operation: Literal["embed"] = "embed"
    texts: Texts
    is_passage: bool = False
    batch_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    vectors: Kinds = list(KINDS)
    max_length: Annotated[int, Field(ge=3)] | None = None
    encoding: Literal["list", "base64"] = "list"
    dtype: Literal["float32", "float16"] = "float32"
    include_text: bool = True
    return_vectors: bool | None = None
    qdrant: QdrantTarget | None = None

    @field_validator("max_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else _tokens_within_model(value, info)

    @model_validator(mode="after")
    def _fits_together(self) -> EmbedRequest:
        if self.encoding == "list" and self.dtype == "float16":
            raise ValueError("dtype: float16 needs encoding base64; a list holds float32")
        if self.qdrant is not None:
            for name in ("ids", "payloads"):
                given = getattr(self.qdrant, name)
                if given is not None and len(given) != len(self.texts):
                    raise ValueError(
                        f"qdrant.{name}: must have one item per text ({len(self.texts)}), got {len(given)}"
                    )
            if self.qdrant.chunk is not None:
                self._fits_chunks(self.qdrant.chunk)
        return self

    def _fits_chunks(self, chunk: Chunking) -> None:
        most = chunk.max_tokens // 2
        if chunk.overlap_tokens > most:
            raise ValueError(f"qdrant.chunk.overlap: must be at most half of maxTokens ({most}), got {chunk.overlap}")
        if self.return_vectors:
            raise ValueError("returnVectors: a text in chunks has no vectors of its own; leave it out")
        if self.max_length is not None and self.max_length < chunk.max_tokens:
            raise ValueError(
                f"maxLength: must be at least qdrant.chunk.maxTokens ({chunk.max_tokens}), or be left out, "
                f"got {self.max_length}"
            )

    @property
    def wants_vectors(self) -> bool:
        """Whether the answer carries vectors: by default only where they are not stored."""
        return self.qdrant is None if self.return_vectors is None else self.return_vectors


class SearchParams(_Wire):
    """How the store searches: `hnswEf` widens the graph search, `exact` does without the index."""

    hnsw_ef: Annotated[int, Field(ge=1, le=100_000)] | None = None
    exact: bool = False


class SearchRequest(_Wire):
    """Find the stored points nearest to each query."""

    operation: Literal["search"]
    queries: Texts
    collection: Collection | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    using: Kinds = ["dense", "sparse"]
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    prefetch: Annotated[int, Field(ge=1, le=100_000)] = 100
    rerank: Literal["colbert"] | None = None
    filter: Filter | None = None
    score_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    params: SearchParams = SearchParams()
    with_payload: bool = True
    with_vectors: bool = False
    explain: bool = False
    text_key: TextKey = "text"

    @model_validator(mode="after")
    def _explains_few(self) -> SearchRequest:
        if not self.explain:
            return self
        most = MOST_EXPLAINED_ROWS if "colbert" in (*self.using, self.rerank) else MOST_EXPLAINED
        if len(self.queries) * self.limit > most:
            raise ValueError(
                f"explain: queries x limit must be at most {most}, got {len(self.queries)} x {self.limit}; "
                "lower limit, or ask for fewer queries at once"
            )
        candidates = len(self.using) * max(self.prefetch, self.limit + self.offset)
        if len(self.queries) * candidates > MOST_HITS:
            raise ValueError(
                f"explain: queries x candidates of all branches must be at most {MOST_HITS}, "
                f"got {len(self.queries)} x {candidates}; lower prefetch or offset"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> SearchRequest:
        if len(self.queries) * (self.limit + self.offset) > MOST_HITS:
            raise ValueError(
                f"limit: queries x (limit + offset) must be at most {MOST_HITS}, "
                f"got {len(self.queries)} x {self.limit + self.offset}"
            )
        if self.weights is not None:
            if self.fusion != "rrf":
                raise ValueError(f"weights: belong to fusion rrf, not {self.fusion}")
            if len(self.weights) != len(self.using):
                raise ValueError(
                    f"weights: must have one per branch of using ({len(self.using)}), got {len(self.weights)}"
                )
        return self


class CountRequest(_Wire):
    """How many points a collection holds, or how many match a filter."""

    operation: Literal["count"]
    collection: Collection | None = None
    filter: Filter | None = None


class DeleteRequest(_Wire):
    """Remove points by their ids or by a filter."""

    operation: Literal["delete"]
    collection: Collection | None = None
    ids: Annotated[Ids, Field(min_length=1)] | None = None
    filter: Annotated[Filter, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("filter: and ids exclude each other" if self.ids else "filter: or ids must be given")
        return self


class ScoreRequest(_Wire):
    """How well each passage answers its query."""

    operation: Literal["score"]
    pairs: Pairs
    weights: Annotated[list[Weight], Field(min_length=3, max_length=3)] = [1.0, 1.0, 1.0]
    max_query_length: Annotated[int, Field(ge=3)] | None = None
    max_passage_length: Annotated[int, Field(ge=3)] | None = None

    @field_validator("max_query_length", "max_passage_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else _tokens_within_model(value, info)

    @field_validator("weights")
    @classmethod
    def _weigh_something(cls, weights: list[float]) -> list[float]:
        if weights[0] == weights[1] == 0:
            raise ValueError("must be above 0 for dense or sparse, whose weighted mean is one of the scores")
        return weights


Request = EmbedRequest | SearchRequest | CountRequest | DeleteRequest | ScoreRequest

_OPERATIONS: Mapping[str, type[Request]] = {
    "embed": EmbedRequest,
    "search": SearchRequest,
    "count": CountRequest,
    "delete": DeleteRequest,
    "score": ScoreRequest,
}


def parse(raw: object, limits: Limits) -> Request:
    """The request in a job's input.

    Raises:
        InvalidRequest: naming the first field at fault; all of them are in `details["errors"]`.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {_kind(raw)}")
    operation = raw.get("operation", "embed")
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        got = f"'{operation[:32]}'" if isinstance(operation, str) and _is_unicode(operation) else _kind(operation)
        raise InvalidRequest(f"operation must be one of {', '.join(_OPERATIONS)}, got {got}")
    try:
        return _OPERATIONS[operation].model_validate(raw, context=limits)
    except ValidationError as error:
        complaints = [_complaint(one) for one in error.errors(include_url=False)[:20]]
        message = complaints[0]["message"]
        if len(complaints) > 1:
            message += f" (and {error.error_count() - 1} more)"
        raise InvalidRequest(message, details={"errors": complaints}) from None


_WANTED = {
    "bool_type": "a boolean",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "a list",
    "dict_type": "an object",
    "model_type": "an object",
}

_SAYS: Mapping[str, Callable[[Any, Mapping[str, Any]], str]] = {
    "missing": lambda _got, _rule: "is required",
    "string_unicode": lambda _got, _rule: "is not valid Unicode (a lone surrogate)",
    "too_short": lambda got, rule: f"must have at least {_items(rule['min_length'])}, got {len(got)}",
    "too_long": lambda got, rule: f"must have at most {_items(rule['max_length'])}, got {len(got)}",
    "string_too_short": lambda got, rule: f"must have at least {rule['min_length']} character, got {len(got)}",
    "string_too_long": lambda got, rule: f"must have at most {rule['max_length']} characters, got {len(got)}",
    "greater_than_equal": lambda got, rule: f"must be at least {rule['ge']}, got {_shown(got)}",
    "greater_than": lambda got, rule: f"must be above {rule['gt']}, got {_shown(got)}",
    "less_than_equal": lambda got, rule: f"must be at most {rule['le']}, got {_shown(got)}",
    "finite_number": lambda _got, _rule: "must be a finite number",
    "literal_error": lambda got, rule: f"must be {rule['expected']}, got {_shown(got)}",
    "string_pattern_mismatch": lambda got, rule: f"must match {rule['pattern']}, got a string of {len(got)} characters",
    "value_error": lambda _got, rule: str(rule["error"]),
}
"""pydantic's error types in the words of the contract: (value, the rule's parameters) -> what the field must be."""


def _complaint(error: ErrorDetails) -> dict[str, str]:
    """One complaint: `{"field", "message"}`, the message beginning with the field."""
    field, kind, got = _path(error["loc"]), error["type"], error["input"]
    if kind == "extra_forbidden":
        return {"field": field, "message": f"unknown field '{field}'"}
    if kind in _WANTED:
        says = f"must be {_WANTED[kind]}, got {_kind(got)}"
    elif kind in _SAYS:
        says = _SAYS[kind](got, error.get("ctx", {}))
    else:
        says = f"is not valid ({kind})"
    if kind == "value_error" and not field:  # a rule between fields names the field itself
        field, _, says = says.partition(": ")
    elif kind == "value_error" and says.startswith("["):  # a rule about one item begins with its index
        index, _, says = says.partition(" ")
        field += index
    field = field or "a field name"
    return {"field": field, "message": f"{field} {says}"}


def _path(location: tuple[int | str, ...]) -> str:
    """("qdrant", "ids", 3) as `qdrant.ids[3]`; names are cut, since unknown ones are the caller's."""
    path = ""
    for part in location:
        if isinstance(part, int):
            path += f"[{part}]"
        else:
            name = part[:64].encode("utf-8", "replace").decode()
            path += f".{name}" if path else name
    return path


def _shown(value: object) -> str:
    """A value short and plain enough to be quoted in a message."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _kind(value)
    if isinstance(value, str):
        return f"'{value}'" if len(value) <= 32 and _is_unicode(value) else f"a string of {len(value)} characters"
    if isinstance(value, int) and abs(value) >= 10**30:
        return "a very large integer" if value > 0 else "a very small integer"
    return str(value)


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"


def _kind(value: object) -> str:
    """The JSON type of a value, with its article."""
    names = {
        type(None): "null", bool: "a boolean", int: "an integer", float: "a number",
        str: "a string", list: "a list", dict: "an object",
    }  # fmt: skip
    return names.get(type(value), "something that is not JSON")


def _is_unicode(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
