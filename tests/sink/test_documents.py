"""Keys, versions and chunk ids: what makes two documents, two writes and two chunks different."""

from __future__ import annotations

import time
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.documents import (
    Document,
    DocumentPaths,
    chunk_id,
    document_key,
    early_version,
    is_version,
    new_version,
    unversioned_chunk_id,
)


def test_versions_are_uuids_in_the_order_of_their_creation() -> None:
    """A version is a UUID of version 7 with the time of its creation, and a later one is greater as a text."""
    before = time.time_ns() // 1_000_000
    versions = [new_version()]
    for _ in range(20):
        versions.append(new_version(versions[-1]))
    assert versions == sorted(set(versions))
    parsed = uuid.UUID(versions[0])
    assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
    assert before <= parsed.int >> 80 <= time.time_ns() // 1_000_000
    assert len({new_version() for _ in range(1000)}) == 1000


def test_an_early_version_is_less_than_every_other() -> None:
    """Whoever writes a document as a whole supersedes a job that only completes chunks without a version."""
    early = early_version()
    assert is_version(early)
    assert early < new_version()
    assert new_version(early) > early


@pytest.mark.parametrize("ahead_ms", [1, 3_600_000, 10**12])
def test_a_version_exceeds_that_of_a_writer_whose_clock_is_ahead(ahead_ms: int) -> None:
    """The clocks of two machines need not agree."""
    earlier = str(uuid.UUID(int=(time.time_ns() // 1_000_000 + ahead_ms) << 80 | 0x7 << 76 | 0b10 << 62 | 2**62 - 1))
    assert is_version(earlier)
    assert new_version(earlier) > earlier


@pytest.mark.slow
@given(st.one_of(st.text(), st.integers(), st.none(), st.uuids().map(str)))
def test_only_versions_are_taken_for_versions(value: object) -> None:
    """A payload of another origin with the same key is no version, unless it is a UUID of version 7."""
    is_uuid7 = isinstance(value, str) and is_version(value)
    assert not is_uuid7 or uuid.UUID(str(value)).version == 7
    assert is_version(new_version(value if isinstance(value, str) else ""))


def test_documents_differ_by_id_and_scope() -> None:
    """The same id in another scope, and an integer beside its text as a UUID, are other documents."""
    one = uuid.UUID(int=1)
    keys = [document_key(identity, scope) for identity in (1, 2, one) for scope in ("notes", "other")]
    assert len(set(keys)) == 6
    assert all(uuid.UUID(key).version == 5 for key in keys)
    assert Document.of(1, "notes", "given") == Document(keys[0], 1, "notes", "given")


def test_chunks_differ_by_document_version_and_number() -> None:
    """Two writes of one document share no point, and none with points of an earlier release."""
    first, second = new_version(), new_version()
    ids = [chunk_id(key, version, n) for key in ("a", "b") for version in (first, second) for n in range(3)]
    assert len(set(ids)) == 12
    assert unversioned_chunk_id(1, 0, "notes") not in ids
    assert unversioned_chunk_id(1, 0, "notes") == uuid.UUID("2c85fcd9-2113-53a8-bd36-635569086bb0")


def test_the_fields_of_a_chunk_have_a_path_in_every_layout() -> None:
    """LangChain and Haystack keep the worker's fields in their metadata object."""
    assert DocumentPaths.of("plain").key == DocumentPaths.of("llamaindex").key == "doc_key"
    assert DocumentPaths.of("langchain").version == "metadata.doc_version"
    assert DocumentPaths.of("haystack") == DocumentPaths(
        "meta.doc_key", "meta.doc_version", "meta.doc_id", "meta.chunk", "meta.doc_chunks"
    )
