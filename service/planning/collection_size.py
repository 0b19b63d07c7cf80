"""Disk and memory of a collection on a Qdrant server, by formulas that docs/planning.md compares with measurements.

    size = collection_size(StoredVectors.of(schema), Passages.of_tokens(1_000_000, 512))
    size.disk_bytes, size.by_kind()

All sizes are of one copy of the data; a plan multiplies them by `StoredVectors.replication`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from embedder.vectors import KINDS, Kind
from qdrant_sink import rows_max
from service.planning.passages import Passages
from service.planning.stored_vectors import QuantizedType, StorageType, StoredColbert, StoredDense, StoredVectors

Owner = Literal["dense", "sparse", "colbert", "payload", "points"]

COMPONENT_BYTES: Final[Mapping[StorageType, float]] = {"float32": 4, "float16": 2, "uint8": 1, "turbo4": 0.5}
"""Bytes of a stored component."""

ROW_BYTES: Final[Mapping[StorageType, int]] = {"float32": 0, "float16": 0, "uint8": 0, "turbo4": 4}
"""Bytes of a stored vector or row beside its components: the scale of turbo4."""

QUANTIZED_BITS: Final[Mapping[QuantizedType, int]] = {
    "none": 0,
    "int8": 8,
    "binary": 1,
    "product-x16": 2,
    "turbo4": 4,
    "turbo2": 2,
    "turbo1": 1,
}
"""Bits of a component in a quantized copy."""

QUANTIZED_ROW_BYTES: Final[Mapping[QuantizedType, int]] = {
    "none": 0,
    "int8": 4,
    "binary": 0,
    "product-x16": 0,
    "turbo4": 8,
    "turbo2": 8,
    "turbo1": 8,
}
"""Bytes of a quantized vector or row beside its components: the offset of int8, the scale and correction of turbo."""

ROWS_POSITION_BYTES: Final = 16
"""Bytes per point that say where its ColBERT rows are."""

SEGMENT_POINTS: Final = 1_000_000
"""Points of a full segment: by default Qdrant merges up to 256 MB of vectors per core, 4.1 GB on 16 cores."""

GRAPH_POSITION_BYTES: Final = 10
"""Bytes per point that say where its edges are, and in which order points were inserted."""

SPARSE_STORED_BYTES: Final = 6.0
"""Bytes of a weight in the stored vector, which Qdrant compresses: 5.97 between vectors of 100 and of 250 weights."""

SPARSE_INDEX_BYTES: Final[Mapping[Literal["float32", "float16"], float]] = {"float32": 6.0, "float16": 5.0}
"""Bytes of a weight in the lists of the sparse index, the point's number included, of a large collection. Small ones
have more of them in short lists: 6.3 of float32 with 100 000 points, 6.8 to 7.2 with 20 000, and 6.2 of float16."""

PAYLOAD_COMPRESSED_SHARE: Final = 0.74
PAYLOAD_UNCOMPRESSED_BYTES: Final = 200
"""A stored payload, which Qdrant compresses: 0.74 of its bytes and 200, at most all of them. A line through payloads of
1657 and of 6521 bytes of prose."""

BLOCK_BYTES: Final = 128
"""Unit in which payloads and sparse vectors are stored, so that half of it is unused on average."""

STORED_POSITION_BYTES: Final = 16
"""Bytes that say where a payload or a sparse vector is stored."""

ID_DISK_BYTES: Final = 29.0
"""Bytes on disk of a point's id, a UUID, and of its version."""

ID_RAM_BYTES: Final = 29.0
"""Bytes in RAM of a point's id and version: at the start the server reads what is on disk."""

KEYWORD_DISK_BYTES: Final = 33.0
"""Bytes on disk of a point's value in a payload index of keywords."""

KEYWORD_RAM_BYTES: Final = 33.0
"""Bytes in RAM of the same, which the server reads at the start."""


@dataclass(frozen=True, slots=True)
class PartSize:
    """One part of a collection.

    Attributes:
        owner: the kind of vectors it belongs to, or `payload` or `points` (ids and versions).
        name: what it is, for a person.
        point_bytes: mean bytes per point on disk.
        disk_bytes: bytes on disk.
        ram_bytes: bytes that Qdrant keeps in RAM. What is only mapped from disk is not counted.
    """

    owner: Owner
    name: str
    point_bytes: float
    disk_bytes: int
    ram_bytes: int


@dataclass(frozen=True, slots=True)
class CollectionSize:
    """Size of one copy of a collection.

    Attributes:
        points: number of points.
        parts: sizes of the parts.
    """

    points: int
    parts: tuple[PartSize, ...]

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk, without the write-ahead log."""
        return sum(part.disk_bytes for part in self.parts)

    @property
    def ram_bytes(self) -> int:
        """Bytes that Qdrant keeps in RAM."""
        return sum(part.ram_bytes for part in self.parts)

    def by_kind(self) -> dict[Kind, int]:
        """Bytes on disk by kind of vector, graphs, indexes and quantized copies included."""
        sizes = {kind: sum(part.disk_bytes for part in self.parts if part.owner == kind) for kind in KINDS}
        return {kind: size for kind, size in sizes.items() if size}


def collection_size(stored: StoredVectors, passages: Passages) -> CollectionSize:
    """The size of one copy of a collection whose graph is built.

    Args:
        stored: how vectors are stored.
        passages: the points, and what each has.
    """
    return CollectionSize(passages.count, tuple(_parts(stored, passages)))


def vector_bytes(datatype: StorageType, size: int) -> float:
    """Bytes of a stored vector or row.

    Args:
        datatype: type of its components.
        size: number of its components.
    """
    return COMPONENT_BYTES[datatype] * size + ROW_BYTES[datatype]


def quantized_bytes(quantization: QuantizedType, size: int) -> float:
    """Bytes of a vector or row in a quantized copy; 0 without one."""
    return QUANTIZED_BITS[quantization] * size / 8 + QUANTIZED_ROW_BYTES[quantization]


def colbert_rows(colbert: StoredColbert, passages: Passages) -> float:
    """Mean ColBERT rows of a point: one per token but the first, averaged in groups, as many as a point can hold."""
    return min(max(passages.tokens - 1, 1) / colbert.pooling, rows_max(colbert.size))


def graph_bytes(m: int, points: int) -> float:
    """Bytes of a point's edges in an HNSW graph.

    Each point has 2m edges on the lowest level, whose ends Qdrant sorts and stores as differences, all in the bits that
    the largest difference needs; and 1/m of the points are on each next level, with m edges.

    Args:
        m: edges per node.
        points: number of points in a segment.
    """
    if m == 0:
        return 0.0
    edges = 2 * m
    largest = max(points, 2) * sum(1 / k for k in range(1, edges + 1)) / edges
    bits = max(8.0, math.log2(largest) + 1.5)  # rounded up, and the largest of a few is larger than its mean
    above = m * max(8.0, math.log2(max(points, 2))) / 8 / max(m - 1, 1)
    return edges * bits / 8 + above + GRAPH_POSITION_BYTES


def payload_bytes(json_bytes: float) -> float:
    """Bytes of a stored payload.

    Args:
        json_bytes: its bytes as JSON.
    """
    compressed = min(json_bytes, PAYLOAD_COMPRESSED_SHARE * json_bytes + PAYLOAD_UNCOMPRESSED_BYTES)
    return compressed + BLOCK_BYTES / 2 + STORED_POSITION_BYTES


def _parts(stored: StoredVectors, passages: Passages) -> Iterator[PartSize]:
    points = passages.count
    if stored.dense is not None:
        yield from _dense_parts(stored.dense, points, stored.shards or 1)
    if stored.sparse is not None:
        vectors = SPARSE_STORED_BYTES * passages.distinct + BLOCK_BYTES / 2 + STORED_POSITION_BYTES
        yield _part("sparse", "sparse vectors, on disk", vectors, points)
        index = SPARSE_INDEX_BYTES[stored.sparse.datatype] * passages.distinct
        name = f"sparse index, {stored.sparse.datatype}, {_place(stored.sparse.on_disk)}"
        yield _part("sparse", name, index, points, 0 if stored.sparse.on_disk else index)
    if stored.colbert is not None:
        yield from _colbert_parts(stored.colbert, passages)
    text = payload_bytes(passages.text_bytes + passages.payload_bytes)
    name = f"text and payload, {_place(stored.payload_on_disk)}"
    yield _part("payload", name, text, points, 0 if stored.payload_on_disk else text)
    if stored.payload_indexes:
        count = stored.payload_indexes
        name = "1 payload index" if count == 1 else f"{count} payload indexes"
        yield _part("payload", f"{name}, in RAM", KEYWORD_DISK_BYTES * count, points, KEYWORD_RAM_BYTES * count)
    yield _part("points", "ids and versions, in RAM", ID_DISK_BYTES, points, ID_RAM_BYTES)


def _dense_parts(dense: StoredDense, points: int, shards: int) -> Iterator[PartSize]:
    original = vector_bytes(dense.datatype, dense.size)
    name = f"dense vectors, {dense.datatype}, {_place(dense.on_disk)}"
    yield _part("dense", name, original, points, 0 if dense.on_disk else original)
    if dense.quantization != "none":
        copy = quantized_bytes(dense.quantization, dense.size)
        yield _part("dense", f"their copy in {dense.quantization}, in RAM", copy, points, copy)
    if dense.m:
        graph = graph_bytes(dense.m, min(points // shards, SEGMENT_POINTS))
        yield _part("dense", f"their graph, m = {dense.m}, in RAM", graph, points, graph)


def _colbert_parts(colbert: StoredColbert, passages: Passages) -> Iterator[PartSize]:
    rows = colbert_rows(colbert, passages)
    original = vector_bytes(colbert.datatype, colbert.size) * rows + ROWS_POSITION_BYTES
    name = f"ColBERT rows, {colbert.datatype}, {_place(colbert.on_disk)}"
    yield _part("colbert", name, original, passages.count, 0 if colbert.on_disk else original)
    if colbert.quantization != "none":
        copy = quantized_bytes(colbert.quantization, colbert.size) * rows
        yield _part("colbert", f"their copy in {colbert.quantization}, in RAM", copy, passages.count, copy)


def _place(on_disk: bool) -> str:  # noqa: FBT001 - the field of a schema
    return "on disk" if on_disk else "in RAM"


def _part(owner: Owner, name: str, point_bytes: float, points: int, ram_point_bytes: float = 0.0) -> PartSize:
    return PartSize(owner, name, point_bytes, round(point_bytes * points), round(ram_point_bytes * points))
