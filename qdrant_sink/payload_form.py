"""The form of the payloads of a collection: their layout and the key of their text, recognised in a sample of them.

A form is taken only if all payloads of the sample agree on it. Payloads without any key say nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from qdrant_sink.documents import DOCUMENT_KEY, DOCUMENT_VERSION
from qdrant_sink.payload_layouts import text_key_of, text_of
from qdrant_sink.payload_path import path_of_key
from qdrant_sink.schema import TEXT_KEY, CollectionSchema, Layout

Payload = Mapping[str, Any]

USUAL_TEXT_KEYS: Final = (TEXT_KEY, "content", "page_content", "document", "body", "passage", "chunk")
"""Keys that hold a text by their name. Where points have a text under `text`, the others are not considered."""

_FRAMEWORKS: Final[tuple[Layout, ...]] = ("langchain", "llamaindex", "haystack")

_NEVER_A_TEXT: Final = frozenset({"id", "doc_id", DOCUMENT_KEY, DOCUMENT_VERSION, "document_id", "ref_doc_id"})
"""Keys of this worker and of LlamaIndex whose strings are ids."""

_TEXT_KEY_MAX_CHARACTERS: Final = 255


@dataclass(frozen=True, slots=True)
class PayloadForm:
    """Layout and text key of the payloads of a collection.

    Attributes:
        layout: layout of the payloads; the wanted one if it is ambiguous.
        text_key: key of the text, or of the object that contains it; None if it is unknown or ambiguous.
        source: "config" if the operator has set it, "collection" if the payloads agree on it, and "default" if there
            are no payloads to go by.
        layouts: the layouts that all payloads fit, if there are several; otherwise empty.
        text_keys: the keys under which all payloads have a text, if there are several; otherwise empty.
        partial_text_keys: the keys under which some payloads have a text, if there is none under which all have one;
            otherwise empty.
    """

    layout: Layout
    text_key: str | None
    source: Literal["config", "collection", "default"]
    layouts: tuple[Layout, ...] = ()
    text_keys: tuple[str, ...] = ()
    partial_text_keys: tuple[str, ...] = ()

    @property
    def is_decided(self) -> bool:
        """Whether the layout and the text key are known."""
        return self.text_key is not None and not self.layouts

    def fits(self, payloads: Sequence[Payload]) -> bool:
        """Whether all these payloads have this layout and a text under its key."""
        if self.text_key is None or self.layouts:
            return False
        if self.layout != "plain":
            return self.layout in _layouts(_filled(payloads))
        return all(isinstance(payload.get(self.text_key), str) for payload in _filled(payloads))


def configured_form(wanted: CollectionSchema) -> PayloadForm | None:
    """Return the form that the operator has set; None if it is left to the collection."""
    if wanted.layout != "plain" or "layout" in wanted.explicit:
        return PayloadForm(wanted.layout, text_key_of(wanted.layout, wanted.text_key), "config")
    if wanted.text_key != TEXT_KEY or "textKey" in wanted.explicit:
        return PayloadForm("plain", wanted.text_key, "config")
    return None


def default_form(wanted: CollectionSchema) -> PayloadForm:
    """Return the form of a collection without points."""
    return PayloadForm(wanted.layout, text_key_of(wanted.layout, wanted.text_key), "default")


def recognise_form(wanted: CollectionSchema, sample: Sequence[Payload]) -> PayloadForm:
    """Recognise the form of payloads, unless the operator has set it.

    Args:
        wanted: schema of the config.
        sample: payloads of stored points; empty for a collection without points.
    """
    configured = configured_form(wanted)
    if configured is not None:
        return configured
    if not sample:
        return default_form(wanted)
    payloads = _filled(sample)
    layouts = _layouts(payloads)
    if len(layouts) == 1:
        return PayloadForm(layouts[0], text_key_of(layouts[0], wanted.text_key), "collection")
    if layouts:
        return PayloadForm(wanted.layout, None, "collection", layouts=layouts)
    keys = _text_keys(payloads)
    if len(keys) == 1:
        return PayloadForm("plain", keys[0], "collection")
    return PayloadForm(
        "plain", None, "collection", text_keys=keys, partial_text_keys=() if keys else _partial_text_keys(payloads)
    )


def is_contradicted(sample: Sequence[Payload]) -> bool:
    """Whether no further payload can make these agree on a layout or on a text key."""
    payloads = _filled(sample)
    return bool(payloads) and not _layouts(payloads) and not _string_keys(payloads)


def layouts_of_some(sample: Sequence[Payload]) -> tuple[Layout, ...]:
    """Return the layouts of frameworks that at least one payload fits."""
    return tuple(layout for layout in _FRAMEWORKS if any(_layouts([payload]) == (layout,) for payload in sample))


def _filled(sample: Sequence[Payload]) -> list[Payload]:
    return [payload for payload in sample if payload]


def _layouts(payloads: Sequence[Payload]) -> tuple[Layout, ...]:
    """The layouts of frameworks that all payloads fit."""
    if not payloads:
        return ()
    return tuple(
        layout
        for layout in _FRAMEWORKS
        if all(_has_layout(layout, payload) for payload in payloads)
        and (layout != "langchain" or _has_metadata(payloads))
    )


def _has_layout(layout: Layout, payload: Payload) -> bool:
    if text_of(layout, payload, TEXT_KEY) is None:
        return False
    if layout == "langchain":
        return payload.get("metadata") is None or isinstance(payload["metadata"], Mapping)
    return layout != "haystack" or (isinstance(payload.get("meta"), Mapping) and "id" in payload)


def _has_metadata(payloads: Sequence[Payload]) -> bool:
    """Whether payloads that may be LangChain's are not plain ones whose text is under `page_content`."""
    return any("metadata" in payload for payload in payloads) or all(
        payload.keys() == {"page_content"} for payload in payloads
    )


def _text_keys(payloads: Sequence[Payload]) -> tuple[str, ...]:
    """The keys under which all payloads have a text: `text`, else the usual ones, else those that look like texts."""
    keys = _string_keys(payloads)
    if TEXT_KEY in keys:
        return (TEXT_KEY,)
    usual = tuple(key for key in USUAL_TEXT_KEYS if key in keys)
    if usual:
        return usual
    if any(isinstance(payload.get(key), str) for payload in payloads for key in USUAL_TEXT_KEYS):
        return ()  # a text under a usual key in some of the points, which the others lack
    return tuple(sorted(key for key in keys if _looks_like_text([payload[key] for payload in payloads])))


def _partial_text_keys(payloads: Sequence[Payload]) -> tuple[str, ...]:
    """The keys under which some payloads have a text: the usual ones, else those that look like texts."""
    texts: dict[str, list[str]] = {}
    for payload in payloads:
        for key in _string_keys([payload]):
            texts.setdefault(key, []).append(payload[key])
    usual = tuple(key for key in USUAL_TEXT_KEYS if key in texts)
    return usual or tuple(sorted(key for key, values in texts.items() if _looks_like_text(values)))


def _string_keys(payloads: Sequence[Payload]) -> frozenset[str]:
    """The keys under which all payloads have strings, apart from those of ids."""
    keys = [{key for key, value in payload.items() if isinstance(value, str)} for payload in payloads]
    common = frozenset.intersection(*map(frozenset, keys)) if keys else frozenset()
    return frozenset(key for key in common - _NEVER_A_TEXT if not key.startswith("_") and _is_text_key(key))


def _is_text_key(key: str) -> bool:
    try:
        path_of_key(key)
    except ValueError:
        return False
    return 1 <= len(key) <= _TEXT_KEY_MAX_CHARACTERS


def _looks_like_text(values: Sequence[str]) -> bool:
    """Whether strings are texts rather than labels, dates or addresses: some have blanks, or another script."""
    return any(not value.isascii() or len(value.split()) > 1 for value in values)
