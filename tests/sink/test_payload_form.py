"""The layout and the text key of a collection are recognised where all sampled payloads agree, and only there."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qdrant_sink.payload_form import USUAL_TEXT_KEYS, PayloadForm, is_contradicted, recognise_form
from qdrant_sink.payload_layouts import laid_out
from qdrant_sink.schema import Layout
from tests.sink.samples import SCHEMA

Payload = Mapping[str, Any]

TEXTS: Final = st.lists(st.text(min_size=1), min_size=1, max_size=6)
FRAMEWORKS: Final[tuple[Layout, ...]] = ("langchain", "llamaindex", "haystack")
TEXT_KEYS: Final = {"langchain": "page_content", "llamaindex": "_node_content", "haystack": "content"}
FIELDS: Final = st.dictionaries(
    st.sampled_from(["topic", "year", "url", "ratio"]), st.one_of(st.integers(), st.text(), st.none(), st.booleans())
)


def payload_of(layout: Layout, text: str, fields: Payload, text_key: str = "text") -> Payload:
    """Return a payload as this worker, or the framework, writes it."""
    payload = laid_out(layout, text=text, text_key=text_key, payload=fields, written={}, point_id=str(uuid.uuid4()))
    assert isinstance(payload, Mapping)
    return payload


@given(st.sampled_from(FRAMEWORKS), st.lists(st.tuples(st.text(), FIELDS), min_size=1, max_size=6))
def test_the_layout_of_a_framework_is_recognised(layout: Layout, points: list[tuple[str, Payload]]) -> None:
    """Whatever the texts and the fields are, the layout is that of the framework, also with points without payload."""
    sample = [payload_of(layout, text, fields) for text, fields in points]
    expected = PayloadForm(layout, TEXT_KEYS[layout], "collection")
    assert recognise_form(SCHEMA, sample) == recognise_form(SCHEMA, [{}, *sample, {}]) == expected
    assert expected.fits(sample)
    assert not is_contradicted(sample)


@given(st.sampled_from(FRAMEWORKS), st.sampled_from(FRAMEWORKS), st.text(), FIELDS)
def test_points_of_two_frameworks_have_no_layout(one: Layout, other: Layout, text: str, fields: Payload) -> None:
    """Where points of two frameworks are mixed, neither is taken: a write needs a setting."""
    sample = [payload_of(one, text, fields), payload_of(other, text, {})]
    form = recognise_form(SCHEMA, sample)
    assert form.is_decided == (one == other)
    if one != other:
        assert (form.layout, form.layouts) == ("plain", ())
        assert not PayloadForm(one, TEXT_KEYS[one], "collection").fits(sample)


@given(st.sampled_from(USUAL_TEXT_KEYS), TEXTS, FIELDS)
def test_a_usual_text_key_is_recognised(key: str, texts: list[str], fields: Payload) -> None:
    """Plain payloads with a text under one of the usual keys have that text key, whatever other strings they have."""
    sample = [{**fields, key: text, "tag": "a label of many words"} for text in texts]
    assert recognise_form(SCHEMA, sample) == PayloadForm("plain", key, "collection")


@given(st.lists(st.sampled_from(USUAL_TEXT_KEYS), min_size=2, unique=True), TEXTS)
def test_several_text_keys_are_a_choice_unless_one_is_text(keys: list[str], texts: list[str]) -> None:
    """A text under `text` is the text; among other keys the operator chooses."""
    sample = [dict.fromkeys(keys, text) for text in texts]
    form = recognise_form(SCHEMA, sample)
    if "text" in keys:
        assert form == PayloadForm("plain", "text", "collection")
    else:
        assert (form.text_key, set(form.text_keys)) == (None, set(keys))
        assert not form.is_decided


@pytest.mark.parametrize(
    ("sample", "text_key", "choices"),
    [
        ([{"summary": "two words"}, {"summary": "one", "url": "x y"}], "summary", ()),
        ([{"notiz": "日本語"}], "notiz", ()),
        ([{"summary": "two words", "review": "two words"}], None, ("review", "summary")),
        ([{"url": "https://example.org", "color": "red"}], None, ()),
        ([{"title": "some words", "text": "a b"}, {"title": "other words"}], None, ()),
        ([{"id": "an id", "doc_id": "an id", "_note": "a b"}], None, ()),
        ([{'a "quoted" key': "some words"}], None, ()),
        ([{"year": 3}, {"text": 4}], None, ()),
        ([{"text": ["a", "b"]}], None, ()),
        ([{}, {}], None, ()),
    ],
)
def test_another_text_key_is_taken_only_without_doubt(
    sample: list[Payload], text_key: str | None, choices: tuple[str, ...]
) -> None:
    """The only key with sentences is the text key. Labels, ids and a key that some points lack are none."""
    form = recognise_form(SCHEMA, sample)
    assert (form.layout, form.text_key, form.source, form.text_keys) == ("plain", text_key, "collection", choices)


@pytest.mark.parametrize(
    ("sample", "keys"),
    [
        ([{"title": "some words", "body": "a b"}, {"title": "other words"}], ("body",)),
        ([{"content": "a", "id": "b"}, {"page_content": "a"}, {"n": 1}], ("content", "page_content")),
        ([{"summary": "two words"}, {"review": "two words", "url": "a"}], ("review", "summary")),
        ([{"url": "https://example.org"}, {"n": 1}, {}], ()),
    ],
)
def test_keys_that_only_some_points_have_are_named(sample: list[Payload], keys: tuple[str, ...]) -> None:
    """Where no key holds a text in all points, an operator sees those that hold one in some."""
    form = recognise_form(SCHEMA, sample)
    assert (form.is_decided, form.text_keys, form.partial_text_keys) == (False, (), keys)


@pytest.mark.parametrize(
    ("sample", "layout"),
    [
        ([{"page_content": "a", "metadata": None}], "langchain"),
        ([{"page_content": "a"}], "langchain"),
        ([{"page_content": "a", "topic": "b"}], "plain"),
        ([{"page_content": "a", "metadata": "b"}], "plain"),
        ([{"content": "a", "meta": {}, "id": "b", "blob": None}], "haystack"),
        ([{"content": "a", "meta": {}}], "plain"),
        ([{"_node_content": "not JSON"}], "plain"),
        ([{"_node_content": '{"text_resource": {"text": "a"}, "class_name": "TextNode"}'}], "llamaindex"),
    ],
)
def test_the_marks_of_a_layout(sample: list[Payload], layout: Layout) -> None:
    """A payload that only resembles that of a framework is a plain one."""
    assert recognise_form(SCHEMA, sample).layout == layout


def test_what_is_set_or_empty_needs_no_sample() -> None:
    """The config decides whatever the points are, and a collection without points has the default form."""
    sample = [payload_of("haystack", "a", {})]
    plain = replace(SCHEMA, explicit=frozenset({"layout"}))
    keyed = replace(SCHEMA, text_key="body", explicit=frozenset({"textKey"}))
    assert recognise_form(replace(SCHEMA, layout="langchain"), sample) == PayloadForm(
        "langchain", "page_content", "config"
    )
    assert recognise_form(plain, sample) == PayloadForm("plain", "text", "config")
    assert recognise_form(keyed, sample) == PayloadForm("plain", "body", "config")
    assert recognise_form(SCHEMA, []) == PayloadForm("plain", "text", "default")


@given(st.lists(st.dictionaries(st.text(max_size=3), st.one_of(st.text(), st.integers(), st.none())), max_size=5))
def test_a_contradiction_cannot_be_resolved(sample: list[Payload]) -> None:
    """Where reading ends early, no further point would have decided the form."""
    if is_contradicted(sample):
        for layout in (*FRAMEWORKS, "plain"):
            form = recognise_form(SCHEMA, [*sample, payload_of(layout, "two words", {})])
            assert (form.is_decided, form.layouts, form.text_keys) == (False, (), ())
