"""The score operation: it scores pairs of texts in groups that fit into memory, and embeds each distinct text once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from embedder import (
    Embedder,
    EncodedText,
    InvalidRequest,
    ModelFailure,
    Outputs,
    Priority,
    Result,
    check_cancelled,
    text_threads,
)
from service.memory_budget import MemoryBudget, Reservation
from service.operations.embed import LengthLimits, check_numbers
from service.operations.pair_scores import PairScores, Weights, groups, score
from service.operations.vector_memory import TEXT_BYTES, VectorMemory


@dataclass(frozen=True, slots=True, eq=False)
class ScoreRequest:
    """Pairs of a query and a passage to score.

    Attributes:
        pairs: at least one pair of two texts.
        weights: weights of the weighted means.
        max_query_length: tokens beyond which a query is truncated; None for the limit of queries.
        max_passage_length: tokens beyond which a passage is truncated; None for the limit of passages.

    Raises:
        ValueError: there are no pairs, a pair does not have two texts, a limit is below 1, or the weights of dense and
            sparse are both 0.
    """

    pairs: Sequence[Sequence[str]]
    weights: Weights = field(default_factory=Weights)
    max_query_length: int | None = None
    max_passage_length: int | None = None

    def __post_init__(self) -> None:
        """Validate for callers in Python; requests in JSON are validated before, with better messages."""
        if not self.pairs:
            raise ValueError("pairs must have at least 1 item, got 0")
        for index, pair in enumerate(self.pairs):
            if len(pair) != 2:
                raise ValueError(f"pairs[{index}] must have 2 texts, a query and a passage, got {len(pair)}")
        if self.weights.dense == self.weights.sparse == 0:
            raise ValueError(
                "weights must be above 0 for dense or sparse, got 0 for both: their weighted mean is a score"
            )
        check_numbers(self.max_query_length, self.max_passage_length)


@dataclass(frozen=True, slots=True, eq=False)
class ScoreResult:
    """The scores of all pairs.

    Attributes:
        scores: the scores of each pair, or the failure of one of its texts, in the order of the request.
        tokens: number of embedded tokens; a repeated text counts once per group.
    """

    scores: Sequence[PairScores | ModelFailure]
    tokens: int


class Score:
    """The score operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: on the lengths of texts.
        memory: the memory that requests may hold together.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits, *, memory: MemoryBudget) -> None:
        self._embedder = embedder
        self._limits = limits
        self._memory = memory
        self._vectors = VectorMemory(embedder.hidden_size, embedder.colbert_size)

    async def __call__(self, request: ScoreRequest) -> ScoreResult:
        """Score all pairs.

        Pairs are embedded in groups, since the ColBERT rows of a long job do not fit into memory. Their texts have the
        priority of passages.

        Raises:
            InvalidRequest: a text is invalid.
            Overloaded: the queue of the model is full, or the vectors of a group do not fit into memory now.
        """
        with self._memory.joined() as held:
            return await self._scored(request, held)

    async def _scored(self, request: ScoreRequest, held: Reservation) -> ScoreResult:
        held.grow(2 * len(request.pairs) * TEXT_BYTES)
        characters = sum(len(text) for pair in request.pairs for text in pair)
        threads = text_threads(characters)
        encoded = await threads.run(lambda: self._tokenized(request), characters=characters)
        keyed = [[(text.ids.tobytes(), len(text)) for text in pair] for pair in encoded]
        scores: list[PairScores | ModelFailure] = []
        tokens = 0
        for group in groups(len(request.pairs), keyed.__getitem__, self._embedder.window):
            texts = {text.ids.tobytes(): text for pair in group for text in encoded[pair]}
            size = self._vectors.of([len(text) for text in texts.values()], Outputs())
            held.grow(size)
            try:
                embedded = await self._embedder.embed_tokens(list(texts.values()), Outputs(), priority=Priority.PASSAGE)
            except InvalidRequest as error:
                raise error.at("pairs") from None
            tokens += sum(len(text) for text in texts.values())
            results = dict(zip(texts, embedded, strict=True))
            keys = [[key for key, _ in keyed[pair]] for pair in group]
            scores += await threads.run(partial(_scored, keys, results, request.weights))
            held.shrink(size)
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
    scores = []
    for query, passage in pairs:
        check_cancelled()
        scores.append(_score(results[query], results[passage], weights))
    return scores


def _score(query: Result, passage: Result, weights: Weights) -> PairScores | ModelFailure:
    if isinstance(query, ModelFailure):
        return query.at("query")
    if isinstance(passage, ModelFailure):
        return passage.at("passage")
    return score(query, passage, weights)
