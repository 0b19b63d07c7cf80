"""Plans, points and answers in the models of qdrant-client, which carries them over gRPC and REST alike."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from qdrant_client import models

from embedder.vectors import SparseVector
from qdrant_sink.filters import check_filter
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import CollectionSchema, FoundSchema, FoundVector
from qdrant_sink.search import Fuse, Hit, Nearest, Plan, Vectors

_DISTANCES: Final = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
    "manhattan": models.Distance.MANHATTAN,
}


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


def vectors_config(schema: CollectionSchema) -> dict[str, models.VectorParams]:
    """The dense and the ColBERT vectors of a collection that is to be created."""
    dense, colbert = schema.dense, schema.colbert
    return {
        "dense": models.VectorParams(
            size=dense.size,
            distance=_DISTANCES[dense.distance],
            hnsw_config=models.HnswConfigDiff(m=dense.m, ef_construct=dense.ef_construct),
        ),
        "colbert": models.VectorParams(
            size=colbert.size,
            distance=_DISTANCES[colbert.distance],
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator(colbert.comparator)),
            datatype=models.Datatype(colbert.datatype),
            on_disk=colbert.on_disk,
            hnsw_config=models.HnswConfigDiff(m=colbert.m),
        ),
    }


def sparse_vectors_config(schema: CollectionSchema) -> dict[str, models.SparseVectorParams]:
    """The sparse vector of a collection that is to be created."""
    sparse = schema.sparse
    return {
        "sparse": models.SparseVectorParams(
            index=models.SparseIndexParams(datatype=models.Datatype(sparse.datatype)),
            modifier=None if sparse.modifier is None else models.Modifier(sparse.modifier),
        )
    }


def found_schema(info: models.CollectionInfo) -> FoundSchema:
    """What an existing collection is. Its one unnamed vector, if it has that, goes by the empty name."""
    params = info.config.params
    dense = params.vectors or {}
    found: dict[str, FoundVector] = {}
    for name, vector in ({"": dense} if isinstance(dense, models.VectorParams) else dense).items():
        multi = vector.multivector_config
        found[name] = FoundVector(
            kind="dense" if multi is None else "multivector",
            size=vector.size,
            distance=vector.distance.value.lower(),
            comparator=None if multi is None else multi.comparator.value.lower(),
        )
    for name, weights in (params.sparse_vectors or {}).items():
        modifier = None if weights.modifier in (None, models.Modifier.NONE) else weights.modifier.value
        found[name] = FoundVector(kind="sparse", modifier=modifier)
    return found


def points_list(points: Sequence[Point]) -> list[models.PointStruct]:
    """The points for REST; gRPC has `protobuf.upsert_request`, which is many times faster."""
    rows = []
    for point in points:
        vectors: dict[str, Any] = {}
        if point.dense is not None:
            vectors["dense"] = point.dense.tolist()
        if point.sparse is not None:
            vectors["sparse"] = _sparse(point.sparse)
        if point.colbert is not None:
            vectors["colbert"] = point.colbert.tolist()
        rows.append(models.PointStruct(id=client_id(point.id), vector=vectors, payload=dict(point.payload)))
    return rows


def query_request(planned: Plan) -> models.QueryRequest:
    """The stages of a plan as one request."""
    search = planned.search
    condition = None if search.where is None else client_filter(search.where)
    params = models.SearchParams(hnsw_ef=search.hnsw_ef, exact=search.exact)
    last = not planned.branches
    return models.QueryRequest(
        prefetch=None
        if last
        else [
            models.Prefetch(
                query=_nearest(branch.query),
                using=branch.query.kind,
                limit=branch.limit,
                filter=condition,
                params=params,
            )
            for branch in planned.branches
        ],
        query=_fuse(planned.query) if isinstance(planned.query, Fuse) else _nearest(planned.query),
        using=None if isinstance(planned.query, Fuse) else planned.query.kind,
        filter=condition if last else None,
        params=params if last else None,
        limit=planned.limit,
        offset=planned.offset,
        score_threshold=search.score_threshold,
        with_payload=search.with_payload,
        with_vector=list(search.with_vectors) or False,
    )


def hit(scored: models.ScoredPoint, *, with_payload: bool) -> Hit:
    """One answer as a value of the sink."""
    found: Any = scored.vector
    vectors = None
    if isinstance(found, dict) and found:
        dense, sparse, colbert = found.get("dense"), found.get("sparse"), found.get("colbert")
        vectors = Vectors(
            dense=None if dense is None else np.asarray(dense, dtype=np.float32),
            sparse=None
            if sparse is None
            else SparseVector(np.asarray(sparse.indices, np.uint32), np.asarray(sparse.values, np.float32)),
            colbert=None if colbert is None else np.asarray(colbert, dtype=np.float32),
        )
    return Hit(sink_id(scored.id), scored.score, (scored.payload or {}) if with_payload else None, vectors)


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
