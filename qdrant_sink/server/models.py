"""Convert plans, points and answers to and from the models of qdrant-client, which work over gRPC and REST."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from qdrant_client import models

from embedder.vectors import SparseVector
from qdrant_sink.filters import Filter, ParsedFilter, parse_filter
from qdrant_sink.point_order import PointOrder
from qdrant_sink.points import PayloadKeys, Point, PointId, Stored, Vectors, WithPayload
from qdrant_sink.schema import NAMES, VectorNames
from qdrant_sink.searching.plan import HAVING_PENALTY, Fuse, Hit, Lacking, Nearest, Plan, Rescoring, Traversal


def client_filter(raw: Filter) -> models.Filter:
    """Parse and convert a filter. Raises InvalidRequest; see `parse_filter`."""
    return parse_filter(raw).converted(_filter_model)


def _filter_model(where: ParsedFilter) -> models.Filter:
    return models.Filter.model_validate(where)


def client_id(point_id: PointId) -> int | str:
    """Convert an id to a type that the client accepts."""
    return str(point_id) if isinstance(point_id, uuid.UUID) else point_id


def sink_id(value: Any) -> PointId:
    """Convert an id that the client returned."""
    return value if isinstance(value, int | uuid.UUID) else uuid.UUID(value)


def points_list(points: Sequence[Point]) -> list[models.PointStruct]:
    """Convert points for REST. For gRPC, `protobuf.upsert_request` is many times faster."""
    return [
        models.PointStruct(id=client_id(point.id), vector=_vectors(point), payload=dict(point.payload))
        for point in points
    ]


def point_vectors(points: Sequence[Point]) -> list[models.PointVectors]:
    """Convert the vectors of points for REST, as `points_list` does."""
    return [models.PointVectors(id=client_id(point.id), vector=_vectors(point)) for point in points]


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


def query_request(plan: Plan) -> models.QueryRequest:
    """Convert the stages of a plan to one request."""
    names = plan.names
    condition = None if plan.where is None else client_filter(plan.where)
    single_stage = not plan.branches
    prefetches = [
        models.Prefetch(
            query=_nearest(branch.query),
            using=names.of(branch.query.kind),
            limit=branch.limit,
            filter=condition,
            params=_params(branch.query, plan.traversal),
        )
        for branch in plan.branches
    ]
    if isinstance(plan.query, Lacking) and plan.query.fuse is not None:
        fusion = _fuse(plan.query.fuse)
        prefetches = [models.Prefetch(query=fusion, prefetch=prefetches, limit=plan.query.candidates_max)]
    nearest = plan.query if isinstance(plan.query, Nearest) else None
    return models.QueryRequest(
        prefetch=prefetches or None,
        query=_last_stage(plan.query, names),
        using=None if nearest is None else names.of(nearest.kind),
        filter=condition if single_stage else None,
        params=None if nearest is None else _params(nearest, plan.traversal if single_stage else None),
        limit=plan.limit,
        offset=plan.offset,
        score_threshold=plan.score_threshold,
        with_payload=payload_selector(plan.with_payload),
        with_vector=[names.of(kind) for kind in plan.with_vectors] or False,
    )


def order_by(order: PointOrder) -> models.OrderBy:
    """Convert the order of a scroll."""
    direction = models.Direction.DESC if order.descending else models.Direction.ASC
    return models.OrderBy(key=order.key, direction=direction, start_from=order.start_from)


def payload_selector(selection: WithPayload) -> bool | models.PayloadSelector:
    """Convert the selection of a payload."""
    if not isinstance(selection, PayloadKeys):
        return selection
    keys = list(selection.keys)
    return (
        models.PayloadSelectorExclude(exclude=keys)
        if selection.excluded
        else models.PayloadSelectorInclude(include=keys)
    )


def hit(scored: models.ScoredPoint, *, with_payload: WithPayload, names: VectorNames = NAMES) -> Hit:
    """Convert a scored point to a hit."""
    point = stored(scored, with_payload=with_payload, names=names)
    return Hit(sink_id(scored.id), scored.score, point.payload, point.vectors)


def stored(
    record: models.ScoredPoint | models.Record, *, with_payload: WithPayload, names: VectorNames = NAMES
) -> Stored:
    """Convert a point that was read."""
    return Stored((record.payload or {}) if with_payload else None, Vectors.named(record.vector, names))


def _params(query: Nearest, traversal: Traversal | None) -> models.SearchParams | None:
    """Return the parameters of a stage. With `traversal`, the stage searches the collection itself."""
    quantization = None if query.rescoring is None else _quantization(query.rescoring)
    if traversal is not None:
        return models.SearchParams(
            hnsw_ef=traversal.hnsw_ef,
            exact=traversal.exact,
            indexed_only=traversal.indexed_only,
            quantization=quantization,
        )
    return None if quantization is None else models.SearchParams(quantization=quantization)


def _quantization(rescoring: Rescoring) -> models.QuantizationSearchParams:
    return models.QuantizationSearchParams(
        ignore=rescoring.ignore,
        rescore=rescoring.rescore,
        oversampling=rescoring.oversampling if rescoring.rescore else None,
    )


def _last_stage(
    query: Nearest | Fuse | Lacking, names: VectorNames
) -> models.NearestQuery | models.FusionQuery | models.RrfQuery | models.FormulaQuery:
    if isinstance(query, Nearest):
        return _nearest(query)
    return _fuse(query) if isinstance(query, Fuse) else _lacking(query, names)


def _lacking(query: Lacking, names: VectorNames) -> models.FormulaQuery:
    has_vector = models.HasVectorCondition(has_vector=names.of(query.kind))
    penalty = models.MultExpression(mult=[-HAVING_PENALTY, has_vector])
    score = models.NegExpression(neg="$score") if query.ascending else "$score"
    return models.FormulaQuery(formula=models.SumExpression(sum=[score, penalty]))


def _nearest(query: Nearest) -> models.NearestQuery:
    vector = query.vector
    return models.NearestQuery(nearest=_sparse(vector) if isinstance(vector, SparseVector) else vector.tolist())


def _sparse(vector: SparseVector) -> models.SparseVector:
    return models.SparseVector(indices=vector.indices.tolist(), values=vector.values.tolist())


def _fuse(query: Fuse) -> models.FusionQuery | models.RrfQuery:
    if query.method == "dbsf":
        return models.FusionQuery(fusion=models.Fusion.DBSF)
    weights = None if query.weights is None else list(query.weights)
    return models.RrfQuery(rrf=models.Rrf(k=query.k, weights=weights))
