"""What a collection stores for each passage: kinds of vectors, storage types, quantized copies, graph and placement.

These values have more storage types and quantizations than the service creates (`qdrant_sink.schema`), because a plan
also compares what Qdrant can be told to do.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final, Literal, get_args

from embedder.vectors import KINDS, Kind
from qdrant_sink import ColbertSchema, CollectionSchema, DenseSchema

StorageType = Literal["float32", "float16", "uint8", "turbo4"]
"""Type of stored components. `uint8` and `turbo4` are Qdrant's; the service creates neither."""

QuantizedType = Literal["none", "int8", "binary", "product-x16", "turbo4", "turbo2", "turbo1"]
"""Type of a quantized copy. The service creates the first three; Qdrant 1.18 has all of them."""

STORAGE_TYPES: Final[tuple[StorageType, ...]] = get_args(StorageType)
QUANTIZED_TYPES: Final[tuple[QuantizedType, ...]] = get_args(QuantizedType)
CREATED_STORAGE_TYPES: Final[frozenset[StorageType]] = frozenset({"float32", "float16"})
CREATED_QUANTIZED_TYPES: Final[frozenset[QuantizedType]] = frozenset({"none", "int8", "binary"})

SIZE: Final = 1024
"""Components of a dense vector and of a ColBERT row of BGE-M3."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredDense:
    """Storage of one dense vector per point.

    Attributes:
        size: components.
        datatype: type of the stored components.
        quantization: type of the quantized copy, which is in RAM.
        m: edges per node of the HNSW graph; 0 for no graph.
        on_disk: whether the original vectors are mapped from disk and not kept in RAM.
    """

    size: int = SIZE
    datatype: StorageType = "float32"
    quantization: QuantizedType = "none"
    m: int = 16
    on_disk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredSparse:
    """Storage of one sparse vector per point.

    Attributes:
        datatype: type of the weights in the index, float32 or float16.
        on_disk: whether the index is mapped from disk and not kept in RAM.
    """

    datatype: Literal["float32", "float16"] = "float32"
    on_disk: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredColbert:
    """Storage of the ColBERT rows of a point, without a graph.

    Attributes:
        size: components of a row.
        datatype: type of the stored components.
        quantization: type of the quantized copy, which is in RAM.
        on_disk: whether the original rows are mapped from disk and not kept in RAM.
        pooling: neighbouring rows that are averaged into one; 1 for no pooling.
    """

    size: int = SIZE
    datatype: StorageType = "float16"
    quantization: QuantizedType = "none"
    on_disk: bool = True
    pooling: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredVectors:
    """Storage of a collection.

    Attributes:
        dense: storage of the dense vector; None without it.
        sparse: storage of the sparse vector; None without it.
        colbert: storage of the ColBERT rows; None without them.
        payload_on_disk: whether payloads are mapped from disk and not kept in RAM, as by the server's default.
        payload_indexes: number of payload keys that are indexed.
        shards: number of shards; None if it is to be chosen.
        replication: number of copies of each shard.
    """

    dense: StoredDense | None = None
    sparse: StoredSparse | None = None
    colbert: StoredColbert | None = None
    payload_on_disk: bool = True
    payload_indexes: int = 0
    shards: int | None = None
    replication: int = 1

    @classmethod
    def of(cls, schema: CollectionSchema) -> StoredVectors:
        """The storage of a collection with this schema."""
        return cls(
            dense=None if schema.dense is None else _dense(schema.dense),
            sparse=None
            if schema.sparse is None
            else StoredSparse(datatype=schema.sparse.datatype, on_disk=schema.sparse.on_disk),
            colbert=None if schema.colbert is None else _colbert(schema.colbert),
            payload_on_disk=schema.payload_on_disk is not False,
            payload_indexes=len(schema.indexes),
            shards=schema.placement.shards,
            replication=schema.placement.replication or 1,
        )

    @property
    def kinds(self) -> tuple[Kind, ...]:
        """The kinds of vectors that are stored, in the order of `KINDS`."""
        return tuple(kind for kind in KINDS if getattr(self, kind) is not None)

    def only(self, kinds: Collection[Kind], size: int = SIZE) -> StoredVectors:
        """The same storage with these kinds of vectors alone; one that was not stored is stored as by default.

        Args:
            kinds: at least one.
            size: components of a vector that was not stored.
        """
        return replace(
            self,
            dense=(self.dense or StoredDense(size=size)) if "dense" in kinds else None,
            sparse=(self.sparse or StoredSparse()) if "sparse" in kinds else None,
            colbert=(self.colbert or StoredColbert(size=size)) if "colbert" in kinds else None,
        )


def _dense(schema: DenseSchema) -> StoredDense:
    return StoredDense(
        size=schema.size,
        datatype=schema.datatype,
        quantization=_quantized(schema.quantization),
        m=schema.m,
        on_disk=schema.on_disk,
    )


def _colbert(schema: ColbertSchema) -> StoredColbert:
    return StoredColbert(
        size=schema.size,
        datatype=schema.datatype,
        quantization=_quantized(schema.quantization),
        on_disk=schema.on_disk,
    )


def _quantized(name: str) -> QuantizedType:
    for known in QUANTIZED_TYPES:
        if known == name:
            return known
    raise ValueError(f"the size of a quantized copy of the type {name!r} is unknown")
