"""Payload layouts: the plain layout of this service, and those that LangChain, LlamaIndex and Haystack read.

| layout | text | the caller's payload and the fields that the worker adds |
|---|---|---|
| `plain` | `textKey` | beside the text |
| `langchain` | `page_content` | in `metadata` |
| `llamaindex` | in `_node_content`, a TextNode as JSON | beside the node, and in the node |
| `haystack` | `content` | in `meta` |

The layouts match langchain-qdrant 1.1.0, llama-index-core 0.14.25 with llama-index-vector-stores-qdrant 0.10.4, and
qdrant-haystack 13.1.0.

The caller's payload must not have a key that the worker writes into the same object, because one of the two values
would be lost. A key with the same value is no conflict: the text itself under its key, or the id itself under `id` or
`doc_id`. Callers often repeat them. (LlamaIndex's `doc_id` is a text, so an integer id under it is another value.)

A layout also has default names of the vectors (`schema.default_names`), by which the classes of the framework open a
collection without further options. Where the schema has other names, the framework must be configured with them:
LangChain takes `vector_name` and `sparse_vector_name`, LlamaIndex takes `dense_vector_name` and `sparse_vector_name`.
Haystack's QdrantDocumentStore has fixed names and cannot open such a collection.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from embedder.errors import InvalidRequest
from qdrant_sink.conformance import Refusal
from qdrant_sink.schema import Layout

Json = dict[str, Any]

_TEXT_KEYS: Final[Mapping[Layout, str]] = {
    "langchain": "page_content",
    "llamaindex": "_node_content",
    "haystack": "content",
}
_IDENTITY_KEYS: Final = ("id", "doc_id")
"""Keys of the worker under which the caller may repeat the id."""

_KEY_SHOWN_MAX: Final = 40
"""Maximum characters of a key in a message."""

_NO_SOURCE: Final = "None"  # the value that LlamaIndex writes for a node without a source


def laid_out(
    layout: Layout,
    *,
    text: str,
    whole_text: str | None = None,
    text_key: str,
    payload: Mapping[str, Any],
    written: Mapping[str, Any],
    point_id: str,
) -> Json | Refusal:
    """Build the payload of a point.

    Args:
        layout: layout of the payload; see the table in the module docstring.
        text: text that was embedded.
        whole_text: text of the document, which the caller may repeat under the text key; by default `text`.
        text_key: key of the text in the plain layout. The other layouts have fixed keys.
        payload: payload from the caller.
        written: fields that the worker adds: `id` with the original of a derived id, and for a chunk `doc_id`,
            `chunk`, `start` and `end`.
        point_id: id of the point as text.

    Returns:
        The payload, or the reason why the caller's payload conflicts with what the worker or the layout writes.

    Raises:
        InvalidRequest: `text_key` is a key that the worker writes.
    """
    if layout == "plain":
        if text_key in written:
            raise InvalidRequest(
                f"qdrant.textKey: {text_key!r} is reserved for {_purpose(text_key)}; choose another key"
            )
        repeated = {text_key: text if whole_text is None else whole_text, **_identity(written)}
        return _merged(payload, {text_key: text, **written}, repeated)
    if layout == "llamaindex":
        return _llamaindex(text, payload, written, point_id)
    metadata = _merged(payload, written, _identity(written))
    if isinstance(metadata, Refusal):
        return metadata
    if layout == "langchain":
        return {"page_content": text, "metadata": metadata}
    return {"id": point_id, "content": text, "meta": metadata}


def text_of(layout: Layout, payload: Mapping[str, Any], text_key: str) -> str | None:
    """Return the text of a stored payload; None if the payload has no text in this layout."""
    value = payload.get(text_key_of(layout, text_key))
    if layout == "llamaindex":
        return _node_text(value)
    return value if isinstance(value, str) else None


def text_key_of(layout: Layout, text_key: str) -> str:
    """Return the payload key of the text, or of the object that contains the text."""
    return _TEXT_KEYS.get(layout, text_key)


def _identity(written: Mapping[str, Any]) -> Json:
    return {key: written[key] for key in _IDENTITY_KEYS if key in written}


def _merged(payload: Mapping[str, Any], written: Mapping[str, Any], repeated: Mapping[str, Any]) -> Json | Refusal:
    """Merge the caller's payload with what the worker writes; a key of both must have its value in `repeated`."""
    for key in written:
        if key not in payload:
            continue
        own = payload[key]
        if key in repeated and type(own) is type(repeated[key]) and own == repeated[key]:
            continue
        rule = " or equal what the worker writes there" if key in repeated else "; the worker writes it"
        return Refusal("invalid_payload", f"payload.{key[:_KEY_SHOWN_MAX]}: must be left out{rule}")
    return {**payload, **written}


def _llamaindex(text: str, payload: Mapping[str, Any], written: Mapping[str, Any], point_id: str) -> Json | Refusal:
    """Build the payload that `node_to_metadata_dict` of llama-index-core writes and `metadata_dict_to_node` reads.

    It is equal byte for byte. The metadata of the node does not contain the id of the document, because the document is
    the source node. The other fields of the worker are excluded from the prompt and from the embedding. The strings "1"
    and "4" are `NodeRelationship.SOURCE` and `ObjectType.DOCUMENT`.
    """
    source = written.get("doc_id")
    document = _NO_SOURCE if source is None else str(source)
    worker_fields = {key: value for key, value in written.items() if key != "doc_id"}
    documents = dict.fromkeys(("document_id", "doc_id", "ref_doc_id"), document)
    reserved = {"_node_content": "", "_node_type": "TextNode", **documents}
    repeated = {**_identity(worker_fields), **(documents if isinstance(source, str) else {})}
    fields = _merged(payload, {**worker_fields, **reserved}, repeated)
    if isinstance(fields, Refusal):
        return fields
    own_fields = {key: value for key, value in payload.items() if key not in documents}
    node = {
        "id_": point_id,
        "embedding": None,
        "metadata": {**own_fields, **worker_fields},
        "excluded_embed_metadata_keys": list(worker_fields),
        "excluded_llm_metadata_keys": list(worker_fields),
        "relationships": {} if source is None else {"1": _related(document)},
        "metadata_template": "{key}: {value}",
        "metadata_separator": "\n",
        "text": text,
        "mimetype": "text/plain",
        "start_char_idx": written.get("start"),
        "end_char_idx": written.get("end"),
        "text_template": "{metadata_str}\n\n{content}",
        "class_name": "TextNode",
    }
    return {**fields, "_node_content": _node_json(node)}


def _related(document: str) -> Json:
    return {"node_id": document, "node_type": "4", "metadata": {}, "hash": None, "class_name": "RelatedNodeInfo"}


def _node_json(node: Json) -> str:
    try:
        return json.dumps(node, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        return ""  # conformance refuses the point, because the payload itself holds the same value


def _node_text(content: Any) -> str | None:
    try:
        node = json.loads(content) if isinstance(content, str) else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(node, dict):
        return None
    text = node.get("text")
    if text is None and isinstance(resource := node.get("text_resource"), dict):
        text = resource.get("text")
    return text if isinstance(text, str) else None


def _purpose(key: str) -> str:
    return "the caller's original id" if key == "id" else "a field of a chunk"
