"""Identity of documents that are stored in chunks: their keys, the versions of their writes, and the ids of chunks.

Every write of a document has a version of its own, and the ids of its chunks derive from key and version. So two
writes share no point: neither overwrites a chunk of the other, an earlier version stays whole until the next one is
stored, and what an interrupted write has left can be told from everything else. See `writing.replacement`.
"""

from __future__ import annotations

import re
import secrets
import time
import uuid
from dataclasses import dataclass
from typing import Final

from qdrant_sink.points import NAMESPACE, PointId, is_derived
from qdrant_sink.schema import Layout

DOCUMENT_NAMESPACE: Final = uuid.uuid5(NAMESPACE, "document")
"""UUID namespace of the keys of documents."""

CHUNK_NAMESPACE: Final = uuid.uuid5(NAMESPACE, "chunk")
"""UUID namespace of the ids of chunks."""

DOCUMENT_KEY: Final = "doc_key"
DOCUMENT_VERSION: Final = "doc_version"
DOCUMENT_CHUNKS: Final = "doc_chunks"
"""Keys under which the payload of a chunk holds the key and the version of its document, and the number of chunks that
this version has."""

PAYLOAD_INTEGER_MAX: Final = 2**63 - 1
"""Maximum integer in a payload of Qdrant. Ids of points are unsigned, so that they can be greater."""

_VERSION: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
_MILLISECONDS_MAX: Final = 2**48 - 1


@dataclass(frozen=True, slots=True)
class Document:
    """A document that is stored in chunks.

    Attributes:
        key: key in the payload of every chunk; see `document_key`.
        id: id that the document would have as a single point.
        scope: collection name from which ids are derived.
        payload_id: id of the document in the payload of its chunks (`doc_id`): as the caller gave it, or as a text if
            it is an integer beyond `PAYLOAD_INTEGER_MAX`.
    """

    key: str
    id: PointId
    scope: str
    payload_id: int | str

    @classmethod
    def of(cls, identity: PointId, scope: str, payload_id: int | str) -> Document:
        """Return the document with this id in this scope."""
        if isinstance(payload_id, int) and payload_id > PAYLOAD_INTEGER_MAX:
            payload_id = str(payload_id)
        return cls(document_key(identity, scope), identity, scope, payload_id)

    @property
    def payload_ids(self) -> frozenset[int | str]:
        """Ids that the payload of its chunks can have, because the caller or the layout wrote the same id differently.

        They are the text of an integer (LlamaIndex has only texts) and the forms of a UUID with letters of one case.
        """
        ids = {self.payload_id, str(self.payload_id)}
        if isinstance(self.id, uuid.UUID) and not is_derived(self.payload_id):
            forms = (str(self.id), self.id.hex, f"{{{self.id}}}")
            ids |= {*forms, *map(str.upper, forms), self.id.urn, f"urn:uuid:{str(self.id).upper()}"}
        return frozenset(ids)


def document_key(document: PointId, scope: str) -> str:
    """Derive the key of a document from its id and from the collection name that scopes ids. The key is a UUID."""
    return str(uuid.uuid5(DOCUMENT_NAMESPACE, f"{scope}\0{document}"))


def chunk_id(key: str, version: str, number: int) -> uuid.UUID:
    """Derive the id of a chunk from the key of its document, the version of the write and the number of the chunk."""
    return uuid.uuid5(CHUNK_NAMESPACE, f"{key}\0{version}\0{number}")


def unversioned_chunk_id(document: PointId, number: int, scope: str) -> uuid.UUID:
    """Derive the id that a chunk had before writes had versions. Such chunks have no key and no version."""
    return uuid.uuid5(CHUNK_NAMESPACE, f"{scope}\0{document}\0{number}")


def new_version(after: str = "") -> str:
    """Create the version of a write. Versions are compared as texts, and a later one is greater.

    A version is a UUID of version 7 (RFC 9562): the time in milliseconds and 74 random bits.

    Args:
        after: version that the new one must exceed, even if the clock of its writer was ahead of this one.
    """
    earliest = 0 if not is_version(after) else int(after[:8] + after[9:13], 16) + 1
    return _version(min(max(time.time_ns() // 1_000_000, earliest), _MILLISECONDS_MAX))


def early_version() -> str:
    """Create a version that every version of `new_version` exceeds."""
    return _version(0)


def _version(milliseconds: int) -> str:
    number = milliseconds << 80 | 0x7 << 76 | secrets.randbits(12) << 64 | 0b10 << 62 | secrets.randbits(62)
    return str(uuid.UUID(int=number))


def is_version(value: object) -> bool:
    """Whether a value is a version that `new_version` creates."""
    return isinstance(value, str) and _VERSION.fullmatch(value) is not None


@dataclass(frozen=True, slots=True)
class DocumentPaths:
    """Payload paths of the fields of a chunk in one payload layout.

    Attributes:
        key: path of the key of the document.
        version: path of the version of the write.
        document: path of the id of the document, as the caller gave it.
        chunk: path of the number of the chunk.
        total: path of the number of chunks of the version.
    """

    key: str
    version: str
    document: str
    chunk: str
    total: str

    @classmethod
    def of(cls, layout: Layout) -> DocumentPaths:
        """Return the paths of a layout: LangChain and Haystack have these fields in their metadata object."""
        prefix = {"langchain": "metadata.", "haystack": "meta."}.get(layout, "")
        return cls(*(prefix + key for key in (DOCUMENT_KEY, DOCUMENT_VERSION, "doc_id", "chunk", DOCUMENT_CHUNKS)))
