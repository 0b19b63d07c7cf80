"""Queries, or stored points, to the nearest points of a collection, and why each was found.

find the collection -> embed the queries (or read the examples) -> conform -> run -> explain
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from embedder import Embedder, Embedding, InvalidRequest, ModelFailure, Outputs, Priority, Result
from qdrant_sink import (
    Hit,
    Refusal,
    Search,
    SearchOptions,
    Vectors,
    conform_query,
    recommend,
    run,
)
from service.operations.collections import Collections
from service.operations.embed import LengthLimits
from service.operations.explanation import Explainer, HitExplanation
from service.operations.store_access import StoreAccess


@dataclass(frozen=True, slots=True, eq=False)
class Like:
    """Stored points in place of queries: hits are like the positive ones and unlike the negative ones.

    Attributes:
        positive: ids as their callers gave them, at least one.
        negative: ids as their callers gave them.
        id_scope: what derived ids belong to; None for the name of the collection.
    """

    positive: Sequence[int | str]
    negative: Sequence[int | str] = ()
    id_scope: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SearchRequest:
    """What to search for: either queries or `like`.

    Attributes:
        queries: texts.
        like: stored points; None where there are queries.
        collection: by name; None for the default.
        options: how to search.
        explain: whether to say of each hit why it was found.
        text_key: where a plain payload keeps the text that an explanation points into.
    """

    queries: Sequence[str] = ()
    like: Like | None = None
    collection: str | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    explain: bool = False
    text_key: str = "text"


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits of each query.

    Attributes:
        hits: per query, best first.
        tokens: tokens of the queries; 0 for a search by stored points.
        explanations: per query, of each hit; None where none were asked for.
    """

    hits: Sequence[Sequence[Hit]]
    tokens: int
    explanations: Sequence[Sequence[HitExplanation]] | None = None


class SearchOperation:
    """The operation. Usable from any event loop.

    Args:
        embedder: embeds queries.
        store: the access to the store.
        collections: know which may be named, their schema, and which have it.
        limits: on the lengths of texts.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        limits: LengthLimits,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._collections = collections
        self._schema = collections.schema
        self._limits = limits
        self._explainer = Explainer(embedder, collections.schema, limits)

    async def __call__(self, request: SearchRequest) -> SearchResult:
        """Search. All queries are embedded together and sent to the store as one batch.

        Raises:
            WorkerError: the collection is not there or not of this schema, or the model or the store fails.
        """
        name = self._collections.named(request.collection, "collection")
        await self._store.call(lambda: self._collections.catalogue.check_read(name))
        if request.like is not None:
            like = request.like
            search = await self._store.call(lambda: self._alike(request, like, name))
            return await self._answered(request, name, [search], [None], 0)
        results = await self._embedded(request)
        searches = [self._search(request, index, result) for index, result in enumerate(results)]
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return await self._answered(request, name, searches, request.queries, tokens)

    async def _embedded(self, request: SearchRequest) -> list[Result]:
        try:
            return await self._embedder.embed(
                request.queries,
                Outputs.of(request.options.kinds),
                max_length=self._limits.query,
                priority=Priority.QUERY,
            )
        except InvalidRequest as error:
            raise error.at("queries") from None

    def _search(self, request: SearchRequest, index: int, result: Result) -> Search:
        query = f"queries[{index}]"
        if isinstance(result, ModelFailure):
            raise result.at(query)
        search = conform_query(Vectors.of(result), request.options, self._schema)
        if isinstance(search, Refusal):
            raise ModelFailure(search.message).at(query)
        return search

    def _alike(self, request: SearchRequest, like: Like, collection: str) -> Search:
        """Make a search of the vectors of stored points: nothing is embedded."""
        vectors, where = recommend(
            self._store.opened(),
            collection,
            like.positive,
            like.negative,
            scope=like.id_scope or collection,
            kinds=request.options.kinds,
            where=request.options.where,
            field="like",
        )
        search = conform_query(vectors, replace(request.options, where=where), self._schema)
        if isinstance(search, Refusal):
            raise InvalidRequest(f"like: {search.message}")
        return search

    async def _answered(
        self,
        request: SearchRequest,
        collection: str,
        searches: Sequence[Search],
        queries: Sequence[str | None],
        tokens: int,
    ) -> SearchResult:
        """Ask the store, and for what explains its hits if that was asked for."""
        if not request.explain:
            hits = await self._store.call(lambda: run(self._store.opened(), collection, searches))
            return SearchResult(hits, tokens)
        explained = await self._store.call(
            lambda: self._explainer.run(self._store.opened(), collection, searches, request.text_key)
        )
        explanations = await asyncio.to_thread(self._explainer.explain, queries, explained, request.text_key)
        return SearchResult([search.hits for search in explained], tokens, explanations)
