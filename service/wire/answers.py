"""Results as answers: typed dictionaries in the names of the wire, whose vectors are still arrays.

`Body.of` writes an answer once, straight from the arrays' buffers: a list holds the shortest decimals that read back as
the same float32, base64 the little-endian bytes. The types below are what OpenAPI describes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import (
    Annotated,
    Any,
    Final,
    NotRequired,  # Python 3.11's own has no schema
    cast,
)

import numpy as np
import orjson
from numpy.typing import NDArray
from pydantic import Field, GetPydanticSchema, WithJsonSchema
from pydantic_core.core_schema import any_schema
from typing_extensions import TypedDict

from embedder import Embedding, ModelFailure, SparseVector
from qdrant_sink import BranchRank, Hit, PointId
from service.operations import (
    ColbertMatch,
    EmbedResult,
    HitExplanation,
    IngestedText,
    IngestReport,
    ScoreResult,
    SearchResult,
    SparseMatch,
)
from service.wire.body import Base64Array
from service.wire.errors import Error, ErrorCode, code_of, error_answer
from service.wire.requests import EmbedRequest
from service.wire.size import Encoding, NumberType

REJECTION_MESSAGE_MAX_BYTES: Final = 220
"""Bytes of the message of one rejected point; the path into a deeply nested payload can be longer."""

REJECTION_MAX_BYTES: Final = REJECTION_MESSAGE_MAX_BYTES + 230
"""Bytes kept free per point for what an ingest may have to say of it: index, code and message, and its text's error."""

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


def embed_answer(request: EmbedRequest, result: EmbedResult, model: str) -> EmbedAnswer:
    """The answer for vectors; a text that failed carries an error in place of them."""
    items = []
    for text, embedding in zip(request.texts, result.texts, strict=True):
        item: TextAnswer = {"text": text} if request.include_text else {}
        if isinstance(embedding, ModelFailure):
            _add_error(item, embedding)
        else:
            item["tokens"], item["truncated"] = embedding.tokens, embedding.truncated
            if request.wants_vectors:
                _add_vectors(item, embedding, request.encoding, request.dtype)
        items.append(item)
    return {"results": items, "usage": {"tokens": result.tokens}, "model": model}


def ingest_answer(request: EmbedRequest, texts: Sequence[IngestedText], tokens: int, model: str) -> EmbedAnswer:
    """The answer for stored texts, but for its `upsert` block."""
    items = []
    for text, ingested in zip(request.texts, texts, strict=True):
        item: TextAnswer = {"text": text} if request.include_text else {}
        item["id"] = id_answer(ingested.id)
        if isinstance(ingested.result, ModelFailure):
            _add_error(item, ingested.result)
        else:
            item["tokens"], item["truncated"] = ingested.tokens, ingested.truncated
            if ingested.chunks is not None:
                item["chunks"] = ingested.chunks
            if ingested.result is not None:
                _add_vectors(item, ingested.result, request.encoding, request.dtype)
        items.append(item)
    return {"results": items, "usage": {"tokens": tokens}, "model": model}


def upsert_answer(report: IngestReport) -> UpsertAnswer:
    """The `upsert` block: each rejected point is named by its text and, if it is one, its chunk."""
    rejected: list[RejectedAnswer] = []
    for point in report.rejected:
        item: RejectedAnswer = {"index": point.text, "code": code_of(point.cause), "message": _cut(point.cause.message)}
        if point.chunk is not None:
            item = {"index": point.text, "chunk": point.chunk, "code": item["code"], "message": item["message"]}
        rejected.append(item)
    return {
        "collection": report.collection,
        "stored": report.stored,
        "skipped": report.skipped,
        "rejected": rejected,
    }


def search_answer(result: SearchResult, model: str) -> SearchAnswer:
    """The answer to a search."""
    results: list[HitsAnswer] = [{"hits": [_hit(hit) for hit in hits]} for hits in result.hits]
    if result.explanations is not None:
        for item, explanations in zip(results, result.explanations, strict=True):
            for hit, explanation in zip(item["hits"], explanations, strict=True):
                hit["explain"] = _explain(explanation)
    return {"results": results, "usage": {"tokens": result.tokens}, "model": model}


def score_answer(result: ScoreResult, model: str) -> ScoreAnswer:
    """The answer to a score request; a pair that failed is null in every list and named in `errors`."""
    scores = [None if isinstance(pair, ModelFailure) else pair for pair in result.scores]
    errors: list[PairErrorAnswer] = [
        {"index": index, **error_answer(pair)}
        for index, pair in enumerate(result.scores)
        if isinstance(pair, ModelFailure)
    ]
    return {
        "scores": {
            "dense": [None if pair is None else pair.dense for pair in scores],
            "sparse": [None if pair is None else pair.sparse for pair in scores],
            "colbert": [None if pair is None else pair.colbert for pair in scores],
            "sparse+dense": [None if pair is None else pair.sparse_dense for pair in scores],
            "colbert+sparse+dense": [None if pair is None else pair.colbert_sparse_dense for pair in scores],
        },
        "errors": errors,
        "usage": {"tokens": result.tokens},
        "model": model,
    }


def id_answer(point_id: PointId) -> int | str:
    """A point's id on the wire: a number, or the text of a UUID."""
    return point_id if isinstance(point_id, int) else str(point_id)


def numbers(array: NDArray[Any]) -> NDArray[np.float32]:
    """The array as `Body.of` can write it: contiguous, in the machine's byte order."""
    return np.ascontiguousarray(array, dtype=np.float32)


def base64_array(array: NDArray[Any], dtype: NumberType) -> ArrayAnswer:
    """An array in base64, taken from its buffer."""
    wire = np.ascontiguousarray(array, dtype="<f2" if dtype == "float16" else "<f4")
    return {"shape": list(wire.shape), "dtype": dtype, "data": Base64Array(wire)}


def _add_error(item: TextAnswer, error: ModelFailure) -> None:
    item.update(cast("TextAnswer", error_answer(error)))


def _add_vectors(item: TextAnswer, embedding: Embedding, encoding: Encoding, dtype: NumberType) -> None:
    """Add the vectors that the embedding has."""
    if embedding.dense is not None:
        item["dense"] = numbers(embedding.dense) if encoding == "list" else base64_array(embedding.dense, dtype)
    if embedding.sparse is not None:
        item["sparse"] = _sparse(embedding.sparse)
    if embedding.colbert is not None:
        item["colbert"] = numbers(embedding.colbert) if encoding == "list" else base64_array(embedding.colbert, dtype)


def _sparse(sparse: SparseVector) -> SparseAnswer:
    return {"indices": np.ascontiguousarray(sparse.indices), "values": numbers(sparse.values)}


def _hit(hit: Hit) -> HitAnswer:
    item: HitAnswer = {"id": id_answer(hit.id), "score": hit.score}
    if hit.group is not None:
        item["group"] = hit.group
    if hit.payload is not None:
        item["payload"] = dict(hit.payload)
    if hit.vectors is not None:
        vectors: VectorsAnswer = {}
        if hit.vectors.dense is not None:
            vectors["dense"] = numbers(hit.vectors.dense)
        if hit.vectors.sparse is not None:
            vectors["sparse"] = _sparse(hit.vectors.sparse)
        if hit.vectors.colbert is not None:
            vectors["colbert"] = numbers(hit.vectors.colbert)
        item["vectors"] = vectors
    return item


def _explain(explanation: HitExplanation) -> ExplainAnswer:
    return {
        "branches": {kind: _branch(rank) for kind, rank in explanation.branches.items()},
        "fusion": None if explanation.fusion is None else _named(explanation.fusion),
        "sparse": None if explanation.sparse is None else [_sparse_match(match) for match in explanation.sparse],
        "colbert": None if explanation.colbert is None else [_colbert_match(match) for match in explanation.colbert],
    }


def _named(parts: Mapping[Any, float]) -> dict[str, float]:
    return {str(kind): part for kind, part in parts.items()}


def _branch(branch: BranchRank | None) -> BranchAnswer | None:
    return None if branch is None else {"rank": branch.rank, "score": branch.score}


def _sparse_match(match: SparseMatch) -> SparseMatchAnswer:
    return {
        "token": match.token,
        "id": match.id,
        "query": _shortest(match.query),
        "passage": _shortest(match.passage),
        "contribution": _shortest(match.contribution),
        "spans": None if match.spans is None else [list(span) for span in match.spans],
    }


def _colbert_match(match: ColbertMatch) -> ColbertMatchAnswer:
    return {
        "query": match.query,
        "token": match.token,
        "row": match.row,
        "span": None if match.span is None else list(match.span),
        "score": _shortest(match.score),
    }


def _shortest(value: float) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))


def _cut(message: str) -> str:
    """The message, or as much of its beginning as `REJECTION_MESSAGE_MAX_BYTES` of JSON hold."""
    kept = message
    while len(orjson.dumps(kept)) > REJECTION_MESSAGE_MAX_BYTES:
        kept = kept[: len(kept) * 7 // 8]
    return kept if kept == message else kept + "…"
