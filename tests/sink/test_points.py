"""Ids, payloads and duplicates."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from embedder.errors import InvalidRequest
from qdrant_sink.edge import EdgeStore
from qdrant_sink.errors import DuplicateId
from qdrant_sink.points import (
    NAMESPACE,
    chunk_id,
    claims,
    is_derived,
    payload_for,
    point_id,
    text_id,
)
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

SOME = uuid.UUID("6d2a8a52-6e32-4f0b-8f6a-5c9d0e1f2a3b")


def test_json_numbers_stay_the_ids_they_are() -> None:
    """A number is an unsigned 64-bit id, the greatest one too."""
    assert point_id(0, "docs") == 0
    assert point_id(2**64 - 1, "docs") == 2**64 - 1
    assert not is_derived(7)


@pytest.mark.parametrize("text", [str(SOME), SOME.hex, SOME.urn, f"{{{SOME}}}", str(SOME).upper(), SOME.urn.upper()])
def test_every_uuid_form_of_qdrant_is_that_uuid(edge_store: EdgeStore, text: str) -> None:
    """Hyphens, plain digits, urn and braces name the same point, here and in the engine."""
    assert point_id(text, "docs") == SOME
    assert not is_derived(text)
    edge_store.ensure("docs", SCHEMA)
    write(edge_store, "docs", [draft(0, id=SOME)], SCHEMA)
    assert edge_store.count("docs", {"must": [{"has_id": [text]}]}) == 1


@pytest.mark.parametrize("text", ["1", "doc-7", "6d2a8a52-6e32-4f0b-8f6a", "6d2a8a526e32-4f0b-8f6a-5c9d0e1f2a3b", "é"])
def test_any_other_string_is_a_stable_uuid_of_its_collection(text: str) -> None:
    """The same string gives the same id in every run, another one in another collection."""
    derived = point_id(text, "docs")
    assert derived == uuid.uuid5(NAMESPACE, f"docs\0{text}")
    assert derived != point_id(text, "other")
    assert is_derived(text)


def test_ids_of_earlier_releases_stay() -> None:
    """A collection of last year is overwritten and not doubled: these values never change."""
    assert str(point_id("doc-7", "docs")) == "450ff418-21df-55ce-a700-39b4a08682f5"
    assert str(text_id("hello", "docs")) == "ffcc3a28-9d91-5eb2-b909-8b3dd19aaa50"


@pytest.mark.parametrize("raw", [-1, 2**64, True, 1.5, None, "", "\ud800", [1]])
def test_what_is_no_id_is_refused_by_field(raw: Any) -> None:
    """The message says which id of the request is wrong."""
    with pytest.raises(InvalidRequest, match=r"^qdrant\.ids\[3\]: "):
        point_id(raw, "docs", field="qdrant.ids[3]")


@given(st.text(st.characters(codec=None)))
def test_a_text_never_meets_an_id_of_the_same_letters(text: str) -> None:
    """Points named by their caller and points named by their text live apart; any string has a text id."""
    derived = text_id(text, "docs")
    assert derived == text_id(text, "docs")
    assert derived.version == 5
    try:
        assert point_id(text, "docs") != derived
    except InvalidRequest:
        assert not text or max(text) >= "\ud800"


def test_a_key_that_the_worker_writes_is_refused() -> None:
    """A caller's key is never overwritten silently, and never overwrites."""
    assert payload_for({"a": 1}, {"text": "x"}) == {"a": 1, "text": "x"}
    with pytest.raises(InvalidRequest, match=r"qdrant\.payloads\[3\]: the key 'text' is written by the worker"):
        payload_for({"text": 1}, {"text": "x"}, field="qdrant.payloads[3]")


def test_the_first_point_owns_its_id() -> None:
    """Equal points merge; a different one of the same id is refused and says whose the id is."""
    owners, duplicates = claims([(0, 7, {"a": 1, "b": 2}), (1, 8, {}), (2, 7, {"b": 2, "a": 1}), (3, 7, {"a": 2})])
    assert owners == {0: (0, 2), 1: (1,)}
    [(index, error)] = duplicates
    assert (index, type(error)) == (3, DuplicateId)
    assert "point 0 of this job" in error.message


def test_one_and_true_are_two_payloads() -> None:
    """JSON's 1, 1.0 and true differ, though Python's are equal: nothing merges that is not the same."""
    owners, duplicates = claims([(0, 7, {"a": 1}), (1, 7, {"a": True}), (2, 7, {"a": 1.0})])
    assert owners == {0: (0,)}
    assert [index for index, _ in duplicates] == [1, 2]


@given(st.integers(0, 2**64 - 1), st.integers(0, 10_000))
def test_chunks_of_a_document_have_ids_of_their_own(document: int, number: int) -> None:
    """A chunk's id follows from collection, document and number, and from nothing else."""
    one = chunk_id(document, number, "docs")
    assert one == chunk_id(document, number, "docs")
    assert len({one, chunk_id(document, number + 1, "docs"), chunk_id(document, number, "other")}) == 3
    assert one != point_id(f"{document}", "docs")
