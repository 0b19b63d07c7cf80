"""Explanations of hits: the matched tokens, and their spans in the stored text.

A stored text may differ from the text of its vectors: rows were pooled, the text was truncated, or another model
embedded it. If its tokens cannot be those of the vectors, spans are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from embedder import Embedder, Kind, PlacedText
from qdrant_sink import (
    BranchRank,
    CollectionSchema,
    Explained,
    Explanation,
    PartReader,
    RowMatch,
    Search,
    Store,
    TokenMatch,
    explain,
    text_key_of,
    text_of,
)
from service.operations.embed import LengthLimits

_BATCH_MAX_CHARACTERS = 1_000_000
"""Maximum characters that are tokenized together with offsets, which takes several hundred bytes per token."""

_TOKEN_MAX_CHARACTERS = 64
"""Maximum characters per token of the model's limit; a longer stored text was truncated and is not tokenized."""


@dataclass(frozen=True, slots=True)
class SparseMatch:
    """A token that the query and the passage share.

    Attributes:
        token: the text of the token.
        id: id of the token in the vocabulary.
        query: weight of the token in the query.
        passage: weight of the token in the passage.
        contribution: product of the two weights, the token's part of the inner product; None if the store also weights
            by IDF.
        spans: spans of the token in the stored text, in characters; None if unknown.
    """

    token: str
    id: int
    query: float
    passage: float
    contribution: float | None
    spans: Sequence[tuple[int, int]] | None


@dataclass(frozen=True, slots=True)
class ColbertMatch:
    """A token of the query and the most similar ColBERT row of the passage.

    Attributes:
        query: the token of the query; None in a search by stored points.
        token: the token of the passage; None if unknown.
        row: index of the passage's ColBERT row.
        span: span of the passage's token in the stored text, in characters; None if unknown.
        score: inner product of the two rows.
    """

    query: str | None
    token: str | None
    row: int
    span: tuple[int, int] | None
    score: float


@dataclass(frozen=True, slots=True)
class HitExplanation:
    """The explanation of a hit.

    Attributes:
        branches: rank and score in each branch; None if the point is not among the branch's candidates.
        fusion: contribution of each branch to the fused score; None if the score is not fused or does not add up.
        sparse: the matched tokens, largest product of weights first; None if the query has no sparse weights.
        colbert: the match of each query row; None if the query or the point has no ColBERT rows.
    """

    branches: Mapping[Kind, BranchRank | None]
    fusion: Mapping[Kind, float] | None
    sparse: Sequence[SparseMatch] | None
    colbert: Sequence[ColbertMatch] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """A text and the spans of its tokens."""

    text: str
    placed: PlacedText

    def fits(self, explanation: Explanation) -> bool:
        """Whether the vectors of a point can be those of this text."""
        rows, indices = explanation.rows, explanation.indices
        if rows is not None and rows != len(self.placed.ids) - 1:
            return False
        return indices is None or bool(np.isin(indices, self.placed.ids).all())


class Explainer:
    """Explains searches over one model's vectors.

    Args:
        embedder: the loaded model, which tokenizes.
        limits: default limits on the lengths of texts.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits) -> None:
        self._embedder = embedder
        self._limits = limits

    def run(
        self,
        store: Store,
        collection: str,
        searches: Sequence[Search],
        schema: CollectionSchema,
        reader: PartReader,
    ) -> list[Explained]:
        """Run searches, and fetch the data that explains their hits. Blocks for the store.

        Args:
            store: the store.
            collection: name of the collection.
            searches: the validated searches.
            schema: schema of the collection, with the layout and the text key to read by.
            reader: reader of payloads and vectors.
        """
        key = text_key_of(schema.layout, schema.text_key)
        return explain(store, collection, searches, text_key=key, reader=reader)

    def characters(self, searches: Sequence[Explained], schema: CollectionSchema) -> int:
        """Characters of the passages that `explain` tokenizes, in about."""
        hits = (payload or {} for search in searches for payload in search.payloads)
        return sum(len(text_of(schema.layout, payload, schema.text_key) or "") for payload in hits)

    def explain(
        self, queries: Sequence[str | None], searches: Sequence[Explained], schema: CollectionSchema
    ) -> list[list[HitExplanation]]:
        """Explain each hit of each search. Blocks.

        Args:
            queries: the query of each search; None for a search by stored points.
            searches: the result of `run`.
            schema: schema of the collection, with the layout and the text key to read by.
        """
        layout, text_key = schema.layout, schema.text_key
        texts = [[text_of(layout, payload or {}, text_key) for payload in search.payloads] for search in searches]
        of_queries = self._located((query for query in queries if query is not None), self._limits.query)
        longest = _TOKEN_MAX_CHARACTERS * self._limits.passage
        whole = (text for hits in texts for text in hits if text is not None and len(text) <= longest)
        of_passages = self._located(whole, self._limits.passage)
        return [
            [
                self._explanation(
                    explanation,
                    None if query is None else of_queries[query],
                    None if text is None else of_passages.get(text),
                )
                for explanation, text in zip(search.explanations, hits, strict=True)
            ]
            for query, search, hits in zip(queries, searches, texts, strict=True)
        ]

    def _located(self, texts: Iterable[str], max_length: int) -> dict[str, _Tokens]:
        located: dict[str, _Tokens] = {}
        for batch in _batches(dict.fromkeys(texts)):
            for text, placed in zip(batch, self._embedder.place(batch, max_length), strict=True):
                located[text] = _Tokens(text, placed)
        return located

    def _explanation(self, explanation: Explanation, query: _Tokens | None, stored: _Tokens | None) -> HitExplanation:
        passage = stored if stored is not None and stored.fits(explanation) else None
        sparse, colbert = explanation.sparse, explanation.colbert
        return HitExplanation(
            branches=explanation.branches,
            fusion=explanation.fusion,
            sparse=None if sparse is None else [self._sparse(match, passage) for match in sparse],
            colbert=None
            if colbert is None
            else [self._colbert(row, match, query, passage) for row, match in enumerate(colbert)],
        )

    def _sparse(self, match: TokenMatch, passage: _Tokens | None) -> SparseMatch:
        return SparseMatch(
            token=self._embedder.word(match.id),
            id=match.id,
            query=match.query,
            passage=match.passage,
            contribution=match.contribution,
            spans=None if passage is None else _spans(passage.placed, match.id),
        )

    def _colbert(self, row: int, match: RowMatch, query: _Tokens | None, passage: _Tokens | None) -> ColbertMatch:
        return ColbertMatch(
            query=None if query is None else self._word(query, row),
            token=None if passage is None else self._word(passage, match.row),
            row=match.row,
            span=None if passage is None else passage.placed.span(match.row + 1),
            score=match.score,
        )

    def _word(self, tokens: _Tokens, row: int) -> str:
        """The token of a ColBERT row, as written in the text or else in the vocabulary; `<s>` has no row."""
        span = tokens.placed.span(row + 1)
        return self._embedder.word(int(tokens.placed.ids[row + 1])) if span is None else tokens.text[slice(*span)]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and characters + len(text) > _BATCH_MAX_CHARACTERS:
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _spans(placed: PlacedText, token_id: int) -> list[tuple[int, int]]:
    tokens = np.flatnonzero(placed.ids == token_id).tolist()
    return [span for span in map(placed.span, tokens) if span is not None]
