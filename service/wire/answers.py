"""Rendering of results as answers: typed dictionaries with JSON field names, whose vectors are still arrays.

`Body.of` serializes an answer once, directly from the buffers of its arrays. A list holds the shortest decimals that
read back as the same float32; base64 holds the little-endian bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

import numpy as np
import orjson
from numpy.typing import NDArray

from embedder import Embedding, ModelFailure, SparseVector
from qdrant_sink import BranchRank, Hit, PointId, Taken, Vectors
from service.operations import (
    ColbertMatch,
    EmbedResult,
    HitExplanation,
    IngestedText,
    IngestReport,
    ModelWarning,
    ScoreResult,
    SearchResult,
    SparseMatch,
)
from service.wire.answer_types import (
    ArrayAnswer,
    BranchAnswer,
    ColbertMatchAnswer,
    DistancesAnswer,
    EmbedAnswer,
    ExplainAnswer,
    HitAnswer,
    HitsAnswer,
    NamesAnswer,
    PairErrorAnswer,
    RecognisedAnswer,
    RejectedAnswer,
    ScoreAnswer,
    SearchAnswer,
    SparseAnswer,
    SparseMatchAnswer,
    TextAnswer,
    UpsertAnswer,
    VectorsAnswer,
    WarningAnswer,
)
from service.wire.body import Base64Array
from service.wire.errors import code_of, disagreement_details, error_answer
from service.wire.requests import EmbedRequest
from service.wire.size import Encoding, NumberType

REJECTION_MESSAGE_MAX_BYTES: Final = 220
"""Maximum JSON bytes of the message of a rejected point; the path into a deeply nested payload can be longer."""

REJECTION_MAX_BYTES: Final = REJECTION_MESSAGE_MAX_BYTES + 230
"""Bytes reserved per point for its possible rejection (index, code and message) and for the error of its text."""


def embed_answer(
    request: EmbedRequest, result: EmbedResult, model: str, written: Mapping[int, TextAnswer] | None = None
) -> EmbedAnswer:
    """The answer to an embed request; a failed text has an error instead of vectors.

    Args:
        request: the request.
        result: the result of the operation.
        model: name of the model.
        written: the rendered vectors by the index of their text, if they were rendered before.
    """
    items = []
    for index, (text, embedding) in enumerate(zip(request.texts, result.texts, strict=True)):
        answer: TextAnswer = {"text": text} if request.include_text else {}
        if isinstance(embedding, ModelFailure):
            _add_error(answer, embedding)
        else:
            answer["tokens"], answer["truncated"] = embedding.tokens, embedding.truncated
            if written is not None:
                answer.update(written[index])
            elif request.wants_vectors:
                add_vectors(answer, embedding, request.encoding, request.dtype)
        items.append(answer)
    return {"results": items, "usage": {"tokens": result.tokens}, "model": model}


def ingest_answer(request: EmbedRequest, texts: Sequence[IngestedText], tokens: int, model: str) -> EmbedAnswer:
    """The answer to an embed request that stores points, without its `upsert` block."""
    items = []
    for text, ingested in zip(request.texts, texts, strict=True):
        answer: TextAnswer = {"text": text} if request.include_text else {}
        answer["id"] = None if ingested.id is None else id_answer(ingested.id)
        if isinstance(ingested.result, ModelFailure):
            _add_error(answer, ingested.result)
        else:
            answer["tokens"], answer["truncated"] = ingested.tokens, ingested.truncated
            if ingested.chunks is not None:
                answer["chunks"] = ingested.chunks
            if ingested.result is not None:
                add_vectors(answer, ingested.result, request.encoding, request.dtype)
        items.append(answer)
    return {"results": items, "usage": {"tokens": tokens}, "model": model}


def upsert_answer(report: IngestReport) -> UpsertAnswer:
    """The `upsert` block; a rejected point has the index of its text and, with chunking, of its chunk."""
    rejected: list[RejectedAnswer] = []
    for point in report.rejected:
        answer: RejectedAnswer = {
            "index": point.text,
            "code": code_of(point.cause),
            "message": _shortened(point.cause.message),
        }
        if point.chunk is not None:
            answer = {"index": point.text, "chunk": point.chunk, "code": answer["code"], "message": answer["message"]}
        rejected.append(answer)
    upsert: UpsertAnswer = {
        "collection": report.collection,
        "stored": report.stored,
        "skipped": report.skipped,
        "rejected": rejected,
    }
    if report.differing:
        upsert["differing"] = sorted(report.differing)
    if report.taken:
        upsert["recognised"] = recognised_answer(report.taken)
    return upsert


def recognised_answer(taken: Taken) -> RecognisedAnswer:
    """What was taken from a collection."""
    answer: RecognisedAnswer = {}
    if taken.kinds:
        answer["kinds"] = list(taken.kinds)
    if taken.names:
        answer["vectorNames"] = cast("NamesAnswer", dict(taken.names))
    if taken.distances:
        answer["distance"] = cast("DistancesAnswer", dict(taken.distances))
    if taken.modifier is not None:
        answer["modifier"] = taken.modifier
    if taken.layout is not None:
        answer["layout"] = taken.layout
    if taken.text_key is not None:
        answer["textKey"] = taken.text_key
    return answer


def search_answer(result: SearchResult, model: str) -> SearchAnswer:
    """The answer to a search request."""
    results: list[HitsAnswer] = [{"hits": [_hit(hit) for hit in hits]} for hits in result.hits]
    for of_query, count in zip(results, result.unranked, strict=False):
        if count:
            of_query["unranked"] = count
    if result.explanations is not None:
        for hits, explanations in zip(results, result.explanations, strict=True):
            for hit, explanation in zip(hits["hits"], explanations, strict=True):
                hit["explain"] = _explain(explanation)
    answer: SearchAnswer = {"results": results, "usage": {"tokens": result.tokens}, "model": model}
    if result.taken:
        answer["recognised"] = recognised_answer(result.taken)
    if result.warnings:
        answer["warnings"] = [_warning(warning) for warning in result.warnings]
    return answer


def score_answer(result: ScoreResult, model: str) -> ScoreAnswer:
    """The answer to a score request; a failed pair is null in every list and listed in `errors`."""
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
    """A point's id in JSON: a number, or the text of a UUID."""
    return point_id if isinstance(point_id, int) else str(point_id)


def numbers(array: NDArray[Any]) -> NDArray[np.float32]:
    """The array in the form that `Body.of` serializes: contiguous float32 in native byte order."""
    return np.ascontiguousarray(array, dtype=np.float32)


def base64_array(array: NDArray[Any], dtype: NumberType) -> ArrayAnswer:
    """The array in the form that `Body.of` encodes as base64."""
    wire = np.ascontiguousarray(array, dtype="<f2" if dtype == "float16" else "<f4")
    return {"shape": list(wire.shape), "dtype": dtype, "data": Base64Array(wire)}


def _add_error(answer: TextAnswer, error: ModelFailure) -> None:
    answer.update(cast("TextAnswer", error_answer(error)))


def add_vectors(answer: TextAnswer, embedding: Embedding | Vectors, encoding: Encoding, dtype: NumberType) -> None:
    """Add the vectors of an embedding or of a stored point."""
    if embedding.dense is not None:
        answer["dense"] = numbers(embedding.dense) if encoding == "list" else base64_array(embedding.dense, dtype)
    if embedding.sparse is not None:
        answer["sparse"] = _sparse(embedding.sparse)
    if embedding.colbert is not None:
        answer["colbert"] = numbers(embedding.colbert) if encoding == "list" else base64_array(embedding.colbert, dtype)


def _sparse(sparse: SparseVector) -> SparseAnswer:
    return {"indices": np.ascontiguousarray(sparse.indices), "values": numbers(sparse.values)}


def _hit(hit: Hit) -> HitAnswer:
    answer: HitAnswer = {"id": id_answer(hit.id), "score": hit.score}
    if hit.group is not None:
        answer["group"] = hit.group
    if hit.payload is not None:
        answer["payload"] = dict(hit.payload)
    if hit.vectors is not None:
        vectors: VectorsAnswer = {}
        if hit.vectors.dense is not None:
            vectors["dense"] = numbers(hit.vectors.dense)
        if hit.vectors.sparse is not None:
            vectors["sparse"] = _sparse(hit.vectors.sparse)
        if hit.vectors.colbert is not None:
            vectors["colbert"] = numbers(hit.vectors.colbert)
        answer["vectors"] = vectors
    return answer


def _explain(explanation: HitExplanation) -> ExplainAnswer:
    return {
        "branches": {kind: _branch(rank) for kind, rank in explanation.branches.items()},
        "fusion": None if explanation.fusion is None else _by_kind(explanation.fusion),
        "sparse": None if explanation.sparse is None else [_sparse_match(match) for match in explanation.sparse],
        "colbert": None if explanation.colbert is None else [_colbert_match(match) for match in explanation.colbert],
    }


def _warning(warning: ModelWarning) -> WarningAnswer:
    details = {"collection": warning.collection, **disagreement_details(warning.disagreement)}
    return {"code": "model_mismatch", "message": warning.message, "details": details}


def _by_kind(parts: Mapping[Any, float]) -> dict[str, float]:
    return {str(kind): part for kind, part in parts.items()}


def _branch(branch: BranchRank | None) -> BranchAnswer | None:
    return None if branch is None else {"rank": branch.rank, "score": branch.score}


def _sparse_match(match: SparseMatch) -> SparseMatchAnswer:
    return {
        "token": match.token,
        "id": match.id,
        "query": _shortest(match.query),
        "passage": _shortest(match.passage),
        "contribution": None if match.contribution is None else _shortest(match.contribution),
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


def _shortened(message: str) -> str:
    """The message, truncated to `REJECTION_MESSAGE_MAX_BYTES` of JSON."""
    shortened = message
    while len(orjson.dumps(shortened)) > REJECTION_MESSAGE_MAX_BYTES:
        shortened = shortened[: len(shortened) * 7 // 8]
    return shortened if shortened == message else shortened + "…"
