"""The types of answers, in the names of the wire: what rendering returns, and what OpenAPI describes."""

from __future__ import annotations

from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,  # Python 3.11's own has no schema
)

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, GetPydanticSchema, WithJsonSchema
from pydantic_core.core_schema import any_schema
from typing_extensions import TypedDict

from service.wire.body import Base64Array
from service.wire.errors import Error, ErrorCode
from service.wire.size import NumberType

_LIST: Final = {"type": "array", "items": {"type": "number"}}
_INDICES: Final = {"type": "array", "items": {"type": "integer", "minimum": 0}}
_AS_IT_IS: Final = GetPydanticSchema(lambda _type, _handler: any_schema())
"""For what pydantic describes, and `Body.of` writes."""

Count = Annotated[int, Field(ge=0)]
Numbers = Annotated[NDArray[np.float32], _AS_IT_IS, WithJsonSchema(_LIST)]
Rows = Annotated[NDArray[np.float32], _AS_IT_IS, WithJsonSchema({"type": "array", "items": _LIST})]
Indices = Annotated[NDArray[np.uint32], _AS_IT_IS, WithJsonSchema(_INDICES)]
Base64 = Annotated[Base64Array, _AS_IT_IS, WithJsonSchema({"type": "string", "format": "byte"})]
Id = Annotated[int | str, Field(description="u64 or UUID")]
Timings = Annotated[dict[str, float], Field(description="seconds per stage, with timings")]


class SparseAnswer(TypedDict):
    """Weights per token id; indices are unique and ascending."""

    indices: Indices
    values: Numbers


class ArrayAnswer(TypedDict):
    """An array in base64: little-endian, row by row."""

    shape: list[Count]
    dtype: NumberType
    data: Base64


class TextAnswer(TypedDict, total=False):
    """One text: its vectors, or the four keys of an error in their place."""

    text: str
    id: Id
    tokens: Count
    truncated: bool
    chunks: Annotated[Count, Field(description="points that the text became, with chunk")]
    dense: Numbers | ArrayAnswer
    sparse: SparseAnswer
    colbert: Rows | ArrayAnswer
    error: str
    error_code: ErrorCode
    retryable: bool
    details: dict[str, Any]


class UsageAnswer(TypedDict):
    """What was computed."""

    tokens: Count


class RejectedAnswer(TypedDict):
    """One point that is not stored."""

    index: Count
    chunk: NotRequired[Count]
    code: str
    message: str


class UpsertAnswer(TypedDict):
    """What became of every point."""

    collection: str
    stored: Count
    skipped: Count
    rejected: list[RejectedAnswer]


class _Texts(TypedDict):
    results: list[TextAnswer]
    usage: UsageAnswer
    model: str
    timings: NotRequired[Timings]


class EmbedAnswer(_Texts):
    """The answer to an embed request."""

    upsert: NotRequired[UpsertAnswer]


class PointsAnswer(_Texts):
    """The answer to an embed request that stores."""

    upsert: UpsertAnswer


class VectorsAnswer(TypedDict, total=False):
    """The stored vectors of a hit."""

    dense: Numbers
    sparse: SparseAnswer
    colbert: Rows


class HitAnswer(TypedDict):
    """One hit."""

    id: Id
    score: float
    group: NotRequired[Annotated[int | str, Field(description="what the group has in common, with groupBy")]]
    payload: NotRequired[dict[str, Any]]
    vectors: NotRequired[VectorsAnswer]
    explain: NotRequired[ExplainAnswer]


class BranchAnswer(TypedDict):
    """Where a branch ranked a hit, from 1, and by which score."""

    rank: Annotated[int, Field(ge=1)]
    score: float


class SparseMatchAnswer(TypedDict):
    """A token that query and passage share; spans are characters of the stored text."""

    token: str
    id: Count
    query: float
    passage: float
    contribution: float
    spans: list[list[Count]] | None


class ColbertMatchAnswer(TypedDict):
    """A token of the query, and the passage's token that is nearest to it."""

    query: str | None
    token: str | None
    row: Count
    span: list[Count] | None
    score: float


class ExplainAnswer(TypedDict):
    """Why a hit was found."""

    branches: dict[str, BranchAnswer | None]
    fusion: dict[str, float] | None
    sparse: list[SparseMatchAnswer] | None
    colbert: list[ColbertMatchAnswer] | None


class HitsAnswer(TypedDict):
    """The hits of one query, best first."""

    hits: list[HitAnswer]


class SearchAnswer(TypedDict):
    """The answer to a search request: one result per query."""

    results: list[HitsAnswer]
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
"""The scores by kind, one per pair; null for a pair that failed."""


class PairErrorAnswer(Error):
    """Why a pair has no scores."""

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
