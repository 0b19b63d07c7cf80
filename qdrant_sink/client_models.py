"""Plans, points and answers in the models of qdrant-client, which carries them over gRPC and REST alike."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from qdrant_client import models

from embedder.vectors import SparseVector
from qdrant_sink.filters import check_filter
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import NAMES, VectorNames
from qdrant_sink.search import Fuse, Hit, Nearest, PayloadKeys, Plan, Rescoring, Search, Stored, Vectors, WithPayload


def client_filter(raw: Mapping[str, Any]) -> models.Filter:
    """The filter; raises InvalidRequest as `check_filter`, which runs first."""
    check_filter(raw)
    return models.Filter.model_validate(raw)


def client_id(point_id: PointId) -> int | str:
    """The id as the client takes it."""
    return str(point_id) if isinstance(point_id, uuid.UUID) else point_id


def sink_id(value: Any) -> PointId:
    """The id as the client gives it."""
    return value if isinstance(value, int | uuid.UUID) else uuid.UUID(value)


def points_list(points: Sequence[Point], names: VectorNames = NAMES) -> list[models.PointStruct]:
    """The points for REST; gRPC has `protobuf.upsert_request`, which is many times faster."""
    rows = []
    for point in points:
        vectors: dict[str, Any] = {}
        if point.dense is not None:
            vectors[names.dense] = point.dense.tolist()
        if point.sparse is not None:
            vectors[names.sparse] = _sparse(point.sparse)
        if point.colbert is not None:
            vectors[names.colbert] = point.colbert.tolist()
        rows.append(models.PointStruct(id=client_id(point.id), vector=vectors, payload=dict(point.payload)))
    return rows


def query_request(planned: Plan, names: VectorNames = NAMES) -> models.QueryRequest:
    """The stages of a plan as one request."""
    search = planned.search
    condition = None if search.where is None else client_filter(search.where)
    last = not planned.branches
    return models.QueryRequest(
        prefetch=None
        if last
        else [
            models.Prefetch(
                query=_nearest(branch.query),
                using=names.of(branch.query.kind),
                limit=branch.limit,
                filter=condition,
                params=_params(branch.query, search, walked=True),
            )
            for branch in planned.branches
        ],
        query=_fuse(planned.query) if isinstance(planned.query, Fuse) else _nearest(planned.query),
        using=None if isinstance(planned.query, Fuse) else names.of(planned.query.kind),
        filter=condition if last else None,
        params=None if isinstance(planned.query, Fuse) else _params(planned.query, search, walked=last),
        limit=planned.limit,
        offset=planned.offset,
        score_threshold=planned.score_threshold,
        with_payload=payload_selector(planned.with_payload),
        with_vector=[names.of(kind) for kind in planned.with_vectors] or False,
    )


def payload_selector(wanted: WithPayload) -> bool | models.PayloadSelector:
    """What of payloads an answer carries, as the client takes it."""
    if not isinstance(wanted, PayloadKeys):
        return wanted
    keys = list(wanted.keys)
    return (
        models.PayloadSelectorExclude(exclude=keys) if wanted.excluded else models.PayloadSelectorInclude(include=keys)
    )


def hit(scored: models.ScoredPoint, *, with_payload: WithPayload, names: VectorNames = NAMES) -> Hit:
    """One answer as a value of the sink."""
    found = stored(scored, with_payload=with_payload, names=names)
    return Hit(sink_id(scored.id), scored.score, found.payload, found.vectors)


def stored(
    record: models.ScoredPoint | models.Record, *, with_payload: WithPayload, names: VectorNames = NAMES
) -> Stored:
    """What of a point was read."""
    return Stored((record.payload or {}) if with_payload else None, Vectors.of(record.vector, names))


def _params(query: Nearest, search: Search, *, walked: bool) -> models.SearchParams | None:
    """Of a stage: `walked`, what the caller asked for; and how to use the quantized copy, where there is one."""
    quantization = None if query.rescoring is None else _quantization(query.rescoring)
    if walked:
        return models.SearchParams(
            hnsw_ef=search.hnsw_ef, exact=search.exact, indexed_only=search.indexed_only, quantization=quantization
        )
    return None if quantization is None else models.SearchParams(quantization=quantization)


def _quantization(wanted: Rescoring) -> models.QuantizationSearchParams:
    return models.QuantizationSearchParams(
        ignore=wanted.ignore, rescore=wanted.rescore, oversampling=wanted.oversampling if wanted.rescore else None
    )


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
