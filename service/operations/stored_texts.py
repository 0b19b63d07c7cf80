"""Where a collection has its texts, from which vectors are embedded anew."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from typing import Final

from embedder import InvalidRequest
from qdrant_sink import Catalogue, CollectionSchema, PayloadForm, PayloadKeys, Store, path_of_key, text_key_of, text_of
from qdrant_sink.copying import pages
from service.validation import invalid_field

SAMPLE_POINTS: Final = 64
"""Points of which at least one must have a text, before anything is changed."""


def form_of_texts(catalogue: Catalogue, collection: str, text_key: str | None) -> PayloadForm:
    """Return the text key of the request in the plain layout, or else the layout and the text key of the collection.

    Where the points do not agree on a key, the form has none, because some of them may lack a text.

    Raises:
        InvalidRequest: the config sets a layout with another text key.
        WorkerError: the store fails.
    """
    form = catalogue.form(collection)
    if text_key is None:
        return form
    if form.source == "config" and form.layout != "plain":
        message = f"must be left out: the payload layout '{form.layout}' has the text under {form.text_key!r}"
        raise invalid_field("textKey", f"{message}, got another key")
    return replace(form, layout="plain", text_key=text_key)


def check_texts(store: Store, collection: str, schema: CollectionSchema) -> None:
    """Check that some points have a text, before vectors are added that would stay empty.

    Raises:
        InvalidRequest: none of the first points has a text, or no payload can have one under the text key.
    """
    key = text_key_of(schema.layout, schema.text_key)
    try:
        keys = PayloadKeys((path_of_key(key),))
    except ValueError as error:
        raise InvalidRequest(f"textKey: {error}") from None
    page = next(islice(pages(store, collection, {}, keys, limit=SAMPLE_POINTS), 1), {})
    texts = [text_of(schema.layout, stored.payload or {}, schema.text_key) for stored in page.values()]
    if texts and all(text is None for text in texts):
        raise invalid_field(
            "textKey",
            f"must be the payload key of the texts, and none of the first {len(texts)} points has a text under "
            f"{key!r} (layout '{schema.layout}'); give the key, or set layout in QDRANT_COLLECTION_CONFIG",
        )
