"""From a search request and a query's vectors to what the store is asked."""

from __future__ import annotations

from embedder.errors import ModelFailure
from embedder.forward import Result
from qdrant_sink.conformance import Refusal, conform_query
from qdrant_sink.schema import CollectionSchema
from qdrant_sink.search import Quantization, Search
from service.requests import SearchRequest


def search_of(request: SearchRequest, index: int, result: Result, schema: CollectionSchema) -> Search:
    """What the store is asked for a query, proven to be fit for the collection.

    Args:
        request: how to search.
        index: of the query, for errors.
        result: what the model gave for it.
        schema: of the collection.

    Raises:
        ModelFailure: the model could not embed the query, or its vectors cannot be asked with.
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
        quantization=Quantization(**request.params.quantization.model_dump()),
        with_payload=request.with_payload,
        with_vectors=request.with_vectors,
        group_by=request.group_by,
        group_size=request.group_size,
    )
    proven = conform_query(search, schema, index=index)
    if isinstance(proven, Refusal):
        raise ModelFailure(f"queries[{index}]: {proven.message}")
    return proven
