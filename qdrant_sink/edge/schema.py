"""Convert schemas to configurations of Qdrant Edge, and its configurations to descriptions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import qdrant_edge as edge

from qdrant_sink.edge.settings import SEARCH_THREADS, read_config
from qdrant_sink.schema import INT8_QUANTILE, CollectionSchema, PayloadIndex, Placement, StoredQuantization
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription

FULL_SCAN_KB: Final = 10_000
"""Size in kilobytes below which a filtered search compares all matching vectors (Qdrant's default)."""

_DATATYPES: Final = {
    "float32": edge.VectorStorageDatatype.Float32,
    "float16": edge.VectorStorageDatatype.Float16,
}
_DISTANCES: Final = {
    "cosine": edge.Distance.Cosine,
    "dot": edge.Distance.Dot,
    "euclid": edge.Distance.Euclid,
    "manhattan": edge.Distance.Manhattan,
}
_INDEX_TYPES: Final = {
    "keyword": edge.PayloadSchemaType.Keyword,
    "integer": edge.PayloadSchemaType.Integer,
    "float": edge.PayloadSchemaType.Float,
    "bool": edge.PayloadSchemaType.Bool,
    "datetime": edge.PayloadSchemaType.Datetime,
    "uuid": edge.PayloadSchemaType.Uuid,
    "text": edge.PayloadSchemaType.Text,
    "geo": edge.PayloadSchemaType.Geo,
}
_INDEX_NAMES: Final = {kind: name for name, kind in _INDEX_TYPES.items()}
_DEFAULT_HNSW: Final = {"m": 16, "ef_construct": 100}
ONE_MACHINE: Final = Placement(shards=1, replication=1, write_consistency=1)
"""The placement of every embedded collection."""


def edge_config(schema: CollectionSchema) -> edge.EdgeConfig:
    """Return the configuration of a new collection without payload indexes, which `create_index` creates."""
    dense, sparse, colbert = schema.dense, schema.sparse, schema.colbert
    vectors: dict[str, edge.EdgeVectorParams] = {}
    sparse_vectors: dict[str, edge.EdgeSparseVectorParams] = {}
    if dense is not None:
        vectors[schema.names.dense] = edge.EdgeVectorParams(
            size=dense.size,
            distance=_DISTANCES[dense.distance],
            datatype=_DATATYPES[dense.datatype],
            memory=_memory(on_disk=dense.on_disk),
            quantization_config=_quantization(dense.quantization),
            hnsw_config=edge.HnswIndexConfig(dense.m, dense.ef_construct, FULL_SCAN_KB),
        )
    if sparse is not None:
        sparse_vectors[schema.names.sparse] = edge.EdgeSparseVectorParams(
            datatype=_DATATYPES[sparse.datatype],
            modifier=edge.Modifier.Idf if sparse.modifier == "idf" else None,
            memory=edge.Memory.Cold if sparse.on_disk else None,
        )
    if colbert is not None:
        vectors[schema.names.colbert] = edge.EdgeVectorParams(
            size=colbert.size,
            distance=_DISTANCES[colbert.distance],
            multivector_config=edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim),
            datatype=_DATATYPES[colbert.datatype],
            memory=_memory(on_disk=colbert.on_disk),
            quantization_config=_quantization(colbert.quantization),
            hnsw_config=edge.HnswIndexConfig(colbert.m, _DEFAULT_HNSW["ef_construct"], FULL_SCAN_KB),
        )
    return edge.EdgeConfig(
        vectors=vectors,
        sparse_vectors=sparse_vectors,
        max_search_threads=SEARCH_THREADS,
        payload_memory=None if schema.payload_on_disk is None else _memory(on_disk=schema.payload_on_disk),
    )


def create_index(shard: edge.EdgeShard, key: str, index: PayloadIndex) -> None:
    """Create an index on a key of the payload, for existing and future points."""
    kind = edge.KeywordIndexParams(is_tenant=True) if index.tenant else _INDEX_TYPES[index.type]
    shard.update(edge.UpdateOperation.create_field_index(key, kind))


def payload_indexes(shard: edge.EdgeShard) -> dict[str, PayloadIndex]:
    """Return the payload indexes of a collection by key."""
    return {
        key: PayloadIndex(_INDEX_NAMES[info.data_type], tenant=bool(getattr(info.params, "is_tenant", None)))
        for key, info in shard.info().payload_schema.items()
    }


def collection_description(directory: Path) -> CollectionDescription:
    """Describe a collection by its configuration file, without its payload indexes."""
    config = read_config(directory)
    vectors = {name: _vector_description(params, config) for name, params in (config.get("vectors") or {}).items()}
    for name, params in (config.get("sparse_vectors") or {}).items():
        modifier = (params.get("modifier") or "none").lower()
        vectors[name] = VectorDescription(
            kind="sparse",
            modifier=None if modifier == "none" else modifier,
            datatype=_datatype(params),
            on_disk=_on_disk(params),
        )
    payload = config.get("payload_memory") or ("cold" if config.get("on_disk_payload", True) else "cached")
    return CollectionDescription(vectors, payload_on_disk=payload == "cold", placement=ONE_MACHINE)


def _vector_description(params: Mapping[str, Any], config: Mapping[str, Any]) -> VectorDescription:
    """Describe an existing vector. Fields that it does not set are inherited from the collection."""
    multi = params.get("multivector_config")
    graph = {**_DEFAULT_HNSW, **(config.get("hnsw_config") or {}), **(params.get("hnsw_config") or {})}
    quantization = params.get("quantization_config") or config.get("quantization_config")
    return VectorDescription(
        kind="multivector" if multi else "dense",
        size=params["size"],
        distance=params["distance"].lower(),
        comparator=multi["comparator"].lower() if multi else None,
        datatype=_datatype(params),
        quantization=_quantization_name(quantization),
        m=graph["m"],
        ef_construct=graph["ef_construct"],
        on_disk=_on_disk(params),
    )


def _quantization(kind: StoredQuantization) -> edge.ScalarQuantizationConfig | edge.BinaryQuantizationConfig | None:
    if kind == "int8":
        return edge.ScalarQuantizationConfig(edge.ScalarType.Int8, quantile=INT8_QUANTILE, memory=edge.Memory.Pinned)
    return edge.BinaryQuantizationConfig(memory=edge.Memory.Pinned) if kind == "binary" else None


def _quantization_name(config: Mapping[str, Any] | None) -> str:
    """Return the engine's name of a quantization, or the type of the scalars for "scalar"."""
    if not config:
        return "none"
    name, params = next(iter(config.items()))
    return str(params["type"]).lower() if name == "scalar" else name


def _memory(*, on_disk: bool) -> edge.Memory:
    return edge.Memory.Cold if on_disk else edge.Memory.Cached


def _datatype(params: Mapping[str, Any]) -> str:
    return str(params.get("datatype") or "float32").lower()


def _on_disk(params: Mapping[str, Any]) -> bool:
    """Read whether the data is on disk. Older collections have a flag instead of `memory`."""
    memory = params.get("memory")
    return bool(params.get("on_disk")) if memory is None else memory == "cold"
