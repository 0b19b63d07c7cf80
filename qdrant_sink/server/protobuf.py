"""Points as the bytes of Qdrant's gRPC API, framed around the bytes of their arrays.

A `repeated float` travels as the little-endian float32 values in a row, after the field's tag and the length
in bytes. So a request is a list of headers and rows that are joined once: value by value it would cost a
Python float each, and nesting finished messages copies them at every level, which on fresh memory takes most
of the time. Field numbers are those of qdrant_client.grpc 1.20; a test holds the result equal to what the
client builds itself.
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


Part = bytes | memoryview
"""A header, or the components of a vector: float32 [size], contiguous and little-endian."""


def upsert_request(collection: str, points: Sequence[Point], *, insert_only: bool, names: VectorNames = NAMES) -> bytes:
    """The UpsertPoints that stores the points and waits for it, as bytes; float16 is widened, which loses nothing."""
    head = grpc.UpsertPoints(
        collection_name=collection,
        wait=True,
        update_mode=grpc.UpdateMode.InsertOnly if insert_only else grpc.UpdateMode.Upsert,
    )
    parts: list[Part] = [head.SerializeToString()]
    for point in points:
        parts += _framed(3, point_parts(point, names))
    return b"".join(parts)


def point_parts(point: Point, names: VectorNames = NAMES) -> list[Part]:
    """The bytes of a PointStruct, in parts."""
    head = grpc.PointStruct(id=_id(point.id), payload=payload_to_grpc(dict(point.payload)))
    named: list[Part] = []
    if point.dense is not None:
        named += _named(names.dense, _framed(101, dense_parts(point.dense)))
    if point.sparse is not None:
        sparse = grpc.SparseVector(values=point.sparse.values.tolist(), indices=point.sparse.indices.tolist())
        named += _named(names.sparse, _framed(102, [sparse.SerializeToString()]))
    if point.colbert is not None:
        named += _named(names.colbert, _framed(103, multi_dense_parts(point.colbert)))
    return [head.SerializeToString(), *_framed(4, _framed(2, named))]


def dense_parts(array: NDArray[Any]) -> list[Part]:
    """The bytes of a DenseVector: float [size]."""
    return _framed(1, [np.ascontiguousarray(array, dtype="<f4").data])


def multi_dense_parts(array: NDArray[Any]) -> list[Part]:
    """The bytes of a MultiDenseVector: float [rows, size], a DenseVector per row, all of one header."""
    nbytes = 4 * array.shape[1]
    inner = _header(1, nbytes)
    header = _header(1, len(inner) + nbytes) + inner
    return [part for row in np.ascontiguousarray(array, dtype="<f4") for part in (header, row.data)]


def _id(point_id: PointId) -> grpc.PointId:
    return grpc.PointId(uuid=str(point_id)) if isinstance(point_id, uuid.UUID) else grpc.PointId(num=point_id)


def _named(name: str, vector: Sequence[Part]) -> list[Part]:
    """An entry of the map from names to vectors."""
    return _framed(1, [*_framed(1, [name.encode()]), *_framed(2, vector)])


def _framed(number: int, parts: Sequence[Part]) -> list[Part]:
    """The parts as one field."""
    nbytes = sum(len(part) if isinstance(part, bytes) else part.nbytes for part in parts)
    return [_header(number, nbytes), *parts]


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
