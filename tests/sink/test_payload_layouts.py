"""Payload layouts match those of the frameworks, refuse colliding keys and return their text."""

from __future__ import annotations

import json
from typing import Any, get_args

import pytest

from embedder.errors import InvalidRequest
from qdrant_sink.conformance import Refusal, conform
from qdrant_sink.edge import EdgeStore
from qdrant_sink.payload_layouts import laid_out, text_of
from qdrant_sink.schema import Layout
from tests.sink.samples import SCHEMA, draft
from tests.sink.writing import write

LAYOUTS: tuple[Layout, ...] = get_args(Layout)
POINT = "790dd20f-6aa9-57ca-90e3-1926c19dac9b"
NESTED = json.loads("[" * 900 + "]" * 900)
CHUNK = {"doc_id": "manual", "chunk": 2, "start": 10, "end": 18}


def attempted(layout: Layout, **overrides: Any) -> dict[str, Any] | Refusal:
    """Try to build a payload with one key of the caller."""
    values: dict[str, Any] = {
        "text": "r\u00e9sum\u00e9",
        "text_key": "text",
        "payload": {"topic": "backup"},
        "written": {},
        "point_id": POINT,
    }
    return laid_out(layout, **{**values, **overrides})


def built(layout: Layout, **overrides: Any) -> dict[str, Any]:
    """Build a payload with one key of the caller."""
    payload = attempted(layout, **overrides)
    assert not isinstance(payload, Refusal)
    return payload


def test_plain_is_flat() -> None:
    """The plain layout has the text, the caller's payload and the worker's fields in one object."""
    assert built("plain", text_key="body", written={"id": "rsync"}) == {
        "topic": "backup",
        "body": "r\u00e9sum\u00e9",
        "id": "rsync",
    }


def test_langchain_finds_page_content_and_metadata() -> None:
    """The payload has `page_content` and `metadata`, which langchain-qdrant 1.1 reads."""
    assert built("langchain", written=CHUNK) == {
        "page_content": "r\u00e9sum\u00e9",
        "metadata": {"topic": "backup", **CHUNK},
    }


def test_haystack_finds_a_document() -> None:
    """The payload has the fields of a Document, which qdrant-haystack 13.1 reads, with nested metadata."""
    assert built("haystack", written=CHUNK) == {
        "id": POINT,
        "content": "r\u00e9sum\u00e9",
        "meta": {"topic": "backup", **CHUNK},
    }


def test_llamaindex_finds_a_node_and_its_document() -> None:
    """The payload equals that of llama-index-core 0.14: the node as JSON, metadata and three source ids."""
    payload = built("llamaindex", written=CHUNK)
    node = json.loads(payload.pop("_node_content"))
    assert payload == {
        "topic": "backup",
        "chunk": 2,
        "start": 10,
        "end": 18,
        "_node_type": "TextNode",
        "document_id": "manual",
        "doc_id": "manual",
        "ref_doc_id": "manual",
    }
    assert node == {
        "id_": POINT,
        "embedding": None,
        "metadata": {"topic": "backup", "chunk": 2, "start": 10, "end": 18},
        "excluded_embed_metadata_keys": ["chunk", "start", "end"],
        "excluded_llm_metadata_keys": ["chunk", "start", "end"],
        "relationships": {
            "1": {
                "node_id": "manual",
                "node_type": "4",
                "metadata": {},
                "hash": None,
                "class_name": "RelatedNodeInfo",
            }
        },
        "metadata_template": "{key}: {value}",
        "metadata_separator": "\n",
        "text": "r\u00e9sum\u00e9",
        "mimetype": "text/plain",
        "start_char_idx": 10,
        "end_char_idx": 18,
        "text_template": "{metadata_str}\n\n{content}",
        "class_name": "TextNode",
    }


def test_a_text_without_a_document_has_the_source_none_in_llamaindex() -> None:
    """A text that is not a chunk has the source "None", as LlamaIndex writes it. Ids become strings."""
    payload = built("llamaindex")
    assert {payload[key] for key in ("document_id", "doc_id", "ref_doc_id")} == {"None"}
    node = json.loads(payload["_node_content"])
    assert node["relationships"] == {}
    assert node["start_char_idx"] is None
    assert built("llamaindex", written={**CHUNK, "doc_id": 7})["ref_doc_id"] == "7"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("value", [1, CHUNK["chunk"], None])
def test_a_key_of_the_worker_cannot_be_set(layout: Layout, value: object) -> None:
    """A key of the caller that the worker writes is refused, in whichever object it is, even with a chunk's value."""
    refusal = attempted(layout, payload={"chunk": value}, written=CHUNK)
    assert refusal == Refusal("invalid_payload", "payload.chunk: must be left out; the worker writes it")


def test_the_text_and_the_id_may_be_repeated() -> None:
    """A caller's payload may repeat the text and the id, since nothing is lost; a chunk has its own text."""
    assert built("plain", payload={"text": "whole", "id": "a"}, text="whole", written={"id": "a"}) == {
        "text": "whole",
        "id": "a",
    }
    chunk = built(
        "plain", payload={"text": "the whole", "doc_id": "manual"}, text="the", whole_text="the whole", written=CHUNK
    )
    assert chunk == {"text": "the", **CHUNK}
    for layout in LAYOUTS:
        built(layout, payload={"id": "a"}, written={"id": "a"})
        assert built(layout, payload={"doc_id": "manual"}, written=CHUNK) == built(layout, payload={}, written=CHUNK)
        for other in ("b", None, ["a"], 1):
            assert attempted(layout, payload={"id": other}, written={"id": "a"}) == Refusal(
                "invalid_payload", "payload.id: must be left out or equal what the worker writes there"
            )


def test_one_and_true_are_two_values() -> None:
    """A number is not repeated by a boolean that equals it in Python."""
    assert isinstance(attempted("plain", payload={"doc_id": True}, written={**CHUNK, "doc_id": 1}), Refusal)


@pytest.mark.parametrize(
    ("layout", "key"),
    [
        ("plain", "text"),
        ("llamaindex", "_node_content"),
        ("llamaindex", "_node_type"),
        ("llamaindex", "document_id"),
        ("llamaindex", "doc_id"),
        ("llamaindex", "ref_doc_id"),
    ],
)
def test_a_key_of_the_layout_cannot_be_set(layout: Layout, key: str) -> None:
    """A key of the caller that the layout writes is refused."""
    refusal = attempted(layout, payload={key: 1})
    assert isinstance(refusal, Refusal)
    assert refusal.message.startswith(f"payload.{key}: must be left out")


@pytest.mark.parametrize(("layout", "keys"), [("langchain", ["page_content", "text"]), ("haystack", ["content", "id"])])
def test_a_key_in_a_separate_object_is_accepted(layout: Layout, keys: list[str]) -> None:
    """Keys inside of a separate metadata object cannot collide with the text."""
    payload = built(layout, payload=dict.fromkeys(keys, "mine"))
    assert text_of(layout, payload, "text") == "r\u00e9sum\u00e9"


@pytest.mark.parametrize(("key", "what"), [("id", "the caller's original id"), ("start", "a field of a chunk")])
def test_a_text_key_of_the_worker_is_refused(key: str, what: str) -> None:
    """A `textKey` that the worker writes is refused, and the message states its purpose."""
    with pytest.raises(InvalidRequest, match=rf"^qdrant\.textKey: '{key}' is reserved for {what}; choose another key$"):
        built("plain", text_key=key, written={**CHUNK, "id": "rsync"})


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("text", ["", "plain", 'quotes " and \\ and \u2028', "\U0001f680 \x00"])
def test_the_text_comes_back(layout: Layout, text: str) -> None:
    """The text is read back unchanged."""
    assert text_of(layout, built(layout, text=text, text_key="body"), "body") == text


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "payload",
    [
        {},
        {"text": 1, "page_content": 1, "content": None, "_node_content": 1},
        {"_node_content": "{"},
        {"_node_content": "[]"},
        {"_node_content": "[" * 100_000},
        {"_node_content": '{"text": 1}'},
    ],
)
def test_a_payload_of_another_layout_has_no_text(layout: Layout, payload: dict[str, Any]) -> None:
    """Points of another layout have the text None and do not raise."""
    assert text_of(layout, payload, "text") is None


def test_the_text_of_a_newer_node_is_read() -> None:
    """LlamaIndex's class `Node` stores its text in a resource."""
    content = json.dumps({"text_resource": {"text": "inside"}, "class_name": "Node"})
    assert text_of("llamaindex", {"_node_content": content}, "text") == "inside"


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "bad", [float("nan"), {1, 2}, 2**70, "\ud800", NESTED], ids=["nan", "set", "integer", "surrogate", "depth"]
)
def test_a_payload_that_is_not_json_is_left_to_conformance(layout: Layout, bad: Any) -> None:
    """In every layout, conformance refuses a point with an invalid payload, without failing the job."""
    outcome = conform(draft(0, payload=built(layout, payload={"a": bad})), SCHEMA)
    assert isinstance(outcome, Refusal)
    assert outcome.code == "invalid_payload"


@pytest.mark.parametrize(
    ("layout", "prefix"), [("plain", ""), ("llamaindex", ""), ("langchain", "metadata."), ("haystack", "meta.")]
)
@pytest.mark.parametrize("doc_id", ["manual", 7])
def test_a_filter_finds_what_the_caller_and_the_worker_wrote(
    edge_store: EdgeStore, layout: Layout, prefix: str, doc_id: int | str
) -> None:
    """Filters find the caller's keys and a document's chunks at the documented paths."""
    edge_store.ensure("docs", SCHEMA)
    payloads = [built(layout, written={**CHUNK, "doc_id": name, "chunk": 0}) for name in (doc_id, doc_id, "other")]
    write(edge_store, "docs", [draft(index, payload=payload) for index, payload in enumerate(payloads)], SCHEMA)

    def at(key: str, value: int | str) -> dict[str, Any]:
        return {"must": [{"key": prefix + key, "match": {"value": value}}]}

    assert edge_store.count("docs", at("topic", "backup")) == 3
    document = at("doc_id", str(doc_id) if layout == "llamaindex" else doc_id)
    assert edge_store.count("docs", document) == 2
    assert edge_store.delete("docs", where=document) == 2
