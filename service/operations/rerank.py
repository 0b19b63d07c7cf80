"""The rerank operation: it ranks documents by the weighted mean of their scores against one query.

    mean       (w_dense * dense + w_sparse * sparse + w_colbert * colbert) / (w_dense + w_sparse + w_colbert)
    relevance  1 / (1 + exp(-10 * (mean - 0.4)))

The three scores are those of `pair_scores`. The relevance is strictly increasing in the mean, so it gives the same
order, and lies in (0, 1). Its constants follow a measurement; docs/rerank.md has the figures.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from embedder import (
    Embedder,
    Embedding,
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
from service.operations.embed import LengthLimits, check_length, check_numbers
from service.operations.pair_scores import Weights, weighted_mean
from service.operations.vector_memory import VectorMemory

RELEVANCE_STEEPNESS: Final = 10.0
"""Steepness of the relevance: a mean that is 0.1 higher multiplies the odds by e."""

RELEVANCE_MIDPOINT: Final = 0.4
"""The mean whose relevance is 0.5; it separates right from wrong passages best with weights that are equal."""

RANKED_BYTES: Final = 512
"""Memory of a document in bytes beside its text and vectors, with its entries in the tables of the ranking."""

_PORTION_MAX_CHARACTERS: Final = 32_768
"""Maximum characters of the documents that are tokenized while the model computes the documents before them."""


@dataclass(frozen=True, slots=True, eq=False)
class RerankRequest:
    """A query, and the documents to rank by their relevance to it.

    Attributes:
        query: the query.
        documents: the documents, at least one.
        weights: weights of the mean. A kind of vector with weight 0 is not computed.
        max_document_length: tokens beyond which a document is truncated; None for the limit of passages.
        refuse_truncation: whether truncation of the query or of a document is an error.
        label: name of the list of documents in errors.

    Raises:
        ValueError: there are no documents, or the limit is below 1.
    """

    query: str
    documents: Sequence[str]
    weights: Weights
    max_document_length: int | None = None
    refuse_truncation: bool = False
    label: str = "documents"

    def __post_init__(self) -> None:
        """Validate for callers in Python; requests in JSON are validated before, with better messages."""
        if not self.documents:
            raise ValueError(f"{self.label} must have at least 1 item, got 0")
        check_numbers(self.max_document_length)


@dataclass(frozen=True, slots=True)
class RankedDocument:
    """A document in the ranking.

    Attributes:
        index: index of the document in the request.
        mean: weighted mean of its scores.
    """

    index: int
    mean: float

    @property
    def relevance(self) -> float:
        """The relevance, from 0 to 1. It is 1 in the precision of a float above a mean of about 4."""
        return relevance(self.mean)


@dataclass(frozen=True, slots=True, eq=False)
class RerankResult:
    """The ranking of all documents.

    Attributes:
        ranking: the documents, best first; equal means are in the order of the request.
        tokens: number of embedded tokens; a repeated document counts once.
    """

    ranking: Sequence[RankedDocument]
    tokens: int


class Rerank:
    """The rerank operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        limits: on the lengths of texts.
        memory: the memory that requests may hold together.
    """

    def __init__(self, embedder: Embedder, limits: LengthLimits, *, memory: MemoryBudget) -> None:
        self._embedder = embedder
        self._limits = limits
        self._memory = memory

    async def __call__(self, request: RerankRequest) -> RerankResult:
        """Rank all documents.

        The query and each distinct document are embedded once. Documents are tokenized, computed and scored in
        portions which overlap, and only so many at a time that their ColBERT rows fit into memory. All have the
        priority of passages.

        Raises:
            InvalidRequest: a text is invalid, or is truncated against the request.
            ModelFailure: the model could not encode a text.
            Overloaded: the queue of the model is full, or the vectors of a portion do not fit into memory now.
        """
        with self._memory.joined() as held:
            held.grow(len(request.documents) * RANKED_BYTES)
            return await _Ranking(self._embedder, self._limits, request, held).run()


def relevance(mean: float) -> float:
    """The relevance of a weighted mean, from 0 to 1."""
    exponent = RELEVANCE_STEEPNESS * (mean - RELEVANCE_MIDPOINT)
    power = math.exp(-abs(exponent))  # which cannot overflow
    return (1 if exponent >= 0 else power) / (1 + power)


class _Ranking:
    """The work of one request."""

    def __init__(self, embedder: Embedder, limits: LengthLimits, request: RerankRequest, memory: Reservation) -> None:
        self._embedder = embedder
        self._memory = memory
        self._vectors = VectorMemory(embedder.hidden_size, embedder.colbert_size)
        self._limits = limits
        self._request = request
        self._outputs = Outputs.of(request.weights.kinds)
        self._first = {text: index for index, text in reversed(list(enumerate(request.documents)))}
        self._tokens = 0

    async def run(self) -> RerankResult:
        documents = self._request.documents
        means = await self._means()
        ranking = [RankedDocument(index, means[text]) for index, text in enumerate(documents)]
        ranking.sort(key=lambda document: -document.mean)  # a stable sort, so equal means keep their order
        return RerankResult(ranking, self._tokens)

    async def _means(self) -> dict[str, float]:
        """The weighted mean of each distinct document. The query is embedded in one job with the first documents."""
        query = await text_threads(len(self._request.query)).run(self._tokenized_query)
        window = max(1, self._embedder.window - len(query))
        embedded_query: asyncio.Future[Embedding] = asyncio.get_running_loop().create_future()
        self._memory.grow(self._vectors.of([len(query)], self._outputs))
        waiting: list[asyncio.Task[tuple[dict[str, float], int]]] = []
        means: dict[str, float] = {}
        held = 0
        self._tokens = len(query)
        try:
            for portion in _portions(list(dict.fromkeys(self._request.documents))):
                characters = sum(map(len, portion))
                threads = text_threads(characters)
                encoded = await threads.run(partial(self._tokenized, portion), characters=characters)
                for texts, tokenized in _within_window(portion, encoded, window):
                    size = sum(map(len, tokenized))
                    self._tokens += size
                    while waiting and held + size > window:
                        scored, released = await waiting.pop(0)
                        means |= scored
                        held -= released
                    held += size
                    self._memory.grow(self._vectors.max_bytes(len(texts), size, self._outputs))
                    work = self._scored(embedded_query, texts, tokenized, None if means or waiting else query)
                    waiting.append(asyncio.create_task(work))
            for task in waiting:
                means |= (await task)[0]
            return means
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    def _tokenized_query(self) -> EncodedText:
        limit = self._limits.query
        [encoded] = self._encoded([self._request.query], limit, "query")
        if self._request.refuse_truncation:
            check_length("query", encoded, limit, "QUERY_MAX_LENGTH")
        return encoded

    def _tokenized(self, texts: Sequence[str]) -> list[EncodedText]:
        limit = self._request.max_document_length or self._limits.passage
        encoded = self._encoded(texts, limit, self._request.label)
        if self._request.refuse_truncation:
            for text, tokens in zip(texts, encoded, strict=True):
                check_length(self._field(text), tokens, limit, "PASSAGE_MAX_LENGTH")
        return encoded

    def _encoded(self, texts: Sequence[str], limit: int, label: str) -> list[EncodedText]:
        try:
            return self._embedder.tokenize(texts, limit)
        except InvalidRequest as error:
            raise error.at(label) from None

    async def _scored(
        self,
        embedded_query: asyncio.Future[Embedding],
        texts: Sequence[str],
        encoded: Sequence[EncodedText],
        query: EncodedText | None,
    ) -> tuple[dict[str, float], int]:
        """Embed and score documents, and give the memory of their vectors back.

        Args:
            embedded_query: the query, which the first job embeds and the others wait for.
            texts: the documents.
            encoded: their tokens.
            query: the query's tokens in the first job, None in others.

        Returns:
            The weighted means, and the number of tokens of the documents.
        """
        results = await self._embed(encoded if query is None else [query, *encoded])
        if query is not None:
            first, *results = results
            if isinstance(first, ModelFailure):
                raise first.at("query")
            embedded_query.set_result(first)
        embedded = dict(zip(texts, results, strict=True))
        query_vectors = await asyncio.shield(embedded_query)
        threads = text_threads(sum(map(len, texts)))
        means = await threads.run(lambda: self._compared(query_vectors, embedded))
        size = sum(map(len, encoded))
        self._memory.shrink(self._vectors.max_bytes(len(texts), size, self._outputs))
        return means, size

    def _compared(self, query: Embedding, embedded: Mapping[str, Result]) -> dict[str, float]:
        means = {}
        for text, document in embedded.items():
            check_cancelled()
            if isinstance(document, ModelFailure):
                raise document.at(self._field(text))
            means[text] = weighted_mean(query, document, self._request.weights)
        return means

    async def _embed(self, encoded: Sequence[EncodedText]) -> list[Result]:
        try:
            return await self._embedder.embed_tokens(encoded, self._outputs, priority=Priority.PASSAGE)
        except InvalidRequest as error:
            raise error.at(self._request.label) from None

    def _field(self, text: str) -> str:
        return f"{self._request.label}[{self._first[text]}]"


def _portions(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Consecutive texts of at most `_PORTION_MAX_CHARACTERS` together; a longer text is alone."""
    first, size = 0, 0
    for index, text in enumerate(texts):
        if index > first and size + len(text) > _PORTION_MAX_CHARACTERS:
            yield texts[first:index]
            first, size = index, 0
        size += len(text)
    yield texts[first:]


def _within_window(
    texts: Sequence[str], encoded: Sequence[EncodedText], window: int
) -> Iterator[tuple[Sequence[str], Sequence[EncodedText]]]:
    """Split a portion whose tokens exceed the window; a text that does so alone is by itself."""
    first, size = 0, 0
    for index, text in enumerate(encoded):
        if index > first and size + len(text) > window:
            yield texts[first:index], encoded[first:index]
            first, size = index, 0
        size += len(text)
    yield texts[first:], encoded[first:]
