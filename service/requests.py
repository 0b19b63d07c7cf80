"""Job JSON to frozen request types, one per operation. What passes here needs no further check.

Wire names are camelCase, Python names snake_case. Types are strict (`1.0` is no integer, `"true"` no
boolean), unknown fields are refused by name, and every complaint is an `InvalidRequest` that names the
field, the limit and the value, but never quotes a text.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

from embedder.chunking import MIN_TOKENS
from embedder.errors import InvalidRequest
from embedder.vectors import KINDS, Kind
from qdrant_sink.grouping import GROUP_KEY
from qdrant_sink.search import WithPayload
from service.fields import (
    Collection,
    Filter,
    Ids,
    Kinds,
    Limits,
    Pairs,
    SearchParams,
    TextKey,
    Texts,
    Weight,
    Wire,
    is_unicode,
    kind_of,
    payload_selection,
    shown,
    tokens_within_model,
    vector_selection,
)

Valid = TypeVar("Valid", bound=BaseModel)

MOST_HITS = 1_000_000
"""Of one search job, before they are cut to pages: what a worker can hold beside the model."""

MOST_EXAMPLES = 100
"""Positive or negative points of a search, whose vectors are read first."""

MOST_EXPLAINED = 1000
"""Hits of one job that are explained: each is tokenized anew."""

MOST_EXPLAINED_ROWS = 100
"""Likewise where their ColBERT rows are fetched: a client's lists of 1023 rows of 1024 take 32 MB."""


_MOST_SAID = 3
"""Complaints in the message of an error."""

_MOST_COMPLAINTS = 20
"""In its details."""


class Chunking(Wire):
    """How texts are cut into points: at most `maxTokens` each, of which `overlap` repeat the end of the one before."""

    max_tokens: Annotated[int, Field(ge=MIN_TOKENS)] = 512
    overlap: Annotated[int, Field(ge=0)] | None = None

    @field_validator("max_tokens")
    @classmethod
    def _within_model(cls, value: int, info: ValidationInfo) -> int:
        return tokens_within_model(value, info)

    @property
    def overlap_tokens(self) -> int:
        """`overlap`, by default an eighth of `maxTokens`."""
        return self.max_tokens // 8 if self.overlap is None else self.overlap


class QdrantTarget(Wire):
    """The `qdrant` block of an embed request: where and how to store the points."""

    collection: Collection | None = None
    ids: Ids | None = None
    id_scope: Collection | None = None
    payloads: list[dict[str, Any]] | None = None
    text_key: TextKey = "text"
    mode: Literal["upsert", "insertOnly"] = "upsert"
    chunk: Chunking | None = None
    colbert_pooling: Literal["none", "mean"] = "none"


class EmbedRequest(Wire):
    """Turn texts into vectors, and store them if `qdrant` says where."""

    operation: Literal["embed"] = "embed"
    texts: Texts
    is_passage: bool = False
    batch_size: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    vectors: Kinds = Field(default=list(KINDS))
    max_length: Annotated[int, Field(ge=3)] | None = None
    encoding: Literal["list", "base64"] = "list"
    dtype: Literal["float32", "float16"] = "float32"
    include_text: bool = True
    return_vectors: bool | None = None
    qdrant: QdrantTarget | None = None

    @field_validator("max_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else tokens_within_model(value, info)

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


class Like(Wire):
    """Stored points in place of queries: what is found is like the first and unlike the second."""

    positive: Annotated[Ids, Field(min_length=1, max_length=MOST_EXAMPLES)]
    negative: Annotated[Ids, Field(max_length=MOST_EXAMPLES)] = Field(default=[])
    id_scope: Collection | None = None


class SearchRequest(Wire):
    """Find the stored points nearest to each query, or to the examples of `like`."""

    operation: Literal["search"]
    queries: Texts = Field(default=[])
    like: Like | None = None
    collection: Collection | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 10
    offset: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    using: Kinds = Field(default=["dense", "sparse"])
    fusion: Literal["rrf", "dbsf"] = "rrf"
    rrf_k: Annotated[int, Field(ge=1, le=1_000_000)] = 60
    weights: list[Annotated[float, Field(gt=0, allow_inf_nan=False)]] | None = None
    prefetch: Annotated[int, Field(ge=1, le=100_000)] = 100
    rerank: Literal["colbert"] | None = None
    filter: Filter | None = None
    score_threshold: Annotated[float, Field(allow_inf_nan=False)] | None = None
    params: SearchParams = SearchParams()
    with_payload: Annotated[WithPayload, PlainValidator(payload_selection)] = True
    with_vectors: Annotated[tuple[Kind, ...], PlainValidator(vector_selection)] = ()
    group_by: Annotated[str, Field(pattern=GROUP_KEY, max_length=255)] | None = None
    group_size: Annotated[int, Field(ge=1, le=100)] = 1
    explain: bool = False
    text_key: TextKey = "text"

    @model_validator(mode="after")
    def _explains_few(self) -> SearchRequest:
        if not self.explain:
            return self
        by_group = " x groupSize" if self.group_by else ""
        asked, most_hits = len(self.queries) or 1, self.limit * self.group_size
        most = MOST_EXPLAINED_ROWS if "colbert" in (*self.using, self.rerank) else MOST_EXPLAINED
        if asked * most_hits > most:
            raise ValueError(
                f"explain: queries x limit{by_group} must be at most {most}, got {asked} x {most_hits}; "
                "lower limit, or ask for fewer queries at once"
            )
        candidates = len(self.using) * max(self.prefetch, (self.limit + self.offset) * self.group_size)
        if asked * candidates > MOST_HITS:
            raise ValueError(
                f"explain: queries x candidates of all branches must be at most {MOST_HITS}, "
                f"got {asked} x {candidates}; lower prefetch or offset"
            )
        return self

    @model_validator(mode="after")
    def _fits_together(self) -> SearchRequest:
        if bool(self.queries) == (self.like is not None):
            raise ValueError("queries: and like exclude each other" if self.like else "queries: or like must be given")
        if self.group_by is None and self.group_size > 1:
            raise ValueError(f"groupSize: belongs to groupBy, which is not given, got {self.group_size}")
        asked, pages = len(self.queries) or 1, self.limit + self.offset
        if asked * pages * self.group_size > MOST_HITS:
            by_group = " x groupSize" if self.group_by else ""
            raise ValueError(
                f"limit: queries x (limit + offset){by_group} must be at most {MOST_HITS}, got {asked} x {pages}"
                + (f" x {self.group_size}" if self.group_by else "")
            )
        if self.group_by is not None and asked * len(self.using) * self.prefetch > MOST_HITS:
            raise ValueError(
                f"prefetch: queries x branches x prefetch must be at most {MOST_HITS} with groupBy, "
                f"got {asked} x {len(self.using)} x {self.prefetch}"
            )
        if self.weights is not None:
            if self.fusion != "rrf":
                raise ValueError(f"weights: belong to fusion rrf, not {self.fusion}")
            if len(self.weights) != len(self.using):
                raise ValueError(
                    f"weights: must have one per branch of using ({len(self.using)}), got {len(self.weights)}"
                )
        return self


class CountRequest(Wire):
    """How many points a collection holds, or how many match a filter."""

    operation: Literal["count"]
    collection: Collection | None = None
    filter: Filter | None = None


class DeleteRequest(Wire):
    """Remove points by their ids or by a filter."""

    operation: Literal["delete"]
    collection: Collection | None = None
    ids: Annotated[Ids, Field(min_length=1)] | None = None
    id_scope: Collection | None = None
    filter: Annotated[Filter, Field(min_length=1)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> DeleteRequest:
        if (self.ids is None) == (self.filter is None):
            raise ValueError("filter: and ids exclude each other" if self.ids else "filter: or ids must be given")
        return self


class ScoreRequest(Wire):
    """How well each passage answers its query."""

    operation: Literal["score"]
    pairs: Pairs
    weights: list[Weight] = Field(default=[1.0, 1.0, 1.0], json_schema_extra={"minItems": 3, "maxItems": 3})
    max_query_length: Annotated[int, Field(ge=3)] | None = None
    max_passage_length: Annotated[int, Field(ge=3)] | None = None

    @field_validator("max_query_length", "max_passage_length")
    @classmethod
    def _within_model(cls, value: int | None, info: ValidationInfo) -> int | None:
        return None if value is None else tokens_within_model(value, info)

    @field_validator("weights")
    @classmethod
    def _weigh_something(cls, weights: list[float]) -> list[float]:
        if len(weights) != 3:
            raise ValueError(f"must have exactly 3 items, got {len(weights)}")
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
        InvalidRequest: naming up to three fields at fault; up to twenty of them are in `details["errors"]`.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {kind_of(raw)}")
    operation = raw.get("operation", "embed")
    if not isinstance(operation, str) or operation not in _OPERATIONS:
        got = f"'{operation[:32]}'" if isinstance(operation, str) and is_unicode(operation) else kind_of(operation)
        raise InvalidRequest(f"operation must be one of {', '.join(_OPERATIONS)}, got {got}")
    return validated(_OPERATIONS[operation], raw, limits)


def request_type(operation: str) -> type[Request] | None:
    """The type of an operation's requests; None if there is no such operation."""
    return _OPERATIONS.get(operation)


def validated(kind: type[Valid], raw: object, limits: Limits | None = None) -> Valid:
    """The value as that type.

    Raises:
        InvalidRequest: naming up to three fields at fault; up to twenty of them are in `details["errors"]`.
    """
    if not isinstance(raw, dict):
        raise InvalidRequest(f"input must be an object, got {kind_of(raw)}")
    try:
        return kind.model_validate(raw, context=limits)
    except ValidationError as error:
        # Unknown fields first: where a name is misspelt, that is why the right one is missing.
        errors = sorted(error.errors(include_url=False), key=lambda one: one["type"] != "extra_forbidden")
        complaints = [_complaint(one) for one in errors[:_MOST_COMPLAINTS]]
        message = "; ".join(one["message"] for one in complaints[:_MOST_SAID])
        if len(errors) > _MOST_SAID:
            message += f" (and {len(errors) - _MOST_SAID} more)"
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
    "greater_than_equal": lambda got, rule: f"must be at least {rule['ge']}, got {shown(got)}",
    "greater_than": lambda got, rule: f"must be above {rule['gt']}, got {shown(got)}",
    "less_than_equal": lambda got, rule: f"must be at most {rule['le']}, got {shown(got)}",
    "finite_number": lambda _got, _rule: "must be a finite number",
    "literal_error": lambda got, rule: f"must be {rule['expected']}, got {shown(got)}",
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
        says = f"must be {_WANTED[kind]}, got {kind_of(got)}"
    elif kind in _SAYS:
        says = _SAYS[kind](got, error.get("ctx", {}))
    else:
        says = f"is not valid ({kind})"
    if kind == "value_error" and not field:  # a rule between fields names the field itself
        field, _, says = says.partition(": ")
    elif kind == "value_error" and says.startswith(("[", ".")):  # a rule about one item begins with its place
        place, _, says = says.partition(" ")
        field += place
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


def _items(count: int) -> str:
    return f"{count} item" if count == 1 else f"{count} items"
