"""The comparison of a few stored texts with their stored vectors: it reads them, embeds them and gives the verdict.

First each text is embedded as it is. Only of those that disagree, the forms that their framework may have embedded are
embedded too, and their beginnings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from embedder import Embedder, Embedding, EncodedText, Kind, Outputs, Priority
from qdrant_sink import (
    CollectionSchema,
    ComparedText,
    EmbeddedText,
    LimitExceeded,
    ModelVerdict,
    PayloadKeys,
    PointId,
    Store,
    Stored,
    Vectors,
    WithPayload,
    compare_vectors,
    embedded_text,
    path_of_key,
    text_key_of,
)

PAGE_POINTS: Final = 64
"""Number of points whose texts are read, the first of the collection."""

TEXTS_MAX: Final = 8
"""Maximum texts that are compared, spread over those of the page."""

COLBERT_TEXTS_MAX: Final = 3
"""Maximum texts whose ColBERT rows are compared; 255 rows of 1024 numbers are 1 MB."""

DOUBTED_TEXTS_MAX: Final = 4
"""Maximum texts that are embedded in further forms; others that disagree are left out."""

TEXT_MAX_TOKENS: Final = 256
"""Maximum tokens of a compared text. Longer ones are often cut before they are embedded."""

TEXT_MAX_CHARACTERS: Final = 16 * TEXT_MAX_TOKENS
"""Maximum characters of a text that is tokenized. Longer ones have more than `TEXT_MAX_TOKENS` tokens."""

FORM_MAX_TOKENS: Final = 512
"""Maximum tokens of a text with the metadata that a framework embeds in front of it."""

CUT_TOKENS: Final = (128, 256)
"""Usual limits of other embedders in tokens, at which a text may have been cut."""

_SPAN_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "plain": ("chunk", "start", "end"),
    "langchain": ("metadata.chunk", "metadata.start", "metadata.end"),
    "haystack": ("meta",),
    "llamaindex": (),
}
"""Payload keys beside the text that `embedded_text` reads, by layout."""


@dataclass(frozen=True, slots=True)
class _Text:
    """A text to compare, and its tokens."""

    text: EmbeddedText
    encoded: EncodedText


class TextComparison:
    """Compares stored texts with their vectors. It is thread-safe, and blocks.

    Args:
        embedder: the loaded model.
    """

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    def __call__(
        self, store: Store, collection: str, schema: CollectionSchema, text_key: str
    ) -> dict[Kind, ModelVerdict] | None:
        """Compare a few points of a collection.

        Args:
            store: the store.
            collection: name of the collection.
            schema: its vectors and its layout.
            text_key: key of the text in a plain payload.

        Returns:
            The verdict of each kind; None if the first points have no texts.

        Raises:
            WorkerError: the store or the model fails, or the queue of the model is full.
        """
        keys = (path_of_key(text_key_of(schema.layout, text_key)), *_SPAN_KEYS[schema.layout])
        texts: dict[PointId, EmbeddedText] = {}
        for point, stored in _page(store, collection, keys).items():
            text = embedded_text(schema.layout, stored.payload or {}, text_key)
            if text is not None:
                texts[point] = text
        if not texts:
            return None
        chosen = self._chosen(texts)
        stored_vectors = _stored(store, collection, list(chosen), schema)
        present = [(chosen[point], vectors) for point, vectors in stored_vectors.items()]
        return compare_vectors(self._compared(present, schema.kinds), schema.kinds)

    def _chosen(self, texts: Mapping[PointId, EmbeddedText]) -> dict[PointId, _Text]:
        """The texts to compare: short ones, spread over the page."""
        short = [(point, text) for point, text in texts.items() if len(text.text) <= TEXT_MAX_CHARACTERS]
        limit = min(TEXT_MAX_TOKENS, self._embedder.max_length)
        encoded = self._embedder.tokenize([text.text for _, text in short], limit)
        whole = [
            (point, _Text(text, tokens))
            for (point, text), tokens in zip(short, encoded, strict=True)
            if not tokens.truncated
        ]
        count = min(TEXTS_MAX, len(whole))
        return dict(whole[index * len(whole) // count] for index in range(count))

    def _compared(self, texts: Sequence[tuple[_Text, Vectors]], kinds: tuple[Kind, ...]) -> list[ComparedText]:
        """The texts with their stored and computed vectors, without those that cannot be judged."""
        computed = self._embedded([text.encoded for text, _ in texts], kinds)
        result = []
        doubted = 0
        for (text, stored), vectors in zip(texts, computed, strict=True):
            if vectors is None:
                continue
            compared = ComparedText(stored, [vectors], is_open=text.text.is_open)
            if compared.agrees(kinds) or not self._has_further_forms(text):
                result.append(compared)
                continue
            doubted += 1
            further = self._in_further_forms(text, compared, kinds) if doubted <= DOUBTED_TEXTS_MAX else None
            if further is not None:
                result.append(further)
        return result

    def _has_further_forms(self, text: _Text) -> bool:
        return bool(text.text.framework_forms) or len(text.encoded) > min(CUT_TOKENS)

    def _in_further_forms(self, text: _Text, compared: ComparedText, kinds: tuple[Kind, ...]) -> ComparedText | None:
        """Add the vectors of the forms of the framework, and of beginnings; None if one of them cannot be computed."""
        limit = min(FORM_MAX_TOKENS, self._embedder.max_length)
        forms = self._embedder.tokenize(text.text.framework_forms, limit)
        if any(form.truncated for form in forms):
            return None
        candidates = [(text.text.text, text.encoded), *zip(text.text.framework_forms[:1], forms[:1], strict=True)]
        cuts = [
            self._embedder.tokenize([candidate], cut)[0]
            for candidate, encoded in candidates
            for cut in CUT_TOKENS
            if cut < len(encoded)
        ]
        vectors = self._embedded([*forms, *cuts], kinds)
        known = [vector for vector in vectors if vector is not None]
        if len(known) < len(vectors):
            return None
        return replace(compared, computed=[*compared.computed, *known[: len(forms)]], cut=known[len(forms) :])

    def _embedded(self, texts: Sequence[EncodedText], kinds: tuple[Kind, ...]) -> list[Vectors | None]:
        """The vectors of texts, before the passages of ingests; None for a text that the model could not embed."""
        if not texts:
            return []
        # This thread has no event loop, and the request that waits for it may be cancelled without ending the check.
        results = asyncio.run(self._embedder.embed_tokens(texts, Outputs.of(kinds), priority=Priority.QUERY))
        return [Vectors.of(result) if isinstance(result, Embedding) else None for result in results]


def _page(store: Store, collection: str, keys: Sequence[str]) -> dict[PointId, Stored]:
    """The first points of a collection with these payload keys, as many as the server allows in strict mode."""

    def read(limit: int) -> dict[PointId, Stored]:
        return store.scroll(collection, {}, PayloadKeys(tuple(keys)), limit=limit, interactive=True)[0]

    try:
        return read(PAGE_POINTS)
    except LimitExceeded as error:
        return read(max(1, int(error.maximum)))


def _stored(
    store: Store, collection: str, points: Sequence[PointId], schema: CollectionSchema
) -> dict[PointId, Vectors]:
    """The stored vectors of points, with the ColBERT rows of the first `COLBERT_TEXTS_MAX`."""
    no_payload: WithPayload = False
    small: list[Kind] = [kind for kind in schema.kinds if kind != "colbert"]
    vectors: dict[PointId, Vectors] = {}
    for kinds, part in ((small, points), (list(schema.kinds), points[:COLBERT_TEXTS_MAX])):
        if kinds:
            fetched = store.fetch(collection, part, no_payload, kinds, names=schema.names)
            vectors.update({point: stored.vectors for point, stored in fetched.items() if stored.vectors is not None})
    return vectors
