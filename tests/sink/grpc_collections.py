"""Convert collections from and to messages of Qdrant's gRPC API, for the server double."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import qdrant_edge as edge
from qdrant_client import grpc as pb

from tests.sink.grpc_refusals import RefusedError

DISTANCES = {
    pb.Distance.Cosine: edge.Distance.Cosine,
    pb.Distance.Dot: edge.Distance.Dot,
    pb.Distance.Euclid: edge.Distance.Euclid,
    pb.Distance.Manhattan: edge.Distance.Manhattan,
}


def config_of(request: Any) -> edge.EdgeConfig:
    """Convert a CreateCollection to a configuration of the engine."""
    vectors = {}
    named = dict(request.vectors_config.params_map.map)
    if request.vectors_config.HasField("params"):
        named[""] = request.vectors_config.params
    for name, params in named.items():
        multi = params.HasField("multivector_config")
        half = params.datatype == pb.Datatype.Float16
        vectors[name] = edge.EdgeVectorParams(
            size=params.size,
            distance=DISTANCES[params.distance],
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if multi else None,
            datatype=edge.VectorStorageDatatype.Float16 if half else None,
        )
    weights = {
        name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf if params.modifier == pb.Modifier.Idf else None)
        for name, params in request.sparse_vectors_config.map.items()
    }
    return edge.EdgeConfig(vectors=vectors, sparse_vectors=weights)


def collection_info(
    created: Any, indexes: Mapping[str, Any], status: pb.CollectionStatus.ValueType, points: int, indexed: int
) -> pb.CollectionInfo:
    """Create the info of a collection, with the defaults of the server for unset fields."""
    explicit = {
        name: getattr(created, name)
        for name in ("replication_factor", "write_consistency_factor")
        if created.HasField(name)
    }
    params = pb.CollectionParams(
        shard_number=created.shard_number if created.HasField("shard_number") else 1,
        on_disk_payload=created.on_disk_payload if created.HasField("on_disk_payload") else True,
        vectors_config=created.vectors_config,
        sparse_vectors_config=created.sparse_vectors_config,
        **{"replication_factor": 1, "write_consistency_factor": 1, **explicit},
    )
    optimizers = pb.OptimizersConfigDiff(deleted_threshold=0.2, vacuum_min_vector_number=1000, default_segment_number=0)
    optimizers.flush_interval_sec = 5
    config = pb.CollectionConfig(
        params=params,
        hnsw_config=pb.HnswConfigDiff(m=16, ef_construct=100, full_scan_threshold=10000),
        optimizer_config=optimizers,
        wal_config=pb.WalConfigDiff(wal_capacity_mb=32, wal_segments_ahead=0),
        metadata=created.metadata,
    )
    return pb.CollectionInfo(
        status=status,
        optimizer_status=pb.OptimizerStatus(ok=True),
        segments_count=1,
        config=config,
        points_count=points,
        indexed_vectors_count=indexed,
        payload_schema=indexes,
    )


def merge_update(created: Any, request: Any) -> None:
    """Apply the changes of an UpdateCollection to the request that created the collection."""
    for name, change in request.vectors_config.params_map.map.items():
        named = created.vectors_config.params_map.map
        unnamed = not name and created.vectors_config.HasField("params")
        if not unnamed and name not in named:
            raise ValueError(f"Not existing vector name error: {name}")
        params = created.vectors_config.params if unnamed else named[name]
        if change.HasField("hnsw_config"):
            params.hnsw_config.MergeFrom(change.hnsw_config)
        if change.HasField("on_disk"):
            params.on_disk = change.on_disk
        if change.HasField("quantization_config"):
            kind = change.quantization_config.WhichOneof("quantization")
            getattr(params.quantization_config, kind).CopyFrom(getattr(change.quantization_config, kind))
    for name, weights in request.sparse_vectors_config.map.items():
        if name not in created.sparse_vectors_config.map:
            raise ValueError(f"Not existing vector name error: {name}")
        created.sparse_vectors_config.map[name].MergeFrom(weights)
    merges = bool(created.metadata)  # into no metadata, the server writes even a null
    for key, value in request.metadata.items():
        if merges and value.HasField("null_value"):
            created.metadata.pop(key, None)
        else:
            created.metadata[key].CopyFrom(value)


def add_vector(created: Any, request: Any) -> edge.UpdateOperation | None:
    """Apply a CreateVectorName to the request that created the collection.

    Returns:
        The operation of the engine; None if the collection has this vector already.

    Raises:
        RefusedError: the collection has another vector of this name.
    """
    name = request.vector_name
    if created.vectors_config.HasField("params"):
        unnamed = pb.VectorParams()
        unnamed.CopyFrom(created.vectors_config.params)
        created.vectors_config.params_map.map[""].CopyFrom(unnamed)
    dense, sparse = created.vectors_config.params_map.map, created.sparse_vectors_config.map
    if request.HasField("sparse_config"):
        config = request.sparse_config
        if name in dense:
            raise RefusedError(f"Wrong input: Vector `{name}` already exists as a dense vector")
        if name in sparse:
            return None
        sparse[name].CopyFrom(pb.SparseVectorParams(index=pb.SparseIndexConfig(datatype=config.datatype)))
        if config.HasField("modifier"):
            sparse[name].modifier = config.modifier
        modifier = edge.Modifier.Idf if config.modifier == pb.Modifier.Idf else None
        return edge.UpdateOperation.create_sparse_vector(name, modifier)
    config = request.dense_config
    params = pb.VectorParams(size=config.size, distance=config.distance)
    if config.HasField("multivector_config"):
        params.multivector_config.CopyFrom(config.multivector_config)
    if config.HasField("datatype"):
        params.datatype = config.datatype
    if name in sparse:
        raise RefusedError(f"Wrong input: Vector `{name}` already exists as a sparse vector")
    if name in dense:
        same = all(getattr(dense[name], field) == getattr(params, field) for field in ("size", "distance", "datatype"))
        if not same:
            raise RefusedError(f"Wrong input: Vector `{name}` already exists with a different configuration")
        return None
    dense[name].CopyFrom(params)
    multi = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim) if config.HasField("multivector_config") else None
    datatype = edge.VectorStorageDatatype.Float16 if config.datatype == pb.Datatype.Float16 else None
    return edge.UpdateOperation.create_dense_vector(name, config.size, DISTANCES[config.distance], multi, datatype)


def field_index(request: Any) -> tuple[pb.PayloadSchemaInfo, Any]:
    """Convert a CreateFieldIndexCollection to the info that Get returns, and to a type of the engine."""
    name = pb.FieldType.Name(request.field_type).removeprefix("FieldType")
    info = pb.PayloadSchemaInfo(data_type=pb.PayloadSchemaType.Value(name), points=0)
    kind: Any = getattr(edge.PayloadSchemaType, name)
    if request.HasField("field_index_params"):
        info.params.CopyFrom(request.field_index_params)
        kind = edge.KeywordIndexParams(is_tenant=request.field_index_params.keyword_index_params.is_tenant)
    return info, kind
