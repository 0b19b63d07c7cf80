"""From pairs of texts to their scores: embeds every text once, and no more at once than fits into memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from embedder.batching import Priority
from embedder.embedder import Embedder
from embedder.errors import ModelFailure
from embedder.forward import Result
from embedder.tokenizer import EncodedText
from embedder.vectors import Outputs
from service.naming import named
from service.scoring import ScoreKind, Weights, groups, score

Scores = dict[ScoreKind, float] | ModelFailure


class Scorer:
    """Scores pairs with one model."""

    def __init__(self, embedder: Embedder) -> None:
        self._embedder = embedder

    async def scores(
        self, pairs: Sequence[Sequence[str]], weights: Weights, *, query_length: int, passage_length: int
    ) -> tuple[list[Scores], int]:
        """The scores of each pair, or why one of its texts has no vectors; and the tokens that were computed.

        Pairs are embedded in groups, since the ColBERT rows of a long job fit into no memory. They wait for
        queries as passages do.

        Args:
            pairs: a query and a passage each.
            weights: of the means.
            query_length: tokens after which a query is cut.
            passage_length: likewise of a passage.

        Raises:
            InvalidRequest, Overloaded: as `Embedder.embed`.
        """
        encoded = await asyncio.to_thread(self._tokenized, pairs, (query_length, passage_length))
        keyed = [[(text.ids.tobytes(), len(text)) for text in pair] for pair in encoded]
        scores: list[Scores] = []
        tokens = 0
        for group in groups(len(pairs), keyed.__getitem__, self._embedder.window):
            texts = {text.ids.tobytes(): text for pair in group for text in encoded[pair]}
            with named("pairs"):
                found = await self._embedder.embed_tokens(list(texts.values()), Outputs(), priority=Priority.PASSAGE)
            tokens += sum(len(text) for text in texts.values())
            results = dict(zip(texts, found, strict=True))
            keys = [[key for key, _ in keyed[pair]] for pair in group]
            scores += await asyncio.to_thread(_scored, keys, results, weights)
        return scores, tokens

    def _tokenized(self, pairs: Sequence[Sequence[str]], lengths: tuple[int, int]) -> list[list[EncodedText]]:
        sides: list[Mapping[str, EncodedText]] = []
        for side, length in enumerate(lengths):
            texts = list(dict.fromkeys(pair[side] for pair in pairs))
            sides.append(dict(zip(texts, self._embedder.tokenize(texts, length), strict=True)))
        return [[texts[text] for texts, text in zip(sides, pair, strict=True)] for pair in pairs]


def _scored(pairs: Sequence[Sequence[bytes]], results: Mapping[bytes, Result], weights: Weights) -> list[Scores]:
    return [_score(results[query], results[passage], weights) for query, passage in pairs]


def _score(query: Result, passage: Result, weights: Weights) -> Scores:
    if isinstance(query, ModelFailure):
        return type(query)(f"query: {query.message}")
    if isinstance(passage, ModelFailure):
        return type(passage)(f"passage: {passage.message}")
    return score(query, passage, weights)
