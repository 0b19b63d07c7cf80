"""Plans, points and answers in the types of Qdrant Edge."""

from __future__ import annotations

import uuid
from typing import Any

import qdrant_edge as edge

from embedder.vectors import SparseVector
from qdrant_sink.edge_filter import edge_filter
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import VectorNames
from qdrant_sink.search import Fuse, Hit, Nearest, PayloadKeys, Plan, Rescoring, Search, Stored, Vectors, WithPayload


def edge_point(point: Point, names: VectorNames) -> edge.Point:
    """A point as the engine takes it."""
    vectors: dict[str, Any] = {}
    if point.dense is not None:
        vectors[names.dense] = point.dense.tolist()
    if point.sparse is not None:
        vectors[names.sparse] = _sparse(point.sparse)
    if point.colbert is not None:
        vectors[names.colbert] = point.colbert.tolist()
    return edge.Point(point.id, vectors, dict(point.payload))


def _sparse(vector: SparseVector) -> edge.SparseVector:
    return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())


def query_request(planned: Plan, names: VectorNames) -> edge.QueryRequest:
    """The stages of a plan as one request."""
    search = planned.search
    condition = edge_filter(search.where)
    last = not planned.branches
    return edge.QueryRequest(
        limit=planned.limit,
        offset=planned.offset,
        query=_fuse(planned.query) if isinstance(planned.query, Fuse) else _nearest(planned.query, names),
        prefetches=[
            edge.Prefetch(
                limit=b.limit,
                query=_nearest(b.query, names),
                params=_params(b.query, search, walked=True),
                filter=condition,
            )
            for b in planned.branches
        ],
        with_vector=[names.of(kind) for kind in planned.with_vectors] or False,
        with_payload=payload_selector(planned.with_payload),
        filter=condition if last else None,
        params=None if isinstance(planned.query, Fuse) else _params(planned.query, search, walked=last),
        score_threshold=planned.score_threshold,
    )


def payload_selector(wanted: WithPayload) -> Any:
    """What of payloads an answer carries, as the engine takes it."""
    if not isinstance(wanted, PayloadKeys):
        return wanted
    choose = edge.PayloadSelector.Exclude if wanted.excluded else edge.PayloadSelector.Include
    return choose(list(wanted.keys))


def _params(query: Nearest, search: Search, *, walked: bool) -> edge.SearchParams | None:
    """Of a stage: `walked`, what the caller asked for; and how to use the quantized copy, where there is one."""
    quantization = None if query.rescoring is None else _quantization(query.rescoring)
    if walked:
        return edge.SearchParams(
            hnsw_ef=search.hnsw_ef, exact=search.exact, indexed_only=search.indexed_only, quantization=quantization
        )
    return None if quantization is None else edge.SearchParams(quantization=quantization)


def _quantization(wanted: Rescoring) -> edge.QuantizationSearchParams:
    return edge.QuantizationSearchParams(
        ignore=wanted.ignore, rescore=wanted.rescore, oversampling=wanted.oversampling if wanted.rescore else None
    )


def _nearest(query: Nearest, names: VectorNames) -> edge.Query:
    vector = _sparse(query.vector) if isinstance(query.vector, SparseVector) else query.vector.tolist()
    return edge.Query.Nearest(vector, using=names.of(query.kind))


def _fuse(query: Fuse) -> Any:
    if query.method == "dbsf":
        return edge.Fusion.Dbsf()
    return edge.Fusion.Rrf(k=query.k, weights=None if query.weights is None else list(query.weights))


def hit(scored: edge.ScoredPoint, names: VectorNames) -> Hit:
    """One answer as a value of the sink."""
    return Hit(sink_id(scored.id), scored.score, scored.payload, Vectors.of(scored.vector, names))


def stored(record: edge.Record, names: VectorNames) -> Stored:
    """What of a point was read."""
    return Stored(record.payload, Vectors.of(record.vector, names))


def sink_id(value: edge.PointId) -> PointId:
    """The id as the engine gives it."""
    return uuid.UUID(value) if isinstance(value, str) else value
