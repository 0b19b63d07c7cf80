"""Explanations of hits: matched tokens by name, and where they stand in the stored text.

A stored text may not be what its vectors were made of: rows were pooled, the text was cut, another model embedded
it. Where its tokens cannot be those of the vectors, nothing is said of them.
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
"""Characters whose tokens are located at a time: the tokenizer takes several hundred bytes per token meanwhile."""

_TOKEN_MAX_CHARACTERS = 64
"""Characters per token that the model takes: a stored text with more was surely cut, and is not tokenized."""


@dataclass(frozen=True, slots=True)
class SparseMatch:
    """A token that query and passage share.

    Attributes:
        token: for a person to read.
        id: of the token.
        query: its weight in the query.
        passage: its weight in the passage.
        contribution: the product of both, its part of the inner product.
        spans: where it stands in the stored text, in characters; None if that is unknown.
    """

    token: str
    id: int
    query: float
    passage: float
    contribution: float
    spans: Sequence[tuple[int, int]] | None


@dataclass(frozen=True, slots=True)
class ColbertMatch:
    """A token of the query and the row of the passage that is nearest to it.

    Attributes:
        query: the token of the query; None in a search by stored points.
        token: the token of the passage; None if it is unknown.
        row: index of the passage's ColBERT row.
        span: where the token stands in the stored text, in characters; None if that is unknown.
        score: inner product of the two rows.
    """

    query: str | None
    token: str | None
    row: int
    span: tuple[int, int] | None
    score: float


@dataclass(frozen=True, slots=True)
class HitExplanation:
    """Why a hit was found.

    Attributes:
        branches: rank and score in each branch; None where it was not among the candidates.
        fusion: what each branch contributed to the fused score; None where the score is not fused or does not add up.
        sparse: what matched, the largest contribution first; None if the query has no sparse weights.
        colbert: per row of the query; None if the query or the point has no rows.
    """

    branches: Mapping[Kind, BranchRank | None]
    fusion: Mapping[Kind, float] | None
    sparse: Sequence[SparseMatch] | None
    colbert: Sequence[ColbertMatch] | None


@dataclass(frozen=True, slots=True, eq=False)
class _Tokens:
    """A text and where its tokens stand."""

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
        limits: on the lengths of texts.
    """

    def __init__(self, embedder: Embedder, schema: CollectionSchema, limits: LengthLimits) -> None:
        self._embedder = embedder
        self._layout = schema.layout
        self._halved = schema.colbert.datatype == "float16"
        self._limits = limits

    def run(self, store: Store, collection: str, searches: Sequence[Search], text_key: str) -> list[Explained]:
        """Run the searches, and ask for what explains their hits. Blocks for the store.

        Args:
            store: the store.
            collection: by name.
            searches: conformant.
            text_key: where a plain payload keeps the text.
        """
        key = text_key_of(self._layout, text_key)
        return explain(store, collection, searches, text_key=key, halved=self._halved)

    def explain(
        self, queries: Sequence[str | None], searches: Sequence[Explained], text_key: str
    ) -> list[list[HitExplanation]]:
        """Explain each hit of each search. Blocks.

        Args:
            queries: the text of each search; None if it is by stored points.
            searches: what `run` gave.
            text_key: where a plain payload keeps the text.
        """
        texts = [[text_of(self._layout, payload or {}, text_key) for payload in search.payloads] for search in searches]
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
        """The token of a ColBERT row as it stands in the text, or by its name; `<s>` has no row."""
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
