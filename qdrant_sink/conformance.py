"""Validate points and queries, so that every Qdrant accepts them, or refuse them with a reason.

Qdrant accepts much invalid input that then harms it: a NaN in a dense vector appears in every top 10, a duplicate
sparse index falsifies scores, a vector with a norm near zero ranks at random, and the embedded engine panics where the
server answers 422. Therefore every point and every query passes this module before it reaches a store.

Input is repaired if that loses nothing: indices are sorted, weights of exactly zero and repetitions of the same index
and weight are dropped, and a sparse vector without weights, which BGE-M3 returns for an empty text, is left out because
it can never match. All other invalid points are refused one by one; the other points of the job are stored.

The functions are pure and use only numpy. They accept arrays of any content.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

from embedder.errors import InvalidRequest
from embedder.vectors import Kind, SparseVector
from qdrant_sink.json_types import kind_of
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.points import INTEGER_ID_MAX, Draft, Point, PointId, Vectors, point_id, shown_integer
from qdrant_sink.schema import ColbertSchema, CollectionSchema, Datatype, DenseSchema, Distance, SparseSchema

T = TypeVar("T")

NORM_MIN: Final = 1e-3
"""Minimum norm of a vector that is compared by cosine. Qdrant does not normalise vectors with a norm below 3.5e-4,
which then rank wrongly; the difference is a margin for rounding."""

NORM_MAX: Final = 1e18
"""Maximum norm of a vector. If its square exceeded float32 (3.4e38), the vector would become zero on normalisation, and
products and distances would be infinite."""

WEIGHT_MAX: Final = 1e15
"""Maximum magnitude of a sparse weight, which keeps every inner product finite in float32."""

FLOAT16_MAX: Final = 65504.0
"""Largest finite number in float16."""

MULTIVECTOR_VALUES_LIMIT: Final = 2**20
"""Number of components that a multivector must stay below. Only the server enforces it, not Qdrant Edge."""

PAYLOAD_DEPTH_MAX: Final = 24
"""Maximum nesting depth of a payload. gRPC decoders stop at 100 nested messages, and one level takes three of them."""

PAYLOAD_MAX_BYTES: Final = 4_000_000
"""Maximum size of a payload in bytes: its keys and strings in UTF-8 and 8 bytes per value. The limit keeps a single
point within the size of a batch.

The 8 bytes stand for JSON syntax, which takes at most 6 bytes around a value and its key (quotes or brackets, colon,
comma), or for a number, which takes about 8.
"""

SPARSE_INDEX_MAX: Final = 2**32 - 1
"""Largest index of a sparse vector, which is an unsigned 32-bit integer."""

RefusalCode = Literal["invalid_id", "invalid_payload", "invalid_vector", "colbert_too_long"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The reason why a point cannot be stored or a query cannot be searched.

    Attributes:
        code: stable code of the reason.
        message: message with the field, the limit and the actual value.
    """

    code: RefusalCode
    message: str


def rows_max(size: int) -> int:
    """Return the maximum number of rows of this size in a multivector, such as 1023 rows of 1024 components."""
    return (MULTIVECTOR_VALUES_LIMIT - 1) // size


def too_many_rows(rows: int, size: int) -> Refusal:
    """Create the refusal of a multivector with too many rows. The message lists the ways out."""
    return Refusal(
        "colbert_too_long",
        f"colbert: must have at most {rows_max(size)} rows of {size}, got {rows}; split the text (chunk), "
        'pool its rows (colbertPooling: "mean") or leave colbert out of vectors',
    )


class _Refused(Exception):
    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal


def conform(draft: Draft, schema: CollectionSchema) -> Point | Refusal:
    """Validate a draft against a schema. Returns the point, or the reason why it is invalid."""
    try:
        identity = _id(draft.id)
        payload = _payload(draft.payload)
        if schema.tenant_key is not None:
            _check_tenant(payload, schema.tenant_key)
        vectors = _vectors(draft.vectors, schema)
    except _Refused as error:
        return error.refusal
    if vectors.dense is None and vectors.sparse is None and vectors.colbert is None:
        got = "only a sparse vector without weights" if draft.vectors.sparse is not None else "none"
        return Refusal("invalid_vector", f"vectors: a point must have at least 1 vector to be searchable, got {got}")
    return Point(identity, payload, vectors.dense, vectors.sparse, vectors.colbert, schema.names)


def conform_id(raw: object, collection: str) -> PointId | Refusal:
    """Convert a caller's id as `point_id` does. Returns the id of the point, or the reason why it is invalid."""
    try:
        return point_id(raw, collection)
    except InvalidRequest as error:
        return Refusal("invalid_id", error.message)


def conform_payload(payload: Any, schema: CollectionSchema) -> Refusal | None:
    """Validate a payload without its vectors. Returns the reason why it is invalid, or None."""
    try:
        valid_payload = _payload(payload)
        if schema.tenant_key is not None:
            _check_tenant(valid_payload, schema.tenant_key)
    except _Refused as error:
        return error.refusal
    return None


def conform_vectors(vectors: Vectors, schema: CollectionSchema) -> Vectors | Refusal:
    """Validate vectors against a schema. Returns the vectors, or the reason why they are invalid.

    A sparse vector without weights becomes None.
    """
    try:
        return _vectors(vectors, schema)
    except _Refused as error:
        return error.refusal


def _refused(code: RefusalCode, message: str) -> _Refused:
    return _Refused(Refusal(code, message))


def _vectors(vectors: Vectors, schema: CollectionSchema) -> Vectors:
    return Vectors(
        dense=None if vectors.dense is None else _dense(vectors.dense, _stored("dense", schema.dense, schema)),
        sparse=None if vectors.sparse is None else _sparse(vectors.sparse, _stored("sparse", schema.sparse, schema)),
        colbert=None
        if vectors.colbert is None
        else _colbert(vectors.colbert, _stored("colbert", schema.colbert, schema)),
    )


def _stored(kind: Kind, vector: T | None, schema: CollectionSchema) -> T:
    """Return the schema of a vector, and refuse a kind that the collection lacks."""
    if vector is None:
        raise _refused("invalid_vector", f"{kind}: must be a kind of the collection ({', '.join(schema.kinds)})")
    return vector


def _id(value: Any) -> PointId:
    if isinstance(value, uuid.UUID):
        return value
    if type(value) is not int:
        raise _refused("invalid_id", f"id: must be an integer or a UUID, got {type(value).__name__}")
    if not 0 <= value <= INTEGER_ID_MAX:
        raise _refused("invalid_id", f"id: an integer id must be 0 to {INTEGER_ID_MAX}, got {shown_integer(value)}")
    return value


def _numbers(name: str, raw: Any, *, integers: bool = False) -> NDArray[Any]:
    """Convert an ndarray, list or tuple of real numbers to an array, and refuse other types such as bool and text."""
    if type(raw) not in (np.ndarray, list, tuple):
        raise _refused("invalid_vector", f"{name}: must be an array or a list of numbers, got {type(raw).__name__}")
    try:
        array = np.asarray(raw)
    except (ValueError, OverflowError, TypeError) as exc:
        raise _refused("invalid_vector", f"{name}: rows must have the same length and hold only numbers") from exc
    kinds = "iu" if integers else "fiu"
    if array.size and array.dtype.kind not in kinds:
        wanted = "integers" if integers else "real numbers"
        raise _refused("invalid_vector", f"{name}: must hold {wanted}, got dtype {array.dtype.name}")
    return array


def _float32(name: str, array: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        result = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(result)
    if not finite.all():
        index = np.unravel_index(int(np.argmin(finite)), array.shape)
        path = name + "".join(f"[{i}]" for i in index)
        raise _refused("invalid_vector", f"{path}: must be finite in float32, got {float(array[index])!r}")
    return result


def _dense(raw: Any, schema: DenseSchema) -> NDArray[np.float32]:
    array = _numbers("dense", raw)
    if array.shape != (schema.size,):
        raise _refused("invalid_vector", f"dense: must have shape ({schema.size},), got {array.shape}")
    vector = _float32("dense", array)
    _check_range("dense", vector, schema.datatype)
    _check_norms("dense", vector[np.newaxis, :], schema.distance, rows=False)
    return vector


def _colbert(raw: Any, schema: ColbertSchema) -> NDArray[Any]:
    size = schema.size
    array = _numbers("colbert", raw)
    if array.ndim != 2 or array.shape[1] != size or not array.shape[0]:
        raise _refused("invalid_vector", f"colbert: must have shape (rows > 0, {size}), got {array.shape}")
    rows = array.shape[0]
    if array.size >= MULTIVECTOR_VALUES_LIMIT:
        raise _Refused(too_many_rows(rows, size))
    matrix = _float32("colbert", array)
    _check_range("colbert", matrix, schema.datatype)
    _check_norms("colbert", matrix, schema.distance, rows=True)
    return np.ascontiguousarray(array, dtype=np.float16) if array.dtype == np.float16 else matrix


def _check_range(name: str, array: NDArray[np.float32], datatype: Datatype) -> None:
    largest = float(np.abs(array).max())
    if datatype == "float16" and largest > FLOAT16_MAX:
        raise _refused(
            "invalid_vector", f"{name}: values must be at most {FLOAT16_MAX:.0f} in float16, got {largest!r}"
        )


def _check_norms(name: str, matrix: NDArray[np.float32], distance: Distance, *, rows: bool) -> None:
    norm_min = NORM_MIN if distance == "cosine" else 0.0  # only the cosine normalises vectors
    with np.errstate(over="ignore"):
        squares = np.einsum("ij,ij->i", matrix, matrix)
    invalid = ~((squares >= norm_min**2) & (squares <= NORM_MAX**2))
    if invalid.any():
        row = int(np.argmax(invalid))
        path = f"{name}[{row}]" if rows else name
        norm = math.sqrt(float(np.square(matrix[row].astype(np.float64)).sum()))
        raise _refused("invalid_vector", f"{path}: the norm must be {norm_min:g} to {NORM_MAX:g}, got {norm:.3g}")


def _sparse(raw: Any, schema: SparseSchema) -> SparseVector | None:
    if not isinstance(raw, SparseVector):
        raise _refused("invalid_vector", f"sparse: must have indices and values, got {type(raw).__name__}")
    indices = _numbers("sparse.indices", raw.indices, integers=True)
    weights = _numbers("sparse.values", raw.values)
    if indices.ndim != 1 or weights.ndim != 1:
        raise _refused(
            "invalid_vector",
            f"sparse: indices and values must be one-dimensional, got shapes {indices.shape} and {weights.shape}",
        )
    if indices.size != weights.size:
        raise _refused(
            "invalid_vector", f"sparse: must have as many indices as values, got {indices.size} and {weights.size}"
        )
    if not indices.size:
        return None
    lowest, highest = int(indices.min()), int(indices.max())
    if lowest < 0 or highest > SPARSE_INDEX_MAX:
        index = lowest if lowest < 0 else highest
        raise _refused("invalid_vector", f"sparse.indices: must be 0 to {SPARSE_INDEX_MAX}, got {index}")
    values = _float32("sparse.values", weights)
    largest = float(np.abs(values).max())
    if largest > WEIGHT_MAX:
        raise _refused(
            "invalid_vector", f"sparse.values: must be at most {WEIGHT_MAX:g} in magnitude, got {largest:.3g}"
        )
    _check_range("sparse.values", values, schema.datatype)
    kept = values != 0
    keys, values = indices[kept].astype(np.uint32), values[kept]
    if not keys.size:
        return None
    if not (keys[1:] > keys[:-1]).all():
        order = np.argsort(keys, kind="stable")
        keys, values = keys[order], values[order]
        same = keys[1:] == keys[:-1]
        differing = same & (values[1:] != values[:-1])
        if differing.any():
            index = int(keys[int(np.argmax(differing))])
            raise _refused(
                "invalid_vector", f"sparse.indices: must be unique, got index {index} with two different values"
            )
        first = np.concatenate(([True], ~same))
        keys, values = keys[first], values[first]
    return SparseVector(keys, values)


def _payload(payload: Any) -> dict[str, Any]:
    """Copy a mapping after checking that it is plain JSON, which every transport carries unchanged."""
    if not isinstance(payload, Mapping):
        raise _refused("invalid_payload", f"payload: must be an object, got {kind_of(payload)}")
    result = dict(payload)
    size = 0
    stack: list[tuple[str, Any, int]] = [("payload", result, 1)]
    while stack:
        path, container, depth = stack.pop()
        if depth > PAYLOAD_DEPTH_MAX:
            raise _refused("invalid_payload", f"{path}: must be nested at most {PAYLOAD_DEPTH_MAX} levels deep")
        is_object = type(container) is dict
        size += 8 * len(container)
        if size > PAYLOAD_MAX_BYTES:  # stop before millions of empty lists are visited
            raise _too_large(f"{size} or more")
        for key, value in container.items() if is_object else enumerate(container):
            if is_object:
                fault = _text_fault(key) if type(key) is str else f"a string, got {type(key).__name__}"
                if fault:
                    raise _refused("invalid_payload", f"{path}: a key must be {fault}")
                size += _utf8_bytes(str(key))
            if type(value) is dict or type(value) is list:
                stack.append((_path(path, key), value, depth + 1))
            elif fault := _scalar_fault(value):
                raise _refused("invalid_payload", f"{_path(path, key)}: must be {fault}")
            elif type(value) is str:
                size += _utf8_bytes(value)
    if size > PAYLOAD_MAX_BYTES:
        raise _too_large(str(size))
    return result


def _too_large(size: str) -> _Refused:
    return _refused(
        "invalid_payload", f"payload: must be at most {PAYLOAD_MAX_BYTES} bytes including the text, got {size}"
    )


def _check_tenant(payload: Mapping[str, Any], key: str) -> None:
    """Refuse a point whose tenant is not a string. The keyword index would skip it, and no tenant would find it."""
    value = PayloadPath.parse(key).value_in(payload)
    if type(value) is str and value:
        return
    got = "none" if value is None else "an empty string" if value == "" else type(value).__name__
    if type(value) is int:
        got = "an integer; write it as a string"
    raise _refused("invalid_payload", f"payload.{key}: the tenant must be a non-empty string, got {got}")


def _path(path: str, key: str | int) -> str:
    return f"{path}[{key}]" if isinstance(key, int) else f"{path}.{key[:40]}"


def _scalar_fault(value: Any) -> str | None:
    kind = type(value)
    if kind is str:
        return _text_fault(value)
    if kind is int:
        fits = -(2**63) <= value < 2**63
        return None if fits else f"a signed 64-bit integer, got {shown_integer(value)}"
    if kind is float:
        return None if math.isfinite(value) else f"a finite number, got {value!r}"
    return None if value is None or kind is bool else f"plain JSON, got {kind.__name__}"


def _text_fault(text: str) -> str | None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            return f"text, got a lone surrogate at character {exc.start}"
    return None


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
