"""Points: their ids, vectors and payloads, before and after they are proven, and as they are read back."""

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
from qdrant_sink.schema import VectorNames

PointId = int | uuid.UUID
"""What Qdrant takes as an id: an unsigned 64-bit integer or a UUID."""

INTEGER_ID_MAX = 2**64 - 1

NAMESPACE = uuid.UUID("6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815")
"""UUID namespace of ids derived from a caller's own string. Changing it would double every collection."""

TEXT_NAMESPACE = uuid.uuid5(NAMESPACE, "text")
"""UUID namespace of ids derived from a text: a text and a caller's id of the same letters are two points."""

CHUNK_NAMESPACE = uuid.uuid5(NAMESPACE, "chunk")
"""UUID namespace of the ids of a document's chunks."""

UUID_TEXT = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9a-f]{32}"
    r"|\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, eq=False)
class Vectors:
    """Vectors of a text, a query or a stored point; a kind that is missing is None.

    Attributes:
        dense: float32 [size].
        sparse: weights per token id.
        colbert: float32 or float16 [rows, size].

    Qdrant returns dense and ColBERT vectors with norm 1, as it stores them.
    """

    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[Any] | None = None

    @classmethod
    def of(cls, embedding: Embedding) -> Vectors:
        """The vectors that the model computed."""
        return cls(embedding.dense, embedding.sparse, embedding.colbert)

    @classmethod
    def named(cls, vectors: object, names: VectorNames) -> Vectors | None:
        """Vectors as a client or the engine returns them; None where it returns no named vectors.

        Args:
            vectors: by name a list of numbers, a list of rows, or an object with `indices` and `values`.
            names: what each kind is called.
        """
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
    """A point before it is proven.

    Attributes:
        index: position within the job; a rejection names it.
        id: as `point_id` or `text_id` returns it.
        payload: meant to be plain JSON.
        vectors: meant to be finite and of the collection's sizes.
    """

    index: int
    id: PointId
    payload: Mapping[str, Any]
    vectors: Vectors


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A point that every Qdrant accepts; only `conformance.conform` makes one.

    Attributes:
        id: unsigned 64-bit integer or UUID.
        payload: plain JSON.
        dense: float32 [size], finite, norm between `NORM_MIN` and `NORM_MAX`.
        sparse: uint32 and float32 [N], N > 0, indices unique and ascending, no weight is zero.
        colbert: float32 or float16 [rows, size], rows * size < 2**20, every row like `dense`.

    A kind of vector that is missing is None; a point has at least one kind.
    """

    id: PointId
    payload: Mapping[str, Any]
    dense: NDArray[np.float32] | None = None
    sparse: SparseVector | None = None
    colbert: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        """Refuse the shapes that break Qdrant Edge for good, wherever the point was made."""
        if self.sparse is not None and self.sparse.indices.shape != self.sparse.values.shape:
            raise ValueError("sparse: indices and values differ in shape")
        if self.colbert is not None and (self.colbert.ndim != 2 or not self.colbert.size):
            raise ValueError("colbert: must have two dimensions and values")

    @property
    def nbytes(self) -> int:
        """Size of the point in a request in bytes, within a few per cent."""
        size = 64 + len(json.dumps(self.payload, ensure_ascii=False, separators=(",", ":")).encode())
        if self.dense is not None:
            size += 4 * self.dense.size
        if self.sparse is not None:
            size += 8 * self.sparse.indices.size
        if self.colbert is not None:
            size += 4 * self.colbert.size
        return size


@dataclass(frozen=True, slots=True)
class PayloadKeys:
    """A part of a payload.

    Attributes:
        keys: paths such as `topic` and `metadata.topic`; a path that a payload lacks is left out.
        excluded: the whole payload except these keys.
    """

    keys: tuple[str, ...]
    excluded: bool = False


WithPayload = bool | PayloadKeys
"""The whole payload, nothing of it, or a part."""


@dataclass(frozen=True, slots=True, eq=False)
class Stored:
    """A stored point as it was read: payload and vectors, each None unless requested."""

    payload: Mapping[str, Any] | None = None
    vectors: Vectors | None = None


def point_id(raw: int | str, collection: str, *, field: str = "id") -> PointId:
    """The point id that a caller's id stands for.

    A JSON integer is an unsigned 64-bit id, and the text of a UUID in a form that Qdrant reads (hyphenated,
    32 digits, urn:uuid:, braces) is that UUID. Any other string, "1" too, becomes the UUID version 5 of
    `NAMESPACE` and collection, NUL, string; `is_derived` tells so, for the payload to keep the original.

    Raises:
        InvalidRequest: not an integer or string, out of range, empty, or not Unicode; names `field`.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise InvalidRequest(f"{field}: an id is an integer or a string, got {type(raw).__name__}")
    if isinstance(raw, int):
        if not 0 <= raw <= INTEGER_ID_MAX:
            raise InvalidRequest(f"{field}: an integer id is 0 to {INTEGER_ID_MAX}, got {shown_integer(raw)}")
        return raw
    if not raw:
        raise InvalidRequest(f"{field}: an id has at least 1 character, got 0")
    if UUID_TEXT.fullmatch(raw):
        return uuid.UUID(raw.lower())  # its parser knows the prefix in lower case only
    try:
        raw.encode()
    except UnicodeEncodeError as exc:
        raise InvalidRequest(f"{field}: character {exc.start} is a lone surrogate, which is not text") from exc
    return uuid.uuid5(NAMESPACE, f"{collection}\0{raw}")


def is_derived(raw: int | str) -> bool:
    """Whether `point_id` hashes this id, so that the original belongs into the payload as `id`."""
    return isinstance(raw, str) and not UUID_TEXT.fullmatch(raw)


def text_id(text: str, collection: str) -> uuid.UUID:
    """The point id of a text whose caller names none: the same text in the same collection is the same point."""
    name = f"{collection}\0{text}".encode("utf-8", "surrogatepass")
    return uuid.UUID(bytes=hashlib.sha1(TEXT_NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16], version=5)


def chunk_id(document: PointId, number: int, collection: str) -> uuid.UUID:
    """The point id of a document's chunk: a second run of the same document overwrites the same points."""
    return uuid.uuid5(CHUNK_NAMESPACE, f"{collection}\0{document}\0{number}")


def payload_for(
    payload: Mapping[str, Any],
    written: Mapping[str, Any],
    *,
    field: str = "qdrant.payloads",
) -> dict[str, Any]:
    """The caller's payload together with what the worker writes: the text under its key, and `id`.

    Raises:
        InvalidRequest: a key is in both; names `field` (such as `qdrant.payloads[3]`) and the key.
    """
    for key in written:
        if key in payload:
            raise InvalidRequest(f"{field}: the key {key!r} is written by the worker and cannot be set")
    return {**payload, **written}


def claims(
    entries: Iterable[tuple[int, PointId, Mapping[str, Any]]],
) -> tuple[dict[int, tuple[int, ...]], list[tuple[int, DuplicateId]]]:
    """Give every id to its first entry, in the order of the job.

    A later entry of the same id merges if its payload is the same (the text is part of it); otherwise it is
    a duplicate, since storing both would silently keep only the last.

    Args:
        entries: index, id and payload, plain JSON, of each.

    Returns:
        By the index of each owner all indices that it stands for, its own first; and the duplicates with their error.
    """
    owners: dict[PointId, tuple[bytes, list[int]]] = {}
    duplicates: list[tuple[int, DuplicateId]] = []
    for index, point, payload in entries:
        digest = _digest(payload)
        owned, indices = owners.setdefault(point, (digest, []))
        if owned == digest:
            indices.append(index)
        else:
            message = f"the id is already that of point {indices[0]} of this job, which has another payload or text"
            duplicates.append((index, DuplicateId(message)))
    return {indices[0]: tuple(indices) for _, indices in owners.values()}, duplicates


def _digest(payload: Mapping[str, Any]) -> bytes:
    """Digest of a payload, independent of the order of its keys."""
    text = json.dumps(payload, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def shown_integer(number: int) -> str:
    """An integer for a message, shortened where it has more than 128 bits."""
    return str(number) if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"
