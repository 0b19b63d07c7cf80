"""Pairs of texts to their scores: every text is embedded once, and no more at a time than fits into memory."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from embedder import Embedder, EncodedText, InvalidRequest, ModelFailure, Outputs, Priority, Result
from service.operations.embed import LengthLimits, check_numbers
from service.operations.pair_scores import PairScores, Weights, groups, score


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Pairs of a query and a passage.

    Attributes:
        pairs: two texts each; at least one pair.
        weights: of the weighted means.
        max_query_length: tokens after which a query is cut; None for the limit on queries.
        max_passage_length: tokens after which a passage is cut; None for the limit on passages.

    Raises:
        ValueError: there is no pair, a pair has not two texts, or a limit is below 1.
    """

    pairs: Sequence[Sequence[str]]
    weights: Weights = field(default_factory=Weights)
    max_query_length: int | None = None
    max_passage_length: int | None = None

    def __post_init__(self) -> None:
        """Check what a caller in Python could break; the wire has checked it with better words."""
        if not self.pairs:
            raise ValueError("pairs must have at least one pair")
        for index, pair in enumerate(self.pairs):
            if len(pair) != 2:
                raise ValueError(f"pairs[{index}] must have 2 texts, a query and a passage, got {len(pair)}")
        check_numbers(self.max_query_length, self.max_passage_length)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """The scores of each pair.

    Attributes:
        scores: in the order of the request, scores or why one of the two texts has no vectors.
        tokens: tokens that were embedded; a text that occurs twice counts once per group.
    """

    scores: Sequence[PairScores | ModelFailure]
    tokens: int


class Score:
    """The operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: on the lengths of texts.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits) -> None:
        self._embedder = embedder
        self._limits = limits

    async def __call__(self, request: ScoreRequest) -> ScoreResult:
        """Score all pairs.

        Pairs are embedded in groups, since the ColBERT rows of a long job fit into no memory. They wait for queries as
        passages do.

        Raises:
            InvalidRequest: a text is not valid.
            Overloaded: the queue of the model has no room now.
        """
        encoded = await asyncio.to_thread(self._tokenized, request)
        keyed = [[(text.ids.tobytes(), len(text)) for text in pair] for pair in encoded]
        scores: list[PairScores | ModelFailure] = []
        tokens = 0
        for group in groups(len(request.pairs), keyed.__getitem__, self._embedder.window):
            texts = {text.ids.tobytes(): text for pair in group for text in encoded[pair]}
            try:
                embedded = await self._embedder.embed_tokens(list(texts.values()), Outputs(), priority=Priority.PASSAGE)
            except InvalidRequest as error:
                raise error.at("pairs") from None
            tokens += sum(len(text) for text in texts.values())
            results = dict(zip(texts, embedded, strict=True))
            keys = [[key for key, _ in keyed[pair]] for pair in group]
            scores += await asyncio.to_thread(_scored, keys, results, request.weights)
        return ScoreResult(scores, tokens)

    def _tokenized(self, request: ScoreRequest) -> list[list[EncodedText]]:
        lengths = (
            request.max_query_length or self._limits.query,
            request.max_passage_length or self._limits.passage,
        )
        sides: list[Mapping[str, EncodedText]] = []
        for side, length in enumerate(lengths):
            texts = list(dict.fromkeys(pair[side] for pair in request.pairs))
            sides.append(dict(zip(texts, self._embedder.tokenize(texts, length), strict=True)))
        return [[texts[text] for texts, text in zip(sides, pair, strict=True)] for pair in request.pairs]


def _scored(
    pairs: Sequence[Sequence[bytes]], results: Mapping[bytes, Result], weights: Weights
) -> list[PairScores | ModelFailure]:
    return [_score(results[query], results[passage], weights) for query, passage in pairs]


def _score(query: Result, passage: Result, weights: Weights) -> PairScores | ModelFailure:
    if isinstance(query, ModelFailure):
        return query.at("query")
    if isinstance(passage, ModelFailure):
        return passage.at("passage")
    return score(query, passage, weights)
