"""Ids of points, their payloads, and duplicates."""

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
    claims,
    is_derived,
    point_id,
    text_id,
)
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

POINT_UUID = uuid.UUID("6d2a8a52-6e32-4f0b-8f6a-5c9d0e1f2a3b")


def test_json_numbers_stay_the_ids_they_are() -> None:
    """A JSON number is used as an unsigned 64-bit id, up to the largest one."""
    assert point_id(0, "docs") == 0
    assert point_id(2**64 - 1, "docs") == 2**64 - 1
    assert not is_derived(7)


@pytest.mark.parametrize(
    "text",
    [
        str(POINT_UUID),
        POINT_UUID.hex,
        POINT_UUID.urn,
        f"{{{POINT_UUID}}}",
        str(POINT_UUID).upper(),
        POINT_UUID.urn.upper(),
    ],
)
def test_every_uuid_form_of_qdrant_is_that_uuid(edge_store: EdgeStore, text: str) -> None:
    """All UUID forms (hyphenated, digits, urn, braces) identify the same point, also in the engine."""
    assert point_id(text, "docs") == POINT_UUID
    assert not is_derived(text)
    edge_store.ensure("docs", SCHEMA)
    write(edge_store, "docs", [draft(0, id=POINT_UUID)], SCHEMA)
    assert edge_store.count("docs", {"must": [{"has_id": [text]}]}) == 1


@pytest.mark.parametrize("text", ["1", "doc-7", "6d2a8a52-6e32-4f0b-8f6a", "6d2a8a526e32-4f0b-8f6a-5c9d0e1f2a3b", "é"])
def test_any_other_string_is_a_stable_uuid_of_its_collection(text: str) -> None:
    """The same string has the same id in every run, and another id in another collection."""
    derived = point_id(text, "docs")
    assert derived == uuid.uuid5(NAMESPACE, f"docs\0{text}")
    assert derived != point_id(text, "other")
    assert is_derived(text)


def test_ids_of_earlier_releases_stay() -> None:
    """Derived ids never change, so that a new release overwrites existing points instead of duplicating them."""
    assert str(point_id("doc-7", "docs")) == "450ff418-21df-55ce-a700-39b4a08682f5"
    assert str(text_id("hello", "docs")) == "ffcc3a28-9d91-5eb2-b909-8b3dd19aaa50"


@pytest.mark.parametrize("raw", [-1, 2**64, True, 1.5, None, "", "\ud800", [1]])
def test_an_invalid_id_is_refused_by_field(raw: Any) -> None:
    """The message states which id of the request is invalid."""
    with pytest.raises(InvalidRequest, match=r"^qdrant\.ids\[3\]: "):
        point_id(raw, "docs", field="qdrant.ids[3]")


@given(st.text(st.characters(codec=None)))
def test_a_text_and_an_equal_string_id_are_two_points(text: str) -> None:
    """Ids derived from strings and ids derived from texts differ. Every string has a text id."""
    derived = text_id(text, "docs")
    assert derived == text_id(text, "docs")
    assert derived.version == 5
    try:
        assert point_id(text, "docs") != derived
    except InvalidRequest:
        assert not text or max(text) >= "\ud800"


def test_the_first_point_owns_its_id() -> None:
    """Equal points are merged. A different point with the same id is refused, and the message names the first one."""
    owners, duplicates = claims([(0, 7, {"a": 1, "b": 2}), (1, 8, {}), (2, 7, {"b": 2, "a": 1}), (3, 7, {"a": 2})])
    assert owners == {0: (0, 2), 1: (1,)}
    [(index, error)] = duplicates
    assert (index, type(error)) == (3, DuplicateId)
    assert "point 0 of this job" in error.message


def test_one_and_true_are_two_payloads() -> None:
    """The JSON values 1, 1.0 and true differ although they are equal in Python, so that they are not merged."""
    owners, duplicates = claims([(0, 7, {"a": 1}), (1, 7, {"a": True}), (2, 7, {"a": 1.0})])
    assert owners == {0: (0,)}
    assert [index for index, _ in duplicates] == [1, 2]
