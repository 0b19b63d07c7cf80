"""Points as the protobuf messages of Qdrant's gRPC API, built from the bytes of their arrays.

A `repeated float` travels as the little-endian float32 values in a row, after the field's tag and the length
in bytes. So vectors are framed as bytes and the whole request is parsed once: value by value it would cost a
Python float each, and nesting finished messages copies them at every level. Field numbers are those of
qdrant_client.grpc 1.20; a test holds the result equal to what the client builds itself.
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
from qdrant_sink.schema import NAMES, VectorNames

_LENGTH_DELIMITED = 2


def upsert_points(
    collection: str, points: Sequence[Point], *, insert_only: bool, names: VectorNames = NAMES
) -> grpc.UpsertPoints:
    """The request that stores the points and waits for it; float16 is widened, which loses nothing."""
    head = grpc.UpsertPoints(
        collection_name=collection,
        wait=True,
        update_mode=grpc.UpdateMode.InsertOnly if insert_only else grpc.UpdateMode.Upsert,
    )
    rows = (_field(3, point_struct(point, names)) for point in points)
    message: grpc.UpsertPoints = grpc.UpsertPoints.FromString(head.SerializeToString() + b"".join(rows))
    return message


def point_struct(point: Point, names: VectorNames = NAMES) -> bytes:
    """The bytes of a PointStruct."""
    head = grpc.PointStruct(id=_id(point.id), payload=payload_to_grpc(dict(point.payload)))
    named: list[bytes] = []
    if point.dense is not None:
        named.append(_named(names.dense, _field(101, dense_vector(point.dense))))
    if point.sparse is not None:
        sparse = grpc.SparseVector(values=point.sparse.values.tolist(), indices=point.sparse.indices.tolist())
        named.append(_named(names.sparse, _field(102, sparse.SerializeToString())))
    if point.colbert is not None:
        named.append(_named(names.colbert, _field(103, multi_dense_vector(point.colbert))))
    result: bytes = head.SerializeToString() + _field(4, _field(2, b"".join(named)))
    return result


def dense_vector(array: NDArray[Any]) -> bytes:
    """The bytes of a DenseVector: float [size]."""
    return _field(1, np.ascontiguousarray(array, dtype="<f4").tobytes())


def multi_dense_vector(array: NDArray[Any]) -> bytes:
    """The bytes of a MultiDenseVector: float [rows, size], a DenseVector per row, all of one header."""
    rows, size = array.shape
    nbytes = 4 * size
    inner = _header(1, nbytes)
    header = _header(1, len(inner) + nbytes) + inner
    data = np.empty((rows, len(header) + nbytes), dtype=np.uint8)
    data[:, : len(header)] = np.frombuffer(header, dtype=np.uint8)
    data[:, len(header) :] = np.ascontiguousarray(array, dtype="<f4").view(np.uint8)
    return data.tobytes()


def _id(point_id: PointId) -> grpc.PointId:
    return grpc.PointId(uuid=str(point_id)) if isinstance(point_id, uuid.UUID) else grpc.PointId(num=point_id)


def _named(name: str, vector: bytes) -> bytes:
    """An entry of the map from names to vectors."""
    return _field(1, _field(1, name.encode()) + _field(2, vector))


def _field(number: int, data: bytes) -> bytes:
    return _header(number, len(data)) + data


def _header(number: int, nbytes: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(nbytes)


def _varint(number: int) -> bytes:
    """Base 128, least significant group first."""
    groups = bytearray()
    while number > 0x7F:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    groups.append(number)
    return bytes(groups)
