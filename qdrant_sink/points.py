"""Points before and after they are proven: ids, payloads, and which point of a job owns an id."""

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

from embedder.errors import DuplicateId, InvalidRequest
from embedder.vectors import Embedding, SparseVector

PointId = int | uuid.UUID
"""What Qdrant takes as an id: an unsigned 64-bit integer or a UUID."""

MAX_INTEGER_ID = 2**64 - 1

NAMESPACE = uuid.UUID("6f2b1c0e-8d3a-5b47-9c61-0f7e4a92d815")
"""Of the ids that are derived from a caller's own string. Changing it would double every collection."""

TEXT_NAMESPACE = uuid.uuid5(NAMESPACE, "text")
"""Of the ids that are derived from a text, so that a text never meets a caller's id of the same letters."""

CHUNK_NAMESPACE = uuid.uuid5(NAMESPACE, "chunk")
"""Of the ids of a document's chunks."""

UUID_TEXT = re.compile(
    r"(?:urn:uuid:)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
    r"|[0-9a-f]{32}"
    r"|\{[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\}",
    re.IGNORECASE | re.ASCII,
)


@dataclass(frozen=True, slots=True, eq=False)
class Draft:
    """A point that is not proven yet.

    Attributes:
        index: position within the job; what a refusal names.
        id: as `point_id` or `text_id` gives it.
        payload: meant to be plain JSON.
        embedding: meant to be finite and of the collection's sizes.
    """

    index: int
    id: PointId
    payload: Mapping[str, Any]
    embedding: Embedding


@dataclass(frozen=True, slots=True, eq=False)
class Point:
    """A point that every Qdrant takes: made by `conformance.conform` alone.

    Attributes:
        id: unsigned 64-bit integer or UUID.
        payload: plain JSON.
        dense: float32 [size], finite, norm between `NORM_MIN` and `NORM_MAX`.
        sparse: uint32 and float32 [N], N > 0, indices unique and ascending, no weight is zero.
        colbert: float32 or float16 [rows, size], rows * size < 2**20, every row like `dense`.

    A kind of vector that the point does not have is None; at least one is there.
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
        """Bytes the point takes in a request, within a few per cent."""
        size = 64 + len(json.dumps(self.payload, ensure_ascii=False, separators=(",", ":")).encode())
        if self.dense is not None:
            size += 4 * self.dense.size
        if self.sparse is not None:
            size += 8 * self.sparse.indices.size
        if self.colbert is not None:
            size += 4 * self.colbert.size
        return size


def point_id(raw: int | str, collection: str, *, field: str = "id") -> PointId:
    """The id of a point that its caller named.

    A JSON integer is an unsigned 64-bit id, and the text of a UUID in a form that Qdrant reads (hyphenated,
    32 digits, urn:uuid:, braces) is that UUID. Any other string, "1" too, becomes the UUID version 5 of
    `NAMESPACE` and collection, NUL, string; `is_derived` tells so, for the payload to keep the original.

    Raises:
        InvalidRequest: not an integer or string, out of range, empty, or not Unicode; names `field`.
    """
    if isinstance(raw, bool) or not isinstance(raw, int | str):
        raise InvalidRequest(f"{field}: an id is an integer or a string, got {type(raw).__name__}")
    if isinstance(raw, int):
        if not 0 <= raw <= MAX_INTEGER_ID:
            raise InvalidRequest(f"{field}: an integer id is 0 to {MAX_INTEGER_ID}, got {shown_integer(raw)}")
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
    """The id of a point without one: the same text in the same collection is the same point."""
    name = f"{collection}\0{text}".encode("utf-8", "surrogatepass")
    return uuid.UUID(bytes=hashlib.sha1(TEXT_NAMESPACE.bytes + name, usedforsecurity=False).digest()[:16], version=5)


def chunk_id(document: PointId, number: int, collection: str) -> uuid.UUID:
    """The id of a document's chunk: a second run of the same document overwrites the same points."""
    return uuid.uuid5(CHUNK_NAMESPACE, f"{collection}\0{document}\0{number}")


def payload_for(
    payload: Mapping[str, Any],
    written: Mapping[str, Any],
    *,
    field: str = "qdrant.payloads",
) -> dict[str, Any]:
    """The caller's payload and, what the worker writes beside it: the text under its key, `id`.

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
    returned with the reason, since storing both would silently keep only the last.

    Args:
        entries: index, id and payload, plain JSON, of each.

    Returns:
        By the index of each owner the indices that it stands for, its own first; and the duplicates.
    """
    owners: dict[PointId, tuple[bytes, list[int]]] = {}
    duplicates: list[tuple[int, DuplicateId]] = []
    for index, identity, payload in entries:
        content = _digest(payload)
        owned, indices = owners.setdefault(identity, (content, []))
        if owned == content:
            indices.append(index)
        else:
            message = f"the id is already that of point {indices[0]} of this job, which has another payload or text"
            duplicates.append((index, DuplicateId(message)))
    return {indices[0]: tuple(indices) for _, indices in owners.values()}, duplicates


def _digest(payload: Mapping[str, Any]) -> bytes:
    """Of what the payload says, whatever the order of its keys."""
    text = json.dumps(payload, sort_keys=True).encode()
    return hashlib.blake2b(text, digest_size=16).digest()


def shown_integer(number: int) -> str:
    """An integer for a message, however long it is."""
    return str(number) if number.bit_length() <= 128 else f"one of {number.bit_length()} bits"
