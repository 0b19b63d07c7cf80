"""The types of answers with their JSON field names, which rendering returns and the OpenAPI document describes."""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    NotRequired,  # pydantic cannot describe that of Python 3.11
)

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, GetPydanticSchema, WithJsonSchema
from pydantic_core.core_schema import any_schema
from typing_extensions import TypedDict

from service.wire.body import Base64Array
from service.wire.errors import Error, ErrorCode
from service.wire.positions import POSITION_SCHEMA
from service.wire.size import NumberType

_LIST: Final = {"type": "array", "items": {"type": "number"}}
_INDICES: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_AS_IT_IS: Final = GetPydanticSchema(lambda _type, _handler: any_schema())
"""Schema of values that pydantic only describes; `Body.of` serializes them."""

Count = Annotated[int, Field(ge=0)]
Numbers = Annotated[NDArray[np.float32], _AS_IT_IS, WithJsonSchema(_LIST)]
Rows = Annotated[NDArray[np.float32], _AS_IT_IS, WithJsonSchema({"type": "array", "items": _LIST})]
Indices = Annotated[NDArray[np.uint32], _AS_IT_IS, WithJsonSchema(_INDICES)]
Base64 = Annotated[Base64Array, _AS_IT_IS, WithJsonSchema({"type": "string", "format": "byte"})]
Id = Annotated[int | str, Field(description="u64 or UUID")]
Position = Annotated[Any, WithJsonSchema(POSITION_SCHEMA)]
Timings = Annotated[dict[str, float], Field(description="seconds per stage; only with timings")]


class SparseAnswer(TypedDict):
    """A sparse vector: weights by token id. The indices are unique and ascending."""

    indices: Indices
    values: Numbers


class ArrayAnswer(TypedDict):
    """An array in base64: little-endian, in row-major order."""

    shape: list[Count]
    dtype: NumberType
    data: Base64


class TextAnswer(TypedDict, total=False):
    """The result of one text: its vectors, or the four keys of an error instead."""

    text: str
    id: Annotated[int | str | None, Field(description="u64 or UUID; null if the given id is invalid")]
    tokens: Count
    truncated: bool
    chunks: Annotated[Count, Field(description="number of points of the text; only with chunk")]
    dense: Numbers | ArrayAnswer
    sparse: SparseAnswer
    colbert: Rows | ArrayAnswer
    error: str
    error_code: ErrorCode
    retryable: bool
    details: dict[str, Any]


class UsageAnswer(TypedDict):
    """The tokens that the model computed."""

    tokens: Count


class RejectedAnswer(TypedDict):
    """A point that is not stored, and the reason."""

    index: Count
    chunk: NotRequired[Count]
    code: str
    message: str


class DistancesAnswer(TypedDict, total=False):
    """Distance functions by kind of vector."""

    dense: str
    colbert: str


class NamesAnswer(TypedDict, total=False):
    """Names of vectors by kind; the unnamed vector has the empty name."""

    dense: str
    sparse: str
    colbert: str


class RecognisedAnswer(TypedDict, total=False):
    """What was taken from the collection, because it differs from the config, which leaves it open."""

    kinds: list[Annotated[str, WithJsonSchema({"enum": ["dense", "sparse", "colbert"]})]]
    vectorNames: NamesAnswer
    distance: DistancesAnswer
    modifier: Annotated[str, WithJsonSchema({"enum": ["none", "idf"]})]
    layout: Annotated[str, WithJsonSchema({"enum": ["plain", "langchain", "llamaindex", "haystack"]})]
    textKey: str


class UpsertAnswer(TypedDict):
    """The outcome of an upsert, counted in points."""

    collection: str
    stored: Count
    skipped: Count
    rejected: list[RejectedAnswer]
    differing: NotRequired[
        Annotated[
            list[Count],
            Field(description="texts whose kept points have another text or payload, by index; only if there are any"),
        ]
    ]
    recognised: NotRequired[RecognisedAnswer]


class _Texts(TypedDict):
    results: list[TextAnswer]
    usage: UsageAnswer
    model: str
    timings: NotRequired[Timings]


class EmbedAnswer(_Texts):
    """The answer to an embed request."""

    upsert: NotRequired[UpsertAnswer]


class PointsAnswer(_Texts):
    """The answer to an embed request that stores points."""

    upsert: UpsertAnswer


class VectorsAnswer(TypedDict, total=False):
    """The stored vectors of a hit."""

    dense: Numbers
    sparse: SparseAnswer
    colbert: Rows


class HitAnswer(TypedDict):
    """A point that a search returns."""

    id: Id
    score: Annotated[float | None, Field(description="null for a point without ColBERT rows; only with rerank")]
    group: NotRequired[Annotated[int | str, Field(description="payload value of the group; only with groupBy")]]
    payload: NotRequired[dict[str, Any]]
    vectors: NotRequired[VectorsAnswer]
    explain: NotRequired[ExplainAnswer]


class BranchAnswer(TypedDict):
    """The rank of a hit in a branch, from 1, and its score there."""

    rank: Annotated[int, Field(ge=1)]
    score: float


class SparseMatchAnswer(TypedDict):
    """A token that the query and the passage share; spans are character offsets in the stored text.

    The contribution is null where the store also weights by IDF.
    """

    token: str
    id: Count
    query: float
    passage: float
    contribution: float | None
    spans: list[list[Count]] | None


class ColbertMatchAnswer(TypedDict):
    """A token of the query and the passage's token that is most similar to it."""

    query: str | None
    token: str | None
    row: Count
    span: list[Count] | None
    score: float


class ExplainAnswer(TypedDict):
    """The explanation of a hit."""

    branches: dict[str, BranchAnswer | None]
    fusion: dict[str, float] | None
    sparse: list[SparseMatchAnswer] | None
    colbert: list[ColbertMatchAnswer] | None


class HitsAnswer(TypedDict):
    """The hits of one query, best first."""

    hits: list[HitAnswer]
    unranked: NotRequired[
        Annotated[int, Field(ge=1, description="candidates without ColBERT rows; only with rerank, and if not 0")]
    ]


class WarningAnswer(TypedDict):
    """A doubt about an answer."""

    code: Annotated[str, WithJsonSchema({"enum": ["model_mismatch"]})]
    message: str
    details: dict[str, Any]


class SearchAnswer(TypedDict):
    """The answer to a search request: one result per query."""

    results: list[HitsAnswer]
    recognised: NotRequired[RecognisedAnswer]
    warnings: NotRequired[Annotated[list[WarningAnswer], Field(description="only if there are any")]]
    usage: UsageAnswer
    model: str
    timings: NotRequired[Timings]


ScoresAnswer = TypedDict(
    "ScoresAnswer",
    {
        "dense": list[float | None],
        "sparse": list[float | None],
        "colbert": list[float | None],
        "sparse+dense": list[float | None],
        "colbert+sparse+dense": list[float | None],
    },
)
"""The scores by kind, one per pair; null for a failed pair."""


class PairErrorAnswer(Error):
    """The error of a pair without scores."""

    index: Count


class ScoreAnswer(TypedDict):
    """The answer to a score request."""

    scores: ScoresAnswer
    errors: list[PairErrorAnswer]
    usage: UsageAnswer
    model: str
    timings: NotRequired[Timings]


class CountAnswer(TypedDict):
    """The answer to a count request."""

    count: Count
    timings: NotRequired[Timings]


class DeleteAnswer(TypedDict):
    """The answer to a delete request."""

    deleted: Count
    timings: NotRequired[Timings]


class LoadAnswer(TypedDict):
    """The answer to a step of a load."""

    outcome: Annotated[
        Literal["begun", "ended", "finished", "left", "blocked", "stopped", "unfinished"],
        Field(description="unfinished: shards are missing or a load is under way, as messages say; nothing was done"),
    ]
    aliases: Annotated[list[str], Field(description="aliases that lead to the collection now")]
    messages: Annotated[list[str], Field(description="for a person: what is missing, or what the shards have counted")]
    timings: NotRequired[Timings]


class CollectionsAnswer(TypedDict):
    """The answer that lists collections."""

    collections: list[str]
    aliases: Annotated[dict[str, str], Field(description="collections by alias")]
    default: Annotated[str | None, Field(description="the collection of requests that name none")]
    descriptions: NotRequired[
        Annotated[dict[str, str], Field(description="what the operator says of them, by collection or alias")]
    ]
    timings: NotRequired[Timings]


class VectorAnswer(TypedDict):
    """A vector of a collection; null stands for what its kind does not have."""

    name: Annotated[str, Field(description="empty for the unnamed vector")]
    kind: Annotated[str, WithJsonSchema({"enum": ["dense", "multivector", "sparse"]})]
    size: Count | None
    distance: str | None
    datatype: str | None
    quantization: str | None
    modifier: str | None


class PayloadIndexAnswer(TypedDict):
    """A payload index of a collection."""

    key: str
    type: str
    isTenant: bool


class SourcedAnswer(TypedDict):
    """A name, and where it is from."""

    name: str
    source: Annotated[str, WithJsonSchema({"enum": ["config", "collection"]})]


class ModelAnswer(TypedDict):
    """The model of a collection by its metadata, or else that of the worker."""

    name: str
    revision: NotRequired[Annotated[str | None, Field(description="null if unknown; only with source collection")]]
    source: Annotated[str, WithJsonSchema({"enum": ["collection", "worker"]})]


class CollectionAnswer(TypedDict):
    """The answer that describes a collection."""

    name: Annotated[str, Field(description="the collection itself, also if an alias was asked for")]
    description: NotRequired[Annotated[str, Field(description="what the operator says of it")]]
    aliases: list[str]
    status: Annotated[str, WithJsonSchema({"enum": ["green", "yellow", "grey", "red"]})]
    points: Count
    indexedVectors: Annotated[Count | None, Field(description="of all kinds together; null if the store does not say")]
    vectors: list[VectorAnswer]
    payloadIndexes: list[PayloadIndexAnswer]
    layout: SourcedAnswer
    textKey: Annotated[str | None, Field(description="payload key of the text; null if unknown")]
    recognised: NotRequired[RecognisedAnswer]
    choices: NotRequired[Annotated[dict[str, list[str]], Field(description="by the setting that has to decide")]]
    model: ModelAnswer
    timings: NotRequired[Timings]


class StoredVectorsAnswer(TypedDict, total=False):
    """The requested vectors of a stored point."""

    dense: Numbers | ArrayAnswer
    sparse: SparseAnswer
    colbert: Rows | ArrayAnswer


class ReadPointAnswer(TypedDict):
    """A stored point."""

    id: Id
    requestedId: NotRequired[Annotated[int | str, Field(description="the id of the request; only with ids")]]
    payload: NotRequired[dict[str, Any]]
    vectors: NotRequired[StoredVectorsAnswer]


class ReadPointsAnswer(TypedDict):
    """The answer with stored points."""

    points: list[ReadPointAnswer]
    missing: NotRequired[Annotated[list[int | str], Field(description="ids without a point; only with ids")]]
    next: NotRequired[Annotated[Position | None, Field(description="the after of the next page; only without ids")]]
    timings: NotRequired[Timings]
