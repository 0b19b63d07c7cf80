"""What was embedded for a stored point: its text, or the form that its framework embeds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.embedded_texts import HAYSTACK_FIELDS_MAX, EmbeddedText, embedded_text
from qdrant_sink.payload_layouts import laid_out
from qdrant_sink.schema import Layout

TEXT = "rsync copies only what changed."

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def node(**fields: object) -> dict[str, Any]:
    """The payload of a TextNode as llama-index-core 0.14.25 writes it."""
    defaults: dict[str, object] = {
        "metadata": {},
        "excluded_embed_metadata_keys": [],
        "metadata_template": "{key}: {value}",
        "metadata_separator": "\n",
        "text": TEXT,
        "start_char_idx": None,
        "end_char_idx": None,
        "text_template": "{metadata_str}\n\n{content}",
    }
    return {"_node_content": json.dumps({**defaults, **fields})}


@pytest.mark.parametrize(
    ("fields", "form"),
    [
        (
            {
                "metadata": {"file": "a.md", "page": 3, "secret": "x", "tags": ["a", "b"]},
                "excluded_embed_metadata_keys": ["secret"],
            },
            f"file: a.md\npage: 3\ntags: ['a', 'b']\n\n{TEXT}",
        ),
        (
            {
                "metadata": {"k{key}": "{value} {content}"},
                "metadata_template": "[{key}={value}]",
                "metadata_separator": " | ",
                "text_template": "<{metadata_str}> {content} {0}",
            },
            f"<[k{{key}}={{value}} {{content}}]> {TEXT} {{0}}",
        ),
        (
            {"metadata": {"a": 1, "b": 2}, "metadata_separator": None, "metadata_seperator": "; "},
            f"a: 1; b: 2\n\n{TEXT}",
        ),
    ],
    ids=["default", "templates", "older"],
)
def test_llamaindex_embeds_the_metadata_in_front_of_the_text(fields: dict[str, Any], form: str) -> None:
    """The candidates are the text and what `get_content(MetadataMode.EMBED)` returns for the node."""
    assert embedded_text("llamaindex", node(**fields), "text") == EmbeddedText(TEXT, (form,))


@pytest.mark.parametrize("fields", [{}, {"metadata": {"a": 1}, "excluded_embed_metadata_keys": ["a"]}])
def test_a_node_without_metadata_is_embedded_by_its_text(fields: dict[str, Any]) -> None:
    """Without metadata to embed, the text is the only candidate."""
    assert embedded_text("llamaindex", node(**fields), "text") == EmbeddedText(TEXT)


def test_a_template_cannot_pad_a_text() -> None:
    """A template of a stored payload is filled without its format specifications, which could ask for gigabytes."""
    payload = node(metadata={"a": 1}, metadata_template="{value:>9999999999}{key.__class__}")
    embedded = embedded_text("llamaindex", payload, "text")
    assert embedded is not None
    assert embedded.framework_forms == (f"{{value:>9999999999}}{{key.__class__}}\n\n{TEXT}",)


def test_haystack_embeds_chosen_fields_in_front_of_the_text() -> None:
    """The candidates of a Haystack document are its text, alone and behind each of its first fields, and behind all."""
    payload = {"content": TEXT, "meta": {"title": "Backups", "page": 3, "author": "Ann", "empty": ""}}
    forms = (f"Backups\n{TEXT}", f"Ann\n{TEXT}", f"Backups\nAnn\n{TEXT}")
    assert embedded_text("haystack", payload, "text") == EmbeddedText(TEXT, forms, is_open=True)
    alone = {"content": TEXT, "meta": {"title": "Backups"}}
    assert embedded_text("haystack", alone, "text") == EmbeddedText(TEXT, forms[:1])
    many = {"content": TEXT, "meta": {str(number): f"v{number}" for number in range(100)}}
    embedded = embedded_text("haystack", many, "text")
    assert embedded is not None
    assert len(embedded.framework_forms) == HAYSTACK_FIELDS_MAX + 1


@pytest.mark.parametrize("layout", ["plain", "langchain", "haystack", "llamaindex"])
@pytest.mark.parametrize("text", [TEXT, f"{TEXT} And it was edited.", ""])
def test_a_chunk_whose_text_was_changed_is_unknown(layout: Layout, text: str) -> None:
    """The text of a chunk counts only if it has the length of its span."""
    written = {"doc_id": "d", "chunk": 0, "start": 7, "end": 7 + len(TEXT)}
    payload = laid_out(layout, text=text, text_key="text", payload={}, written=written, point_id="1")
    assert isinstance(payload, dict)
    embedded = embedded_text(layout, payload, "text")
    assert (embedded is not None and embedded.text == TEXT) == (text == TEXT)


def test_other_fields_of_these_names_do_not_matter() -> None:
    """`start` and `end` of a caller, such as seconds of a video, are no span."""
    assert embedded_text("plain", {"body": TEXT, "start": 1, "end": 2}, "body") == EmbeddedText(TEXT)


@pytest.mark.parametrize("payload", [{}, {"text": ""}, {"text": " \n"}, {"text": 3}, {"other": TEXT}])
def test_a_point_without_a_text_is_unknown(payload: dict[str, Any]) -> None:
    """A payload without a text, or with a blank one, has no candidates."""
    assert embedded_text("plain", payload, "text") is None


@pytest.mark.slow
@given(st.dictionaries(st.sampled_from(["text", "meta", "metadata", "content", "start", "chunk"]), json_values))
def test_any_payload_has_candidates_or_none(payload: dict[str, Any]) -> None:
    """Payloads of other programs, in any form, give candidates with a text or None in every layout."""
    layouts: list[Layout] = ["plain", "langchain", "haystack"]
    for layout in layouts:
        embedded = embedded_text(layout, payload, "text")
        assert embedded is None or embedded.text.strip()
    foreign = {**payload, "text": TEXT}
    embedded = embedded_text("llamaindex", {"_node_content": json.dumps(foreign)}, "text")
    assert embedded is not None
    assert embedded.text == TEXT
