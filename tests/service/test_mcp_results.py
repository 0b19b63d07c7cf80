"""The results of the MCP tools: compact JSON whose length never exceeds the limit."""

from __future__ import annotations

import json
from typing import Any

import pytest
from bge_m3_qdrant_client import CollectionAnswer, SearchAnswer
from hypothesis import given, settings
from hypothesis import strategies as st

from service.transports.mcp.results import RESULT_MIN_CHARACTERS, bounded, error_result, search_result

TEXT = st.text(max_size=5)
VALUES = st.none() | st.integers() | TEXT | st.lists(TEXT, max_size=3) | st.dictionaries(TEXT, TEXT, max_size=2)
HIT = st.fixed_dictionaries(
    {
        "id": st.uuids().map(str),
        "text": st.builds(lambda text, times: text * times, TEXT, st.sampled_from([1, 300, 3000])),
        "payload": st.builds(
            lambda payload, times: {f"{name}{n}": value for n in range(times) for name, value in payload.items()},
            st.dictionaries(TEXT, VALUES, max_size=3),
            st.sampled_from([1, 200]),
        ),
    }
)
RESULTS = st.fixed_dictionaries(
    {
        "collection": st.text(max_size=255),
        "hits": st.builds(lambda hits, times: hits * times, st.lists(HIT, max_size=3), st.sampled_from([1, 10])),
        "missing": st.builds(lambda ids, times: ids * times, st.lists(TEXT, max_size=3), st.sampled_from([1, 400])),
    }
)


@settings(max_examples=50)
@given(RESULTS, st.integers(RESULT_MIN_CHARACTERS, 20_000))
def test_a_result_is_json_within_the_limit(result: dict[str, Any], limit: int) -> None:
    """Whatever texts and payloads are, the result is valid JSON of at most the limit, and keeps the order of hits."""
    text = bounded(result, limit)
    assert len(text) <= limit
    shown = json.loads(text)
    for name, key in (("hits", lambda hit: hit["id"]), ("missing", lambda missing: missing)):
        assert list(map(key, shown[name])) == list(map(key, result[name]))[: len(shown[name])]
        assert len(shown[name]) == len(result[name]) or "left_out" in shown


def test_texts_are_cut_before_anything_is_left_out() -> None:
    """A long text loses its end, visibly, while short texts and payloads stay whole."""
    hits = [{"id": 1, "text": "x" * 9000, "payload": {"topic": "backup"}}, {"id": 2, "text": "short", "payload": {}}]
    shown = json.loads(bounded({"hits": hits}, 2000))
    assert shown["hits"][0]["text"].endswith("of 9000 characters]")
    assert len(shown["hits"][0]["text"]) > 900
    assert (shown["hits"][0]["payload"], shown["hits"][1]["text"]) == ({"topic": "backup"}, "short")
    assert "left_out" not in shown


def test_payloads_are_left_out_before_hits() -> None:
    """Payloads of many keys go first, then the last hits, and the result says so."""
    payload = {f"key{number}": number for number in range(500)}
    some = [{"id": number, "text": "short", "payload": payload} for number in range(3)]
    shown = json.loads(bounded({"hits": some}, 1000))
    assert [hit["id"] for hit in shown["hits"]] == [0, 1, 2]
    assert all("payload" not in hit for hit in shown["hits"])
    assert shown["left_out"] == "payloads, 0 of 3 hits; ask for fewer"
    many = [{"id": number, "text": "t" * 30, "payload": payload} for number in range(100)]
    shown = json.loads(bounded({"hits": many}, 1000))
    kept = len(shown["hits"])
    assert 5 <= kept < 100
    assert shown["left_out"] == f"payloads, {100 - kept} of 100 hits; ask for fewer"


def test_a_long_message_is_cut() -> None:
    """An error of the worker cannot fill a language model's context."""
    error = error_result("x" * 100_000, code="store_rejected", retryable=False, retry_after_s=2.0)
    assert len(bounded(error, RESULT_MIN_CHARACTERS)) <= RESULT_MIN_CHARACTERS
    assert error["retry_after_s"] == 2.0


@pytest.mark.parametrize(
    ("layout", "text_key", "payload", "text", "rest"),
    [
        ("plain", "body", {"body": "one", "topic": "x"}, "one", {"topic": "x"}),
        ("langchain", "page_content", {"page_content": "one", "metadata": {"a": 1}}, "one", {"metadata": {"a": 1}}),
        ("haystack", "content", {"content": "one", "meta": {}, "blob": None}, "one", {"meta": {}}),
        (
            "llamaindex",
            "_node_content",
            {"_node_content": json.dumps({"text": "one"}), "_node_type": "TextNode"},
            "one",
            {"_node_type": "TextNode"},
        ),
        ("plain", None, {"a": "one", "b": "two"}, None, {"a": "one", "b": "two"}),
        ("plain", "text", {"title": "no text"}, None, {"title": "no text"}),
    ],
)
def test_the_text_is_found_in_every_layout(
    layout: str, text_key: str | None, payload: dict[str, Any], text: str | None, rest: dict[str, Any]
) -> None:
    """The text of a hit is read as the collection stores it, and is not repeated in its payload."""
    hit = shown_hit({"id": 1, "score": 0.5, "payload": payload}, layout, text_key)
    assert (hit["text"], hit["payload"]) == (text, rest)


def test_an_explanation_has_no_tokens_without_characters() -> None:
    """The marks of the beginning of a word and of the end of a text are left out; the words that matched remain."""
    explain = {
        "branches": {"dense": {"rank": 1, "score": 0.6}, "sparse": None},
        "fusion": None,
        "sparse": [
            {"token": token, "id": 1, "query": 1, "passage": 0.2, "contribution": 0.2, "spans": None}
            for token in ("▁", "files")
        ],
        "colbert": [
            {"query": query, "token": token, "row": 0, "span": None, "score": 0.2}
            for query, token in [("files", "files"), ("of", "▁"), ("</s>", "files")]
        ],
    }
    hit = shown_hit({"id": 1, "score": 0.5, "payload": {}, "explain": explain}, "plain", "text")
    assert hit["explain"] == {
        "ranks": {"dense": 1, "sparse": None},
        "shared_tokens": ["files"],
        "alignments": [["files", "files", 0.2]],
    }


def shown_hit(hit: dict[str, Any], layout: str, text_key: str | None) -> dict[str, Any]:
    """What the result of a search shows of one hit of a collection in this layout."""
    collection = CollectionAnswer.model_validate(
        {
            "name": "notes",
            "aliases": [],
            "status": "green",
            "points": 1,
            "indexedVectors": 0,
            "vectors": [],
            "payloadIndexes": [],
            "layout": {"name": layout, "source": "collection"},
            "textKey": text_key,
            "model": {"name": "mini", "source": "worker"},
        }
    )
    answer = SearchAnswer.model_validate({"model": "mini", "results": [{"hits": [hit]}], "usage": {"tokens": 3}})
    (shown,) = search_result(collection, answer)["hits"]
    return dict(shown)
