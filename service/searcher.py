"""Searches of jobs: from texts, or from stored points, to hits and what explains them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from embedder.batching import Priority
from embedder.embedder import Embedder
from embedder.errors import InvalidRequest, ModelFailure
from embedder.forward import Result
from embedder.vectors import Embedding, Kind, Outputs
from qdrant_sink.conformance import Refusal, conform_query
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Hit, Rescoring, Search
from service.examples import examples
from service.explaining import Explainer, add_explanations
from service.naming import named
from service.requests import Like, SearchRequest
from service.responses import Json, search_answer
from service.store_calls import StoreCalls


class Searcher:
    """Answers the searches of one model's collections. Usable from any event loop.

    Args:
        embedder: embeds queries.
        calls: to the store.
        find: raises a `StoreError` unless a collection is there with the model's schema. Blocks.
        schema: of the collections.
        model: its name, for answers.
        query_length: tokens after which queries are cut.
        passage_length: tokens after which passages are cut unless a job says otherwise.
    """

    def __init__(
        self,
        embedder: Embedder,
        calls: StoreCalls,
        find: Callable[[str], None],
        schema: CollectionSchema,
        *,
        model: str,
        query_length: int,
        passage_length: int,
    ) -> None:
        self._embedder = embedder
        self._calls = calls
        self._find = find
        self._schema = schema
        self._model = model
        self._query_length = query_length
        self._explainer = Explainer(embedder, schema, query_length=query_length, passage_length=passage_length)

    async def search(self, request: SearchRequest, collection: str) -> Json:
        """The answer, whatever its size: all queries are embedded together and sent to the store as one batch.

        Raises:
            WorkerError: the collection is not there or not of this schema, or the model or the store fails.
        """
        kinds = frozenset([*request.using, *([request.rerank] if request.rerank else [])])
        await self._calls.call(lambda: self._find(collection))
        if request.like is not None:
            return await self._alike(request, request.like, collection, kinds)
        with named("queries"):
            results = await self._embedder.embed(
                request.queries, Outputs.of(kinds), max_length=self._query_length, priority=Priority.QUERY
            )
        searches = [search_of(request, index, result, self._schema) for index, result in enumerate(results)]
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return await self._found(request, collection, searches, request.queries, tokens)

    async def _alike(self, request: SearchRequest, like: Like, collection: str, kinds: frozenset[Kind]) -> Json:
        """Search by the vectors of stored points: nothing is embedded."""

        def search() -> Search:
            embedding, where = examples(self._calls.opened(), collection, like, kinds, request.filter)
            return search_of(request.model_copy(update={"filter": where}), 0, embedding, self._schema)

        return await self._found(request, collection, [await self._calls.call(search)], [None], 0)

    async def _found(
        self,
        request: SearchRequest,
        collection: str,
        searches: Sequence[Search],
        queries: Sequence[str | None],
        tokens: int,
    ) -> Json:
        """What the store finds, and why if that was asked for."""

        def ask(asked: Sequence[Search]) -> list[list[Hit]]:
            return self._calls.opened().query(collection, asked)

        if not request.explain:
            hits = await self._calls.call(lambda: ask(searches))
            return await asyncio.to_thread(search_answer, hits, model=self._model, tokens=tokens)
        found = await self._calls.call(lambda: self._explainer.found(searches, request.text_key, ask))
        told = await asyncio.to_thread(self._explainer.told, queries, found, request.text_key)
        answer = search_answer([one.hits for one in found], model=self._model, tokens=tokens)
        add_explanations(answer, told)
        return answer


def search_of(request: SearchRequest, index: int, result: Result, schema: CollectionSchema) -> Search:
    """What the store is asked for a query, proven to be fit for the collection.

    Args:
        request: how to search.
        index: of the query, for errors.
        result: what the model gave for it.
        schema: of the collection.

    Raises:
        ModelFailure: the model could not embed the query, or its vectors cannot be asked with.
        InvalidRequest: likewise of stored examples.
    """
    if isinstance(result, ModelFailure):
        raise type(result)(f"queries[{index}]: {result.message}")
    search = Search(
        dense=result.dense,
        sparse=result.sparse,
        colbert=result.colbert,
        using=tuple(request.using),
        fusion=request.fusion,
        rrf_k=request.rrf_k,
        weights=None if request.weights is None else tuple(request.weights),
        prefetch=request.prefetch,
        rerank=request.rerank,
        limit=request.limit,
        offset=request.offset,
        where=request.filter,
        score_threshold=request.score_threshold,
        hnsw_ef=request.params.hnsw_ef,
        exact=request.params.exact,
        indexed_only=request.params.indexed_only,
        rescoring=Rescoring(**request.params.quantization.model_dump()),
        with_payload=request.with_payload,
        with_vectors=request.with_vectors,
        group_by=request.group_by,
        group_size=request.group_size,
    )
    proven = conform_query(search, schema, index=index)
    if isinstance(proven, Refusal):
        if request.like is not None:
            raise InvalidRequest(f"like: {proven.message}")
        raise ModelFailure(f"queries[{index}]: {proven.message}")
    return proven
