"""Plans, points and answers in the types of Qdrant Edge."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import qdrant_edge as edge

from embedder.vectors import SparseVector
from qdrant_sink.edge_filter import edge_filter
from qdrant_sink.points import Point, PointId
from qdrant_sink.schema import VectorNames
from qdrant_sink.search import Fuse, Hit, Nearest, Plan, Search, Vectors


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
        with_vector=[names.of(kind) for kind in search.with_vectors] or False,
        with_payload=search.with_payload,
        filter=condition if last else None,
        params=None if isinstance(planned.query, Fuse) else _params(planned.query, search, walked=last),
        score_threshold=search.score_threshold,
    )


def _params(query: Nearest, search: Search, *, walked: bool) -> edge.SearchParams | None:
    """Of a stage: `walked`, what the caller asked for; rescored, where its vector is quantized."""
    rescored = None
    if query.oversampling is not None:
        rescored = edge.QuantizationSearchParams(rescore=True, oversampling=query.oversampling)
    if walked:
        return edge.SearchParams(hnsw_ef=search.hnsw_ef, exact=search.exact, quantization=rescored)
    return None if rescored is None else edge.SearchParams(quantization=rescored)


def _nearest(query: Nearest, names: VectorNames) -> edge.Query:
    vector = _sparse(query.vector) if isinstance(query.vector, SparseVector) else query.vector.tolist()
    return edge.Query.Nearest(vector, using=names.of(query.kind))


def _fuse(query: Fuse) -> Any:
    if query.method == "dbsf":
        return edge.Fusion.Dbsf()
    return edge.Fusion.Rrf(k=query.k, weights=None if query.weights is None else list(query.weights))


def hit(scored: edge.ScoredPoint, names: VectorNames) -> Hit:
    """One answer as a value of the sink."""
    found = scored.vector
    vectors = None
    if isinstance(found, dict) and found:
        sparse: Any = found.get(names.sparse)
        dense, colbert = found.get(names.dense), found.get(names.colbert)
        vectors = Vectors(
            dense=None if dense is None else np.asarray(dense, dtype=np.float32),
            sparse=None
            if sparse is None
            else SparseVector(np.asarray(sparse.indices, np.uint32), np.asarray(sparse.values, np.float32)),
            colbert=None if colbert is None else np.asarray(colbert, dtype=np.float32),
        )
    return Hit(sink_id(scored.id), scored.score, scored.payload, vectors)


def sink_id(value: edge.PointId) -> PointId:
    """The id as the engine gives it."""
    return uuid.UUID(value) if isinstance(value, str) else value
