"""Rankings of texts by their relevance to a query, for frameworks."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bge_m3_qdrant_client.answers import RerankAnswer
from bge_m3_qdrant_client.async_client import AsyncClient
from bge_m3_qdrant_client.options import RerankOptions
from bge_m3_qdrant_client.sync_client import Client

Ranking = list[tuple[int, float]]
"""Indices of texts with their relevance from 0 to 1, best first."""


class TextRanking:
    """Rankings of texts by a worker.

    Args:
        client: the client that requests them.
        async_client: the client of the method that is awaited; without one it runs `client` in a thread.
        weights: the weights of dense, sparse and ColBERT scores; None for those of the worker.
        max_tokens_per_doc: tokens beyond which a text is truncated; None for the worker's limit of passages.

    Every method raises `ClientError`. No texts have an empty ranking, without a request.
    """

    def __init__(
        self,
        client: Client,
        async_client: AsyncClient | None = None,
        *,
        weights: Sequence[float] | None = None,
        max_tokens_per_doc: int | None = None,
    ) -> None:
        self._client = client
        self._async_client = async_client
        self._weights = weights
        self._max_tokens_per_doc = max_tokens_per_doc

    def rank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> Ranking:
        """Rank texts.

        Args:
            query: the query.
            texts: the texts.
            top_n: number of texts in the ranking; None for all.
        """
        return _ranking(self._client.rerank(query, texts, **self._options(top_n))) if texts else []

    async def arank(self, query: str, texts: Sequence[str], top_n: int | None = None) -> Ranking:
        """See `rank`."""
        if self._async_client is None:
            return await asyncio.to_thread(self.rank, query, texts, top_n)
        return _ranking(await self._async_client.rerank(query, texts, **self._options(top_n))) if texts else []

    def _options(self, top_n: int | None) -> RerankOptions:
        return {"top_n": top_n, "weights": self._weights, "max_tokens_per_doc": self._max_tokens_per_doc}


def _ranking(answer: RerankAnswer) -> Ranking:
    return [(result.index, result.relevance_score) for result in answer.results]
