"""Serialise points for Qdrant's gRPC API without copying their arrays value by value.

Protobuf encodes a `repeated float` as the tag of the field, the length in bytes and the consecutive little-endian
float32 values. A request is therefore a list of headers and array buffers, which are joined once. Value by value, every
component would become a Python float; nested messages would be copied at every level, which takes most of the time on
fresh memory. The field numbers are those of qdrant_client.grpc 1.20. A test compares the result with the messages of
the client.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from qdrant_client import grpc
from qdrant_client.conversions.conversion import payload_to_grpc

from qdrant_sink.points import Point, PointId

_LENGTH_DELIMITED = 2


Part = bytes | memoryview
"""A part of a message: a header, or the contiguous little-endian components of a vector, float32 [size]."""


def upsert_request(collection: str, points: Sequence[Point], *, insert_only: bool) -> bytes:
    """Serialise an UpsertPoints that waits until the points are stored. Float16 becomes float32 without loss."""
    head = grpc.UpsertPoints(
        collection_name=collection,
        wait=True,
        update_mode=grpc.UpdateMode.InsertOnly if insert_only else grpc.UpdateMode.Upsert,
    )
    parts: list[Part] = [head.SerializeToString()]
    for point in points:
        parts += _framed(3, point_parts(point))
    return b"".join(parts)


def update_vectors_request(collection: str, points: Sequence[Point]) -> bytes:
    """Serialise an UpdatePointVectors that waits until the vectors are stored. Payloads are left out."""
    parts: list[Part] = [grpc.UpdatePointVectors(collection_name=collection, wait=True).SerializeToString()]
    for point in points:
        head = grpc.PointVectors(id=_id(point.id))
        parts += _framed(3, [head.SerializeToString(), *_framed(2, _vectors_parts(point))])
    return b"".join(parts)


def point_parts(point: Point) -> list[Part]:
    """Serialise a PointStruct in parts."""
    head = grpc.PointStruct(id=_id(point.id), payload=payload_to_grpc(dict(point.payload)))
    return [head.SerializeToString(), *_framed(4, _vectors_parts(point))]


def _vectors_parts(point: Point) -> list[Part]:
    """Serialise the Vectors of a point in parts."""
    names = point.names
    named: list[Part] = []
    if point.dense is not None:
        named += _named(names.dense, _framed(101, dense_parts(point.dense)))
    if point.sparse is not None:
        sparse = grpc.SparseVector(values=point.sparse.values.tolist(), indices=point.sparse.indices.tolist())
        named += _named(names.sparse, _framed(102, [sparse.SerializeToString()]))
    if point.colbert is not None:
        named += _named(names.colbert, _framed(103, multi_dense_parts(point.colbert)))
    return _framed(2, named)


def dense_parts(array: NDArray[Any]) -> list[Part]:
    """Serialise a DenseVector, float [size], in parts."""
    return _framed(1, [np.ascontiguousarray(array, dtype="<f4").data])


def multi_dense_parts(array: NDArray[Any]) -> list[Part]:
    """Serialise a MultiDenseVector, float [rows, size], in parts: one DenseVector per row, all with the same header."""
    nbytes = 4 * array.shape[1]
    inner = _header(1, nbytes)
    header = _header(1, len(inner) + nbytes) + inner
    return [part for row in np.ascontiguousarray(array, dtype="<f4") for part in (header, row.data)]


def _id(point_id: PointId) -> grpc.PointId:
    return grpc.PointId(uuid=str(point_id)) if isinstance(point_id, uuid.UUID) else grpc.PointId(num=point_id)


def _named(name: str, vector: Sequence[Part]) -> list[Part]:
    """Frame a vector as an entry of the map from names to vectors."""
    return _framed(1, [*_framed(1, [name.encode()]), *_framed(2, vector)])


def _framed(number: int, parts: Sequence[Part]) -> list[Part]:
    """Frame the parts as one field."""
    nbytes = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    return [_header(number, nbytes), *parts]


def _header(number: int, nbytes: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(nbytes)


def _varint(number: int) -> bytes:
    """Encode an integer in base 128, least significant group first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
