"""Convert messages of Qdrant's gRPC API from and to types of its engine, for the server double."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from datetime import UTC
from typing import Any

import numpy as np
import qdrant_edge as edge
from google.protobuf.timestamp_pb2 import Timestamp  # type: ignore[import-untyped,unused-ignore]
from qdrant_client import grpc as pb
from qdrant_client.conversions.conversion import payload_to_grpc

DEFAULT_LIMIT = 10
"""Limit of a query or a prefetch without one."""


def id_of(message: Any) -> Any:
    """Convert the message of an id."""
    return message.num if message.HasField("num") else uuid.UUID(message.uuid)


def id_message(value: Any) -> pb.PointId:
    """Create the message of an id."""
    return pb.PointId(num=value) if isinstance(value, int) else pb.PointId(uuid=str(value))


def stored_vector(message: Any) -> Any:
    """Convert a vector for the engine, with the checks of the server."""
    kind = message.WhichOneof("vector")
    if kind == "dense":
        return list(message.dense.data)
    if kind == "sparse":
        indices, values = list(message.sparse.indices), list(message.sparse.values)
        if len(indices) != len(values):
            raise ValueError("must be the same length as indices")
        if len(set(indices)) != len(indices):
            raise ValueError("must be unique")
        return edge.SparseVector(indices, values)
    if kind == "multi_dense":
        rows = [list(row.data) for row in message.multi_dense.vectors]
        if not rows:
            raise ValueError("multi vector must not be empty")
        if not all(rows):
            raise ValueError("all vectors must be non-empty")
        odd = next((len(row) for row in rows if len(row) != len(rows[0])), None)
        if odd is not None:
            raise ValueError(f"all vectors must have the same dimension, found vector with dimension {odd}")
        if len(rows) * len(rows[0]) >= 2**20:
            raise ValueError(f"Total size of all vectors ({len(rows) * len(rows[0])}) must be less than {2**20}")
        return rows
    raise ValueError(f"unknown vector {kind}")


def _query_vector(message: Any) -> Any:
    kind = message.WhichOneof("variant")
    if kind == "dense":
        return list(message.dense.data)
    if kind == "sparse":
        return edge.SparseVector(list(message.sparse.indices), list(message.sparse.values))
    return [list(row.data) for row in message.multi_dense.vectors]


def _scoring(query: Any, using: str) -> Any:
    kind = query.WhichOneof("variant")
    if kind == "nearest":
        return edge.Query.Nearest(_query_vector(query.nearest), using=using)
    if kind == "rrf":
        return edge.Fusion.Rrf(k=query.rrf.k, weights=list(query.rrf.weights) or None)
    if kind == "fusion":
        return edge.Fusion.Dbsf() if query.fusion == pb.Fusion.DBSF else edge.Fusion.Rrf(k=2)
    if kind == "formula":
        return edge.Formula(_expression(query.formula.expression))
    raise ValueError(f"unknown query {kind}")


def _expression(message: Any) -> edge.Expression:
    kind = message.WhichOneof("variant")
    value = getattr(message, kind)
    builders: dict[str, Callable[[], edge.Expression]] = {
        "constant": lambda: edge.Expression.Constant(value),
        "variable": lambda: edge.Expression.Variable(value),
        "condition": lambda: edge.Expression.Condition(_condition(value)),
        "mult": lambda: edge.Expression.Mult([_expression(part) for part in value.mult]),
        "sum": lambda: edge.Expression.Sum([_expression(part) for part in value.sum]),
        "neg": lambda: edge.Expression.Neg(_expression(value)),
    }
    return builders[kind]()


def _params(message: Any) -> edge.SearchParams | None:
    if not message.HasField("params"):
        return None
    params = message.params
    quantization = None
    if params.HasField("quantization"):
        quantization_params = params.quantization
        quantization = edge.QuantizationSearchParams(
            ignore=quantization_params.ignore,
            rescore=quantization_params.rescore if quantization_params.HasField("rescore") else None,
            oversampling=quantization_params.oversampling if quantization_params.HasField("oversampling") else None,
        )
    ef = params.hnsw_ef if params.HasField("hnsw_ef") else None
    return edge.SearchParams(
        hnsw_ef=ef, exact=params.exact, indexed_only=params.indexed_only, quantization=quantization
    )


def payload_of(selector: Any) -> Any:
    """Convert a WithPayloadSelector."""
    if selector.WhichOneof("selector_options") == "include":
        return edge.PayloadSelector.Include(list(selector.include.fields))
    if selector.WhichOneof("selector_options") == "exclude":
        return edge.PayloadSelector.Exclude(list(selector.exclude.fields))
    return selector.enable


def query_of(query: Any) -> edge.QueryRequest:
    """Convert a QueryPoints to a request of the engine."""
    names = list(query.with_vectors.include.names)
    return edge.QueryRequest(
        limit=query.limit if query.HasField("limit") else DEFAULT_LIMIT,
        offset=query.offset,
        query=_scoring(query.query, query.using),
        prefetches=[_prefetch(prefetch) for prefetch in query.prefetch],
        filter=filter_of(query.filter) if query.HasField("filter") else None,
        params=_params(query),
        score_threshold=query.score_threshold if query.HasField("score_threshold") else None,
        with_payload=payload_of(query.with_payload),
        with_vector=names or False,
    )


def stages_of(query: Any) -> list[Any]:
    """Return a QueryPoints or a PrefetchQuery with all stages before it."""
    return [query, *(stage for prefetch in query.prefetch for stage in stages_of(prefetch))]


def _prefetch(message: Any) -> edge.Prefetch:
    return edge.Prefetch(
        prefetches=[_prefetch(prefetch) for prefetch in message.prefetch],
        limit=message.limit if message.HasField("limit") else DEFAULT_LIMIT,
        query=_scoring(message.query, message.using),
        filter=filter_of(message.filter) if message.HasField("filter") else None,
        params=_params(message),
    )


def scored_point(hit: edge.ScoredPoint) -> pb.ScoredPoint:
    """Create the message of a hit."""
    message = pb.ScoredPoint(
        id=id_message(hit.id),
        payload=payload_to_grpc(hit.payload or {}),
        score=hit.score,
        version=hit.version,
    )
    _add_vectors(message, hit.vector)
    return message


def retrieved_point(record: edge.Record) -> pb.RetrievedPoint:
    """Create the message of a stored point."""
    message = pb.RetrievedPoint(id=id_message(record.id), payload=payload_to_grpc(record.payload or {}))
    number = record.order_value
    if isinstance(number, int):
        message.order_value.int = number
    elif number is not None:
        message.order_value.float = number
    _add_vectors(message, record.vector)
    return message


def _add_vectors(message: Any, vectors: Any) -> None:
    if isinstance(vectors, list) and vectors:  # an unnamed vector alone
        message.vectors.CopyFrom(pb.VectorsOutput(vector=_vector_output(vectors)))
    elif vectors:
        outputs = {name: _vector_output(vector) for name, vector in vectors.items()}
        message.vectors.CopyFrom(pb.VectorsOutput(vectors=pb.NamedVectorsOutput(vectors=outputs)))


def _vector_output(vector: Any) -> pb.VectorOutput:
    if isinstance(vector, edge.SparseVector):
        return pb.VectorOutput(sparse=pb.SparseVector(indices=vector.indices, values=vector.values))
    if isinstance(vector[0], list):
        rows = [pb.DenseVector(data=row) for row in vector]
        return pb.VectorOutput(multi_dense=pb.MultiDenseVector(vectors=rows))
    return pb.VectorOutput(dense=pb.DenseVector(data=vector))


def order_of(message: Any) -> edge.OrderBy:
    """Convert an OrderBy."""
    direction = edge.Direction.Desc if message.direction == pb.Direction.Desc else edge.Direction.Asc
    start = None
    if message.HasField("start_from"):
        kind = message.start_from.WhichOneof("value")
        start = getattr(message.start_from, kind)
        if kind == "timestamp":
            start = start.ToDatetime(UTC).isoformat()
    return edge.OrderBy(message.key, direction, start)


def filter_of(message: Any) -> edge.Filter:
    """Convert a Filter."""
    min_should = None
    if message.HasField("min_should"):
        conditions = [_condition(c) for c in message.min_should.conditions]
        min_should = edge.MinShould(conditions, message.min_should.min_count)
    return edge.Filter(
        must=[_condition(c) for c in message.must] or None,
        should=[_condition(c) for c in message.should] or None,
        must_not=[_condition(c) for c in message.must_not] or None,
        min_should=min_should,
    )


def _condition(message: Any) -> Any:
    kind = message.WhichOneof("condition_one_of")
    value = getattr(message, kind)
    builders: dict[str, Callable[[], Any]] = {
        "filter": lambda: filter_of(value),
        "has_id": lambda: edge.HasIdCondition({id_of(i) for i in value.has_id}),
        "has_vector": lambda: edge.HasVectorCondition(value.has_vector),
        "is_empty": lambda: edge.IsEmptyCondition(value.key),
        "is_null": lambda: edge.IsNullCondition(value.key),
        "nested": lambda: edge.NestedCondition(value.key, filter_of(value.filter)),
        "slice": lambda: edge.SliceCondition(value.total, value.index),  # type: ignore[attr-defined]
        "field": lambda: edge.FieldCondition(value.key, **_field(value)),
    }
    return builders[kind]()


def _field(message: Any) -> dict[str, Any]:  # noqa: PLR0911 - one return per condition
    if message.HasField("match"):
        return {"match": _match(message.match)}
    if message.HasField("range"):
        return {"range": edge.RangeFloat(**_bounds(message.range))}
    if message.HasField("datetime_range"):
        return {"range": edge.RangeDateTime(**_bounds(message.datetime_range))}
    if message.HasField("values_count"):
        return {"values_count": edge.ValuesCount(**_bounds(message.values_count))}
    if message.HasField("is_empty"):
        return {"is_empty": message.is_empty}
    if message.HasField("is_null"):
        return {"is_null": message.is_null}
    if message.HasField("geo_radius"):
        centre = message.geo_radius.center
        return {"geo_radius": edge.GeoRadius(edge.GeoPoint(centre.lon, centre.lat), message.geo_radius.radius)}
    if message.HasField("geo_bounding_box"):
        box = message.geo_bounding_box
        corners = [edge.GeoPoint(c.lon, c.lat) for c in (box.top_left, box.bottom_right)]
        return {"geo_bounding_box": edge.GeoBoundingBox(*corners)}
    polygon = message.geo_polygon
    return {"geo_polygon": edge.GeoPolygon(_ring(polygon.exterior), [_ring(r) for r in polygon.interiors] or None)}


def _ring(message: Any) -> list[edge.GeoPoint]:
    return [edge.GeoPoint(point.lon, point.lat) for point in message.points]


def _bounds(message: Any) -> dict[str, Any]:
    bounds = {}
    for name in ("lt", "gt", "lte", "gte"):
        if message.HasField(name):
            value = getattr(message, name)
            bounds[name] = value.ToJsonString() if isinstance(value, Timestamp) else value
    return bounds


def _match(message: Any) -> Any:
    kind = message.WhichOneof("match_value")
    value = getattr(message, kind)
    if kind in ("keyword", "integer"):
        return edge.MatchValue(value)
    if kind == "boolean":
        exact: Any = np.bool_(value)  # a Python bool would become 0 or 1: see qdrant_sink.edge.filters
        return edge.MatchValue(exact)
    if kind in ("keywords", "except_keywords"):
        values: Iterable[Any] = value.strings
    elif kind in ("integers", "except_integers"):
        values = value.integers
    else:
        texts = {
            "text": edge.MatchText,
            "text_any": edge.MatchTextAny,
            "phrase": edge.MatchPhrase,
            "prefix": edge.MatchPrefix,
            "substring": edge.MatchSubstring,
        }
        return texts[kind](value)
    return edge.MatchExcept(list(values)) if kind.startswith("except") else edge.MatchAny(list(values))
