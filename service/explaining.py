"""Explanations for a person and on the wire: tokens by name, and where they stand in the stored text.

A stored text may not be what its vectors were made of: rows were pooled, the text was cut, another model embedded
it. Where its tokens cannot be those of the vectors, nothing is said of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from embedder.embedder import Embedder
from embedder.tokenizer import PlacedText
from qdrant_sink.explain import Ask, Explained, Explanation, Place, RowMatch, TokenMatch, explained
from qdrant_sink.layouts import text_key_of, text_of
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Search

Json = dict[str, Any]

_PLACED_AT_ONCE = 1_000_000
"""Characters: what the tokenizer tells takes several hundred bytes per token until it is read."""

_LONGEST = 64
"""Characters per token that the model takes: a stored text with more was surely cut, and is not tokenized."""


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """A text whose tokens are those of its vectors."""

    text: str
    placed: PlacedText

    def fits(self, explanation: Explanation) -> bool:
        """Whether the vectors can be those of this text."""
        rows, indices = explanation.rows, explanation.indices
        if rows is not None and rows != len(self.placed.ids) - 1:
            return False
        return indices is None or bool(np.isin(indices, self.placed.ids).all())


class Explainer:
    """Explains searches over one model's vectors.

    Args:
        embedder: knows the tokens.
        schema: of the collections.
        query_length: tokens after which queries are cut.
        passage_length: tokens after which passages are cut unless a job says otherwise.
    """

    def __init__(self, embedder: Embedder, schema: CollectionSchema, *, query_length: int, passage_length: int) -> None:
        self._embedder = embedder
        self._layout = schema.layout
        self._halved = schema.colbert.datatype == "float16"
        self._query_length = query_length
        self._passage_length = passage_length

    def found(self, searches: Sequence[Search], text_key: str, ask: Ask) -> list[Explained]:
        """The hits of each search and what explains them.

        Args:
            searches: proven, as `searcher.search_of` gives them.
            text_key: where a plain payload keeps the text.
            ask: the store.
        """
        return explained(searches, ask, text_key=text_key_of(self._layout, text_key), halved=self._halved)

    def told(self, queries: Sequence[str | None], found: Sequence[Explained], text_key: str) -> list[list[Json]]:
        """The explanation of each hit of each search. Blocks.

        Args:
            queries: the text of each search; None if it is by stored points.
            found: as `found` gave it.
            text_key: where a plain payload keeps the text.
        """
        texts = [[text_of(self._layout, one or {}, text_key) for one in of_query.payloads] for of_query in found]
        asking = self._placed((query for query in queries if query is not None), self._query_length)
        most = _LONGEST * self._passage_length
        known = (text for some in texts for text in some if text is not None and len(text) <= most)
        stored = self._placed(known, self._passage_length)
        return [
            [
                self._json(
                    explanation, None if query is None else asking[query], None if text is None else stored.get(text)
                )
                for explanation, text in zip(of_query.explanations, some, strict=True)
            ]
            for query, of_query, some in zip(queries, found, texts, strict=True)
        ]

    def _placed(self, texts: Iterable[str], length: int) -> dict[str, _Tokens]:
        placed: dict[str, _Tokens] = {}
        for some in _batches(dict.fromkeys(texts)):
            for text, one in zip(some, self._embedder.place(some, length), strict=True):
                placed[text] = _Tokens(text, one)
        return placed

    def _json(self, explanation: Explanation, query: _Tokens | None, stored: _Tokens | None) -> Json:
        passage = stored if stored is not None and stored.fits(explanation) else None
        sparse, colbert = explanation.sparse, explanation.colbert
        return {
            "branches": {kind: _place_json(place) for kind, place in explanation.branches.items()},
            "fusion": None if explanation.fusion is None else dict(explanation.fusion),
            "sparse": None if sparse is None else [self._sparse_json(match, passage) for match in sparse],
            "colbert": None
            if colbert is None
            else [self._colbert_json(number, match, query, passage) for number, match in enumerate(colbert)],
        }

    def _sparse_json(self, match: TokenMatch, passage: _Tokens | None) -> Json:
        return {
            "token": self._embedder.word(match.id),
            "id": match.id,
            "query": _short(match.query),
            "passage": _short(match.passage),
            "contribution": _short(match.contribution),
            "spans": None if passage is None else _spans(passage.placed, match.id),
        }

    def _colbert_json(self, number: int, match: RowMatch, query: _Tokens | None, passage: _Tokens | None) -> Json:
        span = None if passage is None else passage.placed.span(match.row + 1)
        return {
            "query": None if query is None else self._word(query, number),
            "token": None if passage is None else self._word(passage, match.row),
            "row": match.row,
            "span": None if span is None else list(span),
            "score": _short(match.score),
        }

    def _word(self, tokens: _Tokens, row: int) -> str:
        """Of the token of a ColBERT row, which `<s>` has none of: as it stands in the text, or by its name."""
        span = tokens.placed.span(row + 1)
        return self._embedder.word(int(tokens.placed.ids[row + 1])) if span is None else tokens.text[slice(*span)]


def add_explanations(answer: Json, told: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Give every hit of a search's answer its `explain`."""
    for result, explanations in zip(answer["results"], told, strict=True):
        for hit, explanation in zip(result["hits"], explanations, strict=True):
            hit["explain"] = explanation


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > _PLACED_AT_ONCE:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _place_json(place: Place | None) -> Json | None:
    return None if place is None else {"rank": place.rank, "score": place.score}


def _spans(placed: PlacedText, token_id: int) -> list[list[int]]:
    places = np.flatnonzero(placed.ids == token_id).tolist()
    return [list(span) for span in map(placed.span, places) if span is not None]


def _short(value: float) -> float:
    """The shortest decimal that reads back as the same float32."""
    return float(str(np.float32(value)))
