"""Points with their ids, vectors and payloads: before and after validation, and as read from a store."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.errors import InvalidRequest
from embedder.vectors import Embedding, SparseVector
from qdrant_sink.errors import DuplicateId
from qdrant_sink.json_types import kind_of
from qdrant_sink.payload_path import canonical_selection_path, named
from qdrant_sink.schema import NAMES, VectorNames

PointId = int | uuid.UUID
"""Id of a point in Qdrant: an unsigned 64-bit integer or a UUID."""

INTEGER_ID_MAX = 2**64 - 1
"""Largest integer id of a point."""

NAMESPACE = uuid.UUID("6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815")
"""UUID namespace of ids that are derived from a caller's string. If it changed, a second run of a job would store every
point again under another id."""

TEXT_NAMESPACE = uuid.uuid5(NAMESPACE, "text")
"""UUID namespace of ids that are derived from a text, so that a text and an equal string id are two points."""

UUID_TEXT = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9a-f]{32}"
    r"|\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Vectors of a text, a query or a stored point. A missing kind is None.

    Attributes:
        dense: float32 [size].
        sparse: weights by token id.
        colbert: float32 or float16 [rows, size].

    Where the distance is the cosine, Qdrant normalises dense and ColBERT vectors, and returns them with norm 1.
    """

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[Any] | None = None

    @classmethod
    def of(cls, embedding: Embedding) -> Vectors:
        """Return the vectors of an embedding."""
        return cls(embedding.dense, embedding.sparse, embedding.colbert)

    @classmethod
    def named(cls, vectors: object, names: VectorNames) -> Vectors | None:
        """Convert the vectors that a client or the engine returns; None if it returned no vectors.

        Args:
            vectors: mapping from names to a list of numbers, a list of rows, or an object with `indices` and `values`.
                An unnamed vector without others comes without a mapping.
            names: names of the three kinds.
        """
        if isinstance(vectors, list) and vectors:
            vectors = {"": vectors}
        if not isinstance(vectors, Mapping) or not vectors:
            return None
        dense, sparse, colbert = (vectors.get(name) for name in (names.dense, names.sparse, names.colbert))
        return cls(
            dense=None if dense is None else np.asarray(dense, np.float32),
            sparse=None
            if sparse is None
            else SparseVector(np.asarray(sparse.indices, np.uint32), np.asarray(sparse.values, np.float32)),
            colbert=None if colbert is None else np.asarray(colbert, np.float32),
        )


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A point before validation.

    Attributes:
        index: index of the point in the job, which a rejection reports.
        id: id from `point_id` or `text_id`.
        payload: payload, which should be plain JSON.
        vectors: vectors, which should be finite and have the sizes of the collection.
    """

    index: int
    id: PointId
    payload: Mapping[str, Any]
    vectors: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A valid point, which every Qdrant accepts. Create it with `conformance.conform`.

    Attributes:
        id: unsigned 64-bit integer or UUID.
        payload: plain JSON.
        dense: float32 [size], finite, norm at most `NORM_MAX` and, for the cosine, at least `NORM_MIN`.
        sparse: uint32 and float32 [N] with N > 0; indices are unique and ascending, weights are not zero.
        colbert: float32 or float16 [rows, size] with rows * size < 2**20; every row is valid as a dense vector.
        names: names of the vectors in the collection.

    A missing kind is None. A point has at least one kind.
    """

    id: PointId
    payload: Mapping[str, Any]
    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[Any] | None = None
    names: VectorNames = NAMES

    def __post_init__(self) -> None:
        """Raise ValueError for shapes that damage a collection of Qdrant Edge permanently."""
        if self.sparse is not None and self.sparse.indices.shape != self.sparse.values.shape:
            raise ValueError("sparse: indices and values must have the same shape")
        if self.colbert is not None and (self.colbert.ndim != 2 or not self.colbert.size):
            raise ValueError("colbert: must have two dimensions and values")

    @property
    def nbytes(self) -> int:
        """Approximate size of the point in a request in bytes, accurate to a few per cent."""
        size = 64 + self.payload_nbytes
        if self.dense is not None:
            size += 4 * self.dense.size
        if self.sparse is not None:
            size += 8 * self.sparse.indices.size
        if self.colbert is not None:
            size += 4 * self.colbert.size
        return size

    @property
    def payload_nbytes(self) -> int:
        """Size of the payload as JSON in bytes."""
        return payload_nbytes(self.payload)


def payload_nbytes(payload: Mapping[str, Any]) -> int:
    """Size of a payload as JSON in bytes."""
    return len(json.dumps(payload, ensure_ascii=False, separators=(",", ":")).encode())


@dataclass(frozen=True, slots=True)
class PayloadKeys:
    """Selection of a part of the payload.

    Attributes:
        keys: paths such as `topic`, `metadata.topic` and `offers[].price` (see `payload_path`), in the form in which
            Qdrant reads them. Paths that a payload does not have are ignored.
        excluded: whether these keys are excluded rather than included.

    Raises:
        ValueError: a key is not a path, or selects a single item of an array.
    """

    keys: tuple[str, ...]
    excluded: bool = False

    def __post_init__(self) -> None:
        with named("keys"):
            object.__setattr__(self, "keys", tuple(canonical_selection_path(key) for key in self.keys))


WithPayload = bool | PayloadKeys
"""Selection of a payload: all of it (True), nothing (False) or a part."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A point read from a store. Payload and vectors are None unless they were requested."""

    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None


def point_id(raw: object, collection: str, *, field: str = "id") -> PointId:
    """Convert a caller's id to the id of the point.

    A JSON integer is used as an unsigned 64-bit id. A string that is a UUID in a form that Qdrant reads (hyphenated,
    32 digits, urn:uuid: or braces) is used as this UUID. Any other string, including "1", is hashed: the id is the
    version 5 UUID of `NAMESPACE` and the collection, NUL and the string. For such ids `is_derived` returns True, and
    the payload should store the original.

    Raises:
        InvalidRequest: the id is not an integer or a string, out of range, empty or not Unicode. The error names
            `field`.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise InvalidRequest(f"{field}: must be an integer or a string, got {kind_of(raw)}")
    if isinstance(raw, int):
        if not 0 <= raw <= INTEGER_ID_MAX:
            raise InvalidRequest(f"{field}: an integer id must be 0 to {INTEGER_ID_MAX}, got {shown_integer(raw)}")
        return raw
    if not raw:
        raise InvalidRequest(f"{field}: must have at least 1 character, got 0")
    if UUID_TEXT.fullmatch(raw):
        return uuid.UUID(raw.lower())  # Python's parser accepts the urn prefix in lower case only
    try:
        raw.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{field}: character {exc.start} is a lone surrogate, which is not text") from exc
    return uuid.uuid5(NAMESPACE, f"{collection}\0{raw}")


def is_derived(raw: int | str) -> bool:
    """Whether `point_id` hashes this id, so that the payload should store the original as `id`."""
    return isinstance(raw, str) and not UUID_TEXT.fullmatch(raw)


def text_id(text: str, collection: str) -> uuid.UUID:
    """Derive the id of a point from its text. The same text in the same collection has the same id."""
    name = f"{collection}\0{text}".encode("utf-8", "surrogatepass")
    return uuid.UUID(bytes=hashlib.sha1(TEXT_NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16], version=5)


def claims(
    entries: Iterable[tuple[int, PointId, Mapping[str, Any]]],
) -> tuple[dict[int, tuple[int, ...]], list[tuple[int, DuplicateId]]]:
    """Assign every id to the first entry that has it, in the order of the job.

    A later entry with the same id and the same payload, which includes the text, is merged with the first one. With
    another payload it is a duplicate, because storing both would silently keep only the last one.

    Args:
        entries: index, id and payload (plain JSON) of each entry.

    Returns:
        The indices that each first entry stands for, by its own index and starting with it; and the duplicates with
        their errors.
    """
    owners: dict[PointId, tuple[bytes, list[int]]] = {}
    duplicates: list[tuple[int, DuplicateId]] = []
    for index, point, payload in entries:
        digest = _digest(payload)
        owner_digest, indices = owners.setdefault(point, (digest, []))
        if owner_digest == digest:
            indices.append(index)
        else:
            message = f"id: point {indices[0]} of this job has the same id and another payload or text; change an id"
            duplicates.append((index, DuplicateId(message)))
    return {indices[0]: tuple(indices) for _, indices in owners.values()}, duplicates


def _digest(payload: Mapping[str, Any]) -> bytes:
    """Compute a digest of a payload that does not depend on the order of its keys."""
    text = json.dumps(payload, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def shown_integer(number: int) -> str:
    """Format an integer for an error message. Integers of more than 128 bits are replaced by their size."""
    return str(number) if number.bit_length() <= 128 else f"an integer of {number.bit_length()} bits"
