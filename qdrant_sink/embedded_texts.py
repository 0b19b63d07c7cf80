"""The texts from which the vectors of a stored point may have been computed.

Frameworks embed more than the text of a point: LlamaIndex puts the metadata of a node in front of its text, and
Haystack the values of chosen fields, which the payload does not name. So there are several candidates.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from qdrant_sink.payload_layouts import text_key_of, text_of
from qdrant_sink.schema import Layout

HAYSTACK_FIELDS_MAX: Final = 4
"""Maximum fields of a Haystack document that are tried, alone and together."""

_SPANS: Final[Mapping[Layout, str | None]] = {"plain": None, "langchain": "metadata", "haystack": "meta"}
"""Object of the payload with the `chunk`, `start` and `end` of a chunk by layout; None if they are at the top."""

_PLACEHOLDER: Final = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class EmbeddedText:
    """What may have been embedded for a point.

    Attributes:
        text: text of the point.
        framework_forms: further texts that the framework of the layout may have embedded instead, at most
            `HAYSTACK_FIELDS_MAX` + 1.
        is_open: whether there are forms beyond these, because the framework may embed any selection of fields.
    """

    text: str
    framework_forms: tuple[str, ...] = ()
    is_open: bool = False


def embedded_text(layout: Layout, payload: Mapping[str, Any], text_key: str) -> EmbeddedText | None:
    """Return what may have been embedded for a point.

    Args:
        layout: layout of the payload.
        payload: payload of the point.
        text_key: key of the text in the plain layout.

    Returns:
        The candidates; None if the payload has no text, only white space, or a text that was changed since, because it
        has another length than the span of its chunk.
    """
    text = text_of(layout, payload, text_key)
    if text is None or not text.strip():
        return None
    if layout == "llamaindex":
        node: dict[str, Any] = json.loads(payload[text_key_of(layout, text_key)])
        if not _fits(text, node.get("start_char_idx"), node.get("end_char_idx")):
            return None
        return EmbeddedText(text, _others(text, [_llamaindex_form(text, node)]))
    parent = _SPANS[layout]
    fields = payload if parent is None else payload.get(parent)
    fields = fields if isinstance(fields, Mapping) else {}
    if "chunk" in fields and not _fits(text, fields.get("start"), fields.get("end")):
        return None
    if layout != "haystack":
        return EmbeddedText(text)
    return EmbeddedText(text, _others(text, _haystack_forms(text, fields)), is_open=len(fields) > 1)


def _fits(text: str, start: object, end: object) -> bool:
    return not (isinstance(start, int) and isinstance(end, int)) or end - start == len(text)


def _others(text: str, forms: list[str]) -> tuple[str, ...]:
    return tuple(form for form in dict.fromkeys(forms) if form.strip() != text.strip())


def _llamaindex_form(text: str, node: Mapping[str, Any]) -> str:
    """Return what `TextNode.get_content(MetadataMode.EMBED)` returns."""
    metadata, excluded = node.get("metadata"), node.get("excluded_embed_metadata_keys")
    fields = metadata if isinstance(metadata, dict) else {}
    left_out = excluded if isinstance(excluded, list) else []
    template = _template(node, "metadata_template", default="{key}: {value}")
    separator = _template(node, "metadata_separator", "metadata_seperator", default="\n")  # older versions misspell it
    lines = [_filled(template, key=key, value=str(value)) for key, value in fields.items() if key not in left_out]
    metadata_str = separator.join(lines).strip()
    if not metadata_str:
        return text
    form = _template(node, "text_template", default="{metadata_str}\n\n{content}")
    return _filled(form, metadata_str=metadata_str, content=text).strip()


def _template(node: Mapping[str, Any], *names: str, default: str) -> str:
    return next((node[name] for name in names if isinstance(node.get(name), str)), default)


def _filled(template: str, **values: str) -> str:
    """Fill a template of a payload. `str.format` would also let it read attributes and pad to any width."""
    return _PLACEHOLDER.sub(lambda match: values.get(match[1], match[0]), template)


def _haystack_forms(text: str, meta: Mapping[str, Any]) -> list[str]:
    """Return the text behind each value of its meta fields, and behind all of them, with Haystack's own separator."""
    values = [value for value in meta.values() if isinstance(value, str) and value][:HAYSTACK_FIELDS_MAX]
    return ["\n".join((*chosen, text)) for chosen in ([value] for value in values)] + ["\n".join((*values, text))]
