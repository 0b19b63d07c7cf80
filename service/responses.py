"""Embeddings, hits and errors to the JSON of the wire, and the guard on its size."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from embedder.errors import ResponseTooLarge, WorkerError
from embedder.forward import Result
from embedder.vectors import Embedding, SparseVector
from qdrant_sink.points import PointId
from qdrant_sink.search import Hit
from qdrant_sink.writer import UpsertReport
from service.plan import Plan
from service.requests import EmbedRequest
from service.scoring import SCORE_KINDS, ScoreKind

Json = dict[str, Any]

MESSAGE_BYTES = 220
"""Of the message of one rejected point in a report; the place in a deeply nested payload can be longer."""

REPORT_BYTES = MESSAGE_BYTES + 230
"""Room kept per point for what an upsert may have to say of it: index, code and message, and the error of its text."""


def embed_answer(request: EmbedRequest, results: Sequence[Result], *, model: str, plan: Plan | None = None) -> Json:
    """`{"results": [...], "usage": {"tokens"}, "model"}`; a text that failed carries `error` in place of vectors.

    Args:
        request: what was asked for.
        results: one per text or, with a plan, per point.
        model: its name.
        plan: what was stored: adds the id of each text, and the number of its chunks if it was cut.
    """
    items = []
    for index, text in enumerate(request.texts):
        item: Json = {"text": text} if request.include_text else {}
        own = results[index : index + 1]
        if plan is not None:
            item["id"] = id_json(plan.ids[index])
            own = [results[position] for position in plan.documents[index]]
        if request.qdrant is not None and request.qdrant.chunk is not None:
            embedded = [one for one in own if isinstance(one, Embedding)]
            item |= {"tokens": sum(one.tokens for one in embedded), "truncated": False, "chunks": len(own)}
        elif isinstance(own[0], Embedding):
            item |= {"tokens": own[0].tokens, "truncated": own[0].truncated}
            if request.wants_vectors:
                item |= vectors_json(own[0], encoding=request.encoding, dtype=request.dtype)
        else:
            item |= error_answer(own[0])
        items.append(item)
    tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
    return {"results": items, "usage": {"tokens": tokens}, "model": model}


def vectors_json(embedding: Embedding, *, encoding: str = "list", dtype: str = "float32") -> Json:
    """The vectors that the embedding has, by kind."""
    found: Json = {}
    if embedding.dense is not None:
        found["dense"] = _array(embedding.dense, encoding, dtype)
    if embedding.sparse is not None:
        found["sparse"] = sparse_json(embedding.sparse)
    if embedding.colbert is not None:
        found["colbert"] = _array(embedding.colbert, encoding, dtype)
    return found


def sparse_json(sparse: SparseVector) -> Json:
    """`{"indices", "values"}`, ascending and unique."""
    return {"indices": sparse.indices.tolist(), "values": _numbers(sparse.values)}


def upsert_json(plan: Plan, report: UpsertReport) -> Json:
    """The `upsert` block: what became of every point, each named by its text and, if it is one, its chunk."""
    rejected = []
    for one in report.rejected:
        entry = plan.entries[one.index]
        place = {"index": entry.text} if entry.chunk is None else {"index": entry.text, "chunk": entry.chunk}
        rejected.append({**place, "code": one.code, "message": _cut(one.message)})
    return {
        "collection": plan.collection,
        "stored": report.stored,
        "skipped": report.skipped,
        "rejected": rejected,
    }


def search_answer(hits: Sequence[Sequence[Hit]], *, model: str, tokens: int) -> Json:
    """`{"results": [{"hits": [{"id", "score", ...}]}]}`, one result per query, hits best first."""
    return {
        "results": [{"hits": [_hit(hit) for hit in one]} for one in hits],
        "usage": {"tokens": tokens},
        "model": model,
    }


def score_answer(scores: Sequence[Mapping[ScoreKind, float] | WorkerError], *, model: str, tokens: int) -> Json:
    """`{"scores": {kind: [...]}, "errors": [...]}`; a pair that failed is null in every list and named in `errors`."""
    return {
        "scores": {
            kind: [None if isinstance(one, WorkerError) else one[kind] for one in scores] for kind in SCORE_KINDS
        },
        "errors": [
            {"index": index, **error_answer(one)} for index, one in enumerate(scores) if isinstance(one, WorkerError)
        ],
        "usage": {"tokens": tokens},
        "model": model,
    }


def error_answer(error: WorkerError) -> Json:
    """`{"error", "error_code", "retryable", "details"}`; `error` is always a string."""
    return {
        "error": error.message,
        "error_code": error.code,
        "retryable": error.retryable,
        "details": dict(error.details),
    }


def least_size(request: EmbedRequest, lengths: Sequence[int], *, hidden: int, colbert: int) -> int:
    """Bytes that the dense and ColBERT vectors of an answer take at least.

    Args:
        request: says which vectors, and how they are written.
        lengths: tokens per text.
        hidden: size of a dense vector.
        colbert: size of a ColBERT row.
    """
    numbers = len(lengths) * hidden * ("dense" in request.vectors)
    numbers += (sum(lengths) - len(lengths)) * colbert * ("colbert" in request.vectors)
    if request.encoding == "list":
        return numbers * 4  # "0.1,": no number of a vector is shorter
    return numbers * (2 if request.dtype == "float16" else 4) * 4 // 3


def check_least_size(size: int, limit: int, *, remedy: str) -> None:
    """Refuse an answer of which `size` bytes are certain.

    Raises:
        ResponseTooLarge: saying so, and the ways out.
    """
    if size > limit:
        raise ResponseTooLarge(
            f"the answer would have more than {size} bytes, the limit is {limit} (MAX_RESPONSE_MB); {remedy}",
            details={"bytes": size, "limit": limit},
        )


def check_size(answer: Json, limit: int, *, remedy: str, points: int = 0) -> Json:
    """The answer itself, if its JSON is within the limit.

    Args:
        answer: JSON values only.
        limit: bytes.
        remedy: what the caller can do about it.
        points: how many points an upsert will still report on.

    Raises:
        ResponseTooLarge: saying how large it is and the ways out.
    """
    reserve = points * REPORT_BYTES + 64  # 64: the envelope that the queue puts around it
    compact = orjson.dumps(answer)
    # The two encoders write some numbers differently, none half as long as the other does.
    check_least_size(len(compact) // 2 + reserve, limit, remedy=remedy)
    # The queue's encoder puts a space after each comma and colon, and a zero into short exponents.
    size = len(compact) + compact.count(b",") + compact.count(b":") + compact.count(b"e-") + reserve
    if size > limit:  # an upper bound: commas inside texts count too
        size = len(json.dumps(answer, ensure_ascii=False).encode()) + reserve
    if size > limit:
        raise ResponseTooLarge(
            f"the answer has {size} bytes, the limit is {limit} (MAX_RESPONSE_MB); {remedy}",
            details={"bytes": size, "limit": limit},
        )
    return answer


def id_json(point_id: PointId) -> int | str:
    """A point's id on the wire: a number, or the text of a UUID."""
    return point_id if isinstance(point_id, int) else str(point_id)


def _cut(message: str) -> str:
    """The message, or as much of its beginning as `MESSAGE_BYTES` of JSON hold."""
    kept = message
    while len(orjson.dumps(kept)) > MESSAGE_BYTES:
        kept = kept[: len(kept) * 7 // 8]
    return kept if kept == message else kept + "…"


def _hit(hit: Hit) -> Json:
    item: Json = {"id": id_json(hit.id), "score": hit.score}
    if hit.group is not None:
        item["group"] = hit.group
    if hit.payload is not None:
        item["payload"] = dict(hit.payload)
    if hit.vectors is not None:
        vectors: Json = {}
        if hit.vectors.dense is not None:
            vectors["dense"] = _numbers(hit.vectors.dense)
        if hit.vectors.sparse is not None:
            vectors["sparse"] = sparse_json(hit.vectors.sparse)
        if hit.vectors.colbert is not None:
            vectors["colbert"] = _numbers(hit.vectors.colbert)
        item["vectors"] = vectors
    return item


def _array(array: NDArray[Any], encoding: str, dtype: str) -> Any:
    if encoding == "list":
        return _numbers(array)
    wire = np.ascontiguousarray(array, dtype="<f2" if dtype == "float16" else "<f4")
    return {"shape": list(wire.shape), "dtype": dtype, "data": base64.b64encode(wire.tobytes()).decode("ascii")}


def _numbers(array: NDArray[Any]) -> Any:
    """Nested lists of the shortest decimals that read back as the same float32.

    `.tolist()` would widen 0.1 to 0.10000000149011612 and double the size of an answer.
    """
    array = np.ascontiguousarray(array, dtype=np.float32)
    return orjson.loads(orjson.dumps(array, option=orjson.OPT_SERIALIZE_NUMPY))
