"""Convert plans, points and answers to and from the types of Qdrant Edge."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import qdrant_edge as edge

from embedder.vectors import SparseVector
from qdrant_sink.point_order import PointOrder
from qdrant_sink.points import PayloadKeys, Point, PointId, Stored, Vectors, WithPayload
from qdrant_sink.schema import VectorNames
from qdrant_sink.searching.plan import HAVING_PENALTY, Fuse, Hit, Lacking, Nearest, Plan, Rescoring, Traversal


def edge_point(point: Point) -> edge.Point:
    """Convert a point for the engine."""
    return edge.Point(point.id, _vectors(point), dict(point.payload))


def edge_vectors(point: Point) -> edge.PointVectors:
    """Convert the vectors of a point for the engine."""
    return edge.PointVectors(point.id, _vectors(point))


def _vectors(point: Point) -> dict[str, Any]:
    names = point.names
    vectors: dict[str, Any] = {}
    if point.dense is not None:
        vectors[names.dense] = point.dense.tolist()
    if point.sparse is not None:
        vectors[names.sparse] = _sparse(point.sparse)
    if point.colbert is not None:
        vectors[names.colbert] = point.colbert.tolist()
    return vectors


def _sparse(vector: SparseVector) -> edge.SparseVector:
    return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())


def query_request(
    plan: Plan, condition: edge.Filter | None, candidates: Mapping[int, edge.Filter]
) -> edge.QueryRequest:
    """Convert the stages of a plan to one request.

    Args:
        plan: the plan.
        condition: the filter of the plan.
        candidates: filters that replace that of a branch, by its index.
    """
    names = plan.names
    single_stage = not plan.branches
    prefetches = [
        edge.Prefetch(
            limit=branch.limit,
            query=_nearest(branch.query, names),
            params=_params(branch.query, plan.traversal),
            filter=candidates.get(index, condition),
        )
        for index, branch in enumerate(plan.branches)
    ]
    if isinstance(plan.query, Lacking) and plan.query.fuse is not None:
        fusion = _fuse(plan.query.fuse)
        prefetches = [edge.Prefetch(limit=plan.query.candidates_max, query=fusion, prefetches=prefetches)]
    nearest = plan.query if isinstance(plan.query, Nearest) else None
    return edge.QueryRequest(
        limit=plan.limit,
        offset=plan.offset,
        query=_last_stage(plan.query, names),
        prefetches=prefetches,
        with_vector=[names.of(kind) for kind in plan.with_vectors] or False,
        with_payload=payload_selector(plan.with_payload),
        filter=condition if single_stage else None,
        params=None if nearest is None else _params(nearest, plan.traversal if single_stage else None),
        score_threshold=plan.score_threshold,
    )


def edge_order(order: PointOrder) -> edge.OrderBy:
    """Convert the order of a scroll."""
    start = order.start_from.isoformat() if isinstance(order.start_from, datetime) else order.start_from
    return edge.OrderBy(order.key, edge.Direction.Desc if order.descending else edge.Direction.Asc, start)


def payload_selector(selection: WithPayload) -> Any:
    """Convert the selection of a payload."""
    if not isinstance(selection, PayloadKeys):
        return selection
    selector = edge.PayloadSelector.Exclude if selection.excluded else edge.PayloadSelector.Include
    return selector(list(selection.keys))


def _params(query: Nearest, traversal: Traversal | None) -> edge.SearchParams | None:
    """Return the parameters of a stage. With `traversal`, the stage searches the collection itself."""
    quantization = None if query.rescoring is None else _quantization(query.rescoring)
    if traversal is not None:
        return edge.SearchParams(
            hnsw_ef=traversal.hnsw_ef,
            exact=traversal.exact,
            indexed_only=traversal.indexed_only,
            quantization=quantization,
        )
    return None if quantization is None else edge.SearchParams(quantization=quantization)


def _quantization(rescoring: Rescoring) -> edge.QuantizationSearchParams:
    return edge.QuantizationSearchParams(
        ignore=rescoring.ignore,
        rescore=rescoring.rescore,
        oversampling=rescoring.oversampling if rescoring.rescore else None,
    )


def _last_stage(query: Nearest | Fuse | Lacking, names: VectorNames) -> Any:
    if isinstance(query, Nearest):
        return _nearest(query, names)
    return _fuse(query) if isinstance(query, Fuse) else _lacking(query, names)


def _lacking(query: Lacking, names: VectorNames) -> edge.Formula:
    expression = edge.Expression
    score = expression.Variable("$score")
    has_vector = expression.Condition(edge.HasVectorCondition(names.of(query.kind)))
    penalty = expression.Mult([expression.Constant(-HAVING_PENALTY), has_vector])
    return edge.Formula(expression.Sum([expression.Neg(score) if query.ascending else score, penalty]))


def _nearest(query: Nearest, names: VectorNames) -> edge.Query:
    vector = _sparse(query.vector) if isinstance(query.vector, SparseVector) else query.vector.tolist()
    return edge.Query.Nearest(vector, using=names.of(query.kind))


def _fuse(query: Fuse) -> Any:
    if query.method == "dbsf":
        return edge.Fusion.Dbsf()
    return edge.Fusion.Rrf(k=query.k, weights=None if query.weights is None else list(query.weights))


def hit(scored: edge.ScoredPoint, names: VectorNames) -> Hit:
    """Convert a scored point to a hit."""
    return Hit(sink_id(scored.id), scored.score, scored.payload, Vectors.named(scored.vector, names))


def stored(record: edge.Record, names: VectorNames) -> Stored:
    """Convert a point that was read."""
    return Stored(record.payload, Vectors.named(record.vector, names))


def edge_id(value: PointId) -> edge.PointId:
    """Convert an id to the form in which the engine returns it."""
    return str(value) if isinstance(value, uuid.UUID) else value


def sink_id(value: edge.PointId) -> PointId:
    """Convert an id that the engine returned."""
    return uuid.UUID(value) if isinstance(value, str) else value
