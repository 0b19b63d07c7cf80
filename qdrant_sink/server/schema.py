"""Convert schemas to requests of qdrant-client, and its collection info to descriptions."""

from __future__ import annotations

from typing import Any, Final

from qdrant_client import models

from embedder.vectors import Kind
from qdrant_sink.collection_state import CollectionState
from qdrant_sink.model_identity import ModelIdentity
from qdrant_sink.schema import INT8_QUANTILE, CollectionSchema, PayloadIndex, Placement, StoredQuantization
from qdrant_sink.schema_diff import CollectionDescription, VectorDescription

_DISTANCES: Final = {
    "cosine": models.Distance.COSINE,
    "dot": models.Distance.DOT,
    "euclid": models.Distance.EUCLID,
    "manhattan": models.Distance.MANHATTAN,
}


def vectors_config(schema: CollectionSchema) -> models.VectorParams | dict[str, models.VectorParams]:
    """Return the configuration of the dense and ColBERT vectors of a new collection.

    A single unnamed vector is configured as qdrant-client does, without a mapping.
    """
    vectors = _vector_params(schema)
    return vectors[""] if list(vectors) == [""] else vectors


def _vector_params(schema: CollectionSchema) -> dict[str, models.VectorParams]:
    dense, colbert = schema.dense, schema.colbert
    vectors: dict[str, models.VectorParams] = {}
    if dense is not None:
        vectors[schema.names.dense] = models.VectorParams(
            size=dense.size,
            distance=_DISTANCES[dense.distance],
            datatype=models.Datatype(dense.datatype),
            on_disk=dense.on_disk,
            quantization_config=_quantization(dense.quantization),
            hnsw_config=models.HnswConfigDiff(m=dense.m, ef_construct=dense.ef_construct),
        )
    if colbert is not None:
        vectors[schema.names.colbert] = models.VectorParams(
            size=colbert.size,
            distance=_DISTANCES[colbert.distance],
            multivector_config=models.MultiVectorConfig(comparator=models.MultiVectorComparator(colbert.comparator)),
            datatype=models.Datatype(colbert.datatype),
            on_disk=colbert.on_disk,
            quantization_config=_quantization(colbert.quantization),
            hnsw_config=models.HnswConfigDiff(m=colbert.m),
        )
    return vectors


def sparse_vectors_config(schema: CollectionSchema) -> dict[str, models.SparseVectorParams]:
    """Return the configuration of the sparse vector of a new collection."""
    sparse = schema.sparse
    if sparse is None:
        return {}
    return {
        schema.names.sparse: models.SparseVectorParams(
            index=models.SparseIndexParams(datatype=models.Datatype(sparse.datatype), on_disk=sparse.on_disk),
            modifier=None if sparse.modifier is None else models.Modifier(sparse.modifier),
        )
    }


def graph_diff(schema: CollectionSchema, *, m: int) -> dict[str, models.VectorParamsDiff]:
    """Return a change of the graph of the dense vector to `m` edges per node; empty without a dense vector."""
    if schema.dense is None:
        return {}
    config = models.HnswConfigDiff(m=m, ef_construct=schema.dense.ef_construct)
    return {schema.names.dense: models.VectorParamsDiff(hnsw_config=config)}


def new_vector_config(schema: CollectionSchema, kind: Kind) -> models.VectorNameConfig:
    """Return what defines a vector that is added to an existing collection. `vector_settings` are set after that."""
    if kind == "sparse":
        params = sparse_vectors_config(schema)[schema.names.sparse]
        datatype = None if params.index is None else params.index.datatype
        sparse = models.SparseVectorConfig(modifier=params.modifier, datatype=datatype)
        return models.SparseVectorNameConfig(sparse=sparse)
    vector = _vector_params(schema)[schema.names.of(kind)]
    return models.DenseVectorNameConfig(
        dense=models.DenseVectorConfig(
            size=vector.size,
            distance=vector.distance,
            multivector_config=vector.multivector_config,
            datatype=vector.datatype,
        )
    )


def vector_settings(schema: CollectionSchema, kind: Kind) -> models.VectorParamsDiff:
    """Return the settings of a dense or ColBERT vector that can be changed."""
    vector = _vector_params(schema)[schema.names.of(kind)]
    return models.VectorParamsDiff(
        hnsw_config=vector.hnsw_config, quantization_config=vector.quantization_config, on_disk=vector.on_disk
    )


def index_params(index: PayloadIndex) -> models.PayloadSchemaType | models.KeywordIndexParams:
    """Return the parameters of a new payload index."""
    if index.tenant:
        return models.KeywordIndexParams(type=models.KeywordIndexType.KEYWORD, is_tenant=True)
    return models.PayloadSchemaType(index.type)


def collection_description(info: models.CollectionInfo) -> CollectionDescription:
    """Convert the server's collection info. A single unnamed vector gets the empty name."""
    params = info.config.params
    dense = params.vectors or {}
    vectors: dict[str, VectorDescription] = {}
    for name, vector in ({"": dense} if isinstance(dense, models.VectorParams) else dense).items():
        vectors[name] = _vector_description(vector, info.config)
    for name, weights in (params.sparse_vectors or {}).items():
        modifier = None if weights.modifier in (None, models.Modifier.NONE) else weights.modifier.value
        index = weights.index or models.SparseIndexParams()
        vectors[name] = VectorDescription(
            kind="sparse", modifier=modifier, datatype=_datatype(index.datatype), on_disk=_on_disk(index)
        )
    return CollectionDescription(
        vectors=vectors,
        payload_indexes={
            key: PayloadIndex(index.data_type.value, tenant=bool(getattr(index.params, "is_tenant", None)))
            for key, index in info.payload_schema.items()
        },
        payload_on_disk=params.on_disk_payload,
        placement=Placement(params.shard_number, params.replication_factor, params.write_consistency_factor),
    )


def collection_state(info: models.CollectionInfo) -> CollectionState:
    """Convert the server's collection info, which leaves out numbers that a cluster does not know yet."""
    return CollectionState(
        collection_description(info),
        info.points_count or 0,
        info.indexed_vectors_count,
        info.status.value,
        ModelIdentity.from_metadata(info.config.metadata),
    )


def _vector_description(vector: models.VectorParams, config: models.CollectionConfig) -> VectorDescription:
    """Describe an existing vector. Fields that it does not set are inherited from the collection."""
    multi = vector.multivector_config
    hnsw, default = vector.hnsw_config or models.HnswConfigDiff(), config.hnsw_config
    return VectorDescription(
        kind="dense" if multi is None else "multivector",
        size=vector.size,
        distance=vector.distance.value.lower(),
        comparator=None if multi is None else multi.comparator.value.lower(),
        datatype=_datatype(vector.datatype),
        quantization=_quantization_name(vector.quantization_config or config.quantization_config),
        m=default.m if hnsw.m is None else hnsw.m,
        ef_construct=default.ef_construct if hnsw.ef_construct is None else hnsw.ef_construct,
        on_disk=_on_disk(vector),
    )


def _quantization(kind: StoredQuantization) -> models.QuantizationConfig | None:
    if kind == "int8":
        int8 = models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=INT8_QUANTILE, always_ram=True)
        return models.ScalarQuantization(scalar=int8)
    if kind == "binary":
        return models.BinaryQuantization(binary=models.BinaryQuantizationConfig(always_ram=True))
    return None


def _quantization_name(config: Any) -> str:
    if config is None:
        return "none"
    if isinstance(config, models.ScalarQuantization):
        return str(config.scalar.type.value).lower()
    return str(next(iter(type(config).model_fields)))  # such as "binary" or "product"


def _datatype(value: models.Datatype | None) -> str:
    return "float32" if value is None else value.value


def _on_disk(params: models.VectorParams | models.SparseIndexParams) -> bool:
    """Read whether the data is on disk. Newer servers have `memory` in addition to the older flag."""
    memory = getattr(params, "memory", None)
    return bool(params.on_disk) if memory is None else str(memory) == "cold"
