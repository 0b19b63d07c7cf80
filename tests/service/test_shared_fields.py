"""An error about a field that all texts of a request share is the fault of no text."""

from __future__ import annotations

import pytest

from service.validation import invalid_field
from service.wire.shared_fields import is_about_all_texts


@pytest.mark.parametrize(
    "field", ["vectors[1]", "qdrant.textKey", "qdrant.chunk.maxTokens", "qdrant.collection", "collection", "maxLength"]
)
def test_a_shared_field_is_recognised(field: str) -> None:
    """However the error is made."""
    assert is_about_all_texts(invalid_field(field, "must be another, got this one").message)
    assert is_about_all_texts(f"{field}: 'chunk' is reserved")


@pytest.mark.parametrize(
    "message",
    [
        "texts[0] must have at most 8192 tokens, got 9000",
        "qdrant.ids[3] must be an integer or a string",
        "qdrant.payloads must be a list",
        "collection 'notes' does not exist",
        "the request is too large",
        "",
    ],
)
def test_an_error_of_a_text_or_of_no_field_is_not(message: str) -> None:
    """The lines of a file are tried one by one for it."""
    assert not is_about_all_texts(message)
