"""The search operation: the points nearest to queries or to stored points, with explanations on request.

check the collection while the queries are embedded (or read the examples) -> conform -> run -> explain
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, TypeVar

from embedder import (
    Cancellation,
    Embedder,
    Embedding,
    InvalidRequest,
    Kind,
    ModelFailure,
    Outputs,
    Priority,
    Result,
    WorkerError,
    is_quick,
    most_tokens,
    text_threads,
)
from qdrant_sink import (
    Admit,
    Explained,
    Hit,
    PartReader,
    PartSizes,
    Recognised,
    Refusal,
    Search,
    SearchOptions,
    SearchPage,
    StoreRejected,
    Taken,
    Vectors,
    check_kinds,
    conform_query,
    default_branches,
    parse_filter,
    recommend,
    search_pages,
    with_branches,
)
from service.memory_budget import MemoryBudget, Reservation
from service.operations.collections import Collections
from service.operations.embed import Embed, EmbedRequest, LengthLimits
from service.operations.explanation import Explainer, HitExplanation
from service.operations.model_check import ModelCheck, ModelWarning
from service.operations.store_access import StoreAccess
from service.operations.vector_memory import VectorMemory
from service.validation import invalid_field

T = TypeVar("T")

FILTER_COPIES_MAX_BYTES: Final = 16_777_216
"""Maximum size of a filter's copies in bytes: every branch of every query has one, and evaluates it."""

CANDIDATES_MAX: Final = 1_000_000
"""Maximum candidates of a grouped or explained request, which a worker can hold in memory beside the model."""

EXPLANATION_TOKEN_BYTES: Final = 1024
"""Memory of a token that a hit shares with its query, in an explanation and in the answer, in bytes."""

EXPLAINED_HITS_MAX: Final = 1000
"""Maximum explained hits of a request, each of which is tokenized again."""

EXPLAINED_ROWS_HITS_MAX: Final = 100
"""Maximum explained hits of a request that fetches ColBERT rows; 1023 rows of 1024 numbers take 32 MB as lists."""


@dataclass(frozen=True, slots=True, eq=False)
class Like:
    """Stored points instead of queries. Hits are similar to the positive and dissimilar to the negative points.

    Attributes:
        positive: ids as the caller gave them, at least one.
        negative: ids as the caller gave them.
        id_scope: name from which ids are derived; None for the name of the collection.
    """

    positive: Sequence[int | str]
    negative: Sequence[int | str] = ()
    id_scope: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SearchRequest:
    """A search either by queries or by `like`.

    Attributes:
        queries: the queries; empty with `like`.
        like: stored points; None with queries.
        collection: name of the collection; None for the default.
        options: options of the search.
        explain: whether to explain each hit.
        text_key: key of the text in a plain payload, for the spans of explanations; None for that of the collection.
    """

    queries: Sequence[str] = ()
    like: Like | None = None
    collection: str | None = None
    options: SearchOptions = field(default_factory=SearchOptions)
    explain: bool = False
    text_key: str | None = None


@dataclass(frozen=True, slots=True, eq=False)
class SearchResult:
    """The hits of each query.

    Attributes:
        hits: the hits of each query, best first.
        tokens: number of tokens of the queries; 0 for a search by stored points.
        explanations: the explanation of each hit of each query; None if not requested.
        unranked: number of candidates of each query that have no ColBERT rows, and therefore no score; empty without
            reranking.
        warnings: kinds of the search whose stored vectors are those of another model.
        taken: what was taken from the collection rather than from the config.
    """

    hits: Sequence[Sequence[Hit]]
    tokens: int
    explanations: Sequence[Sequence[HitExplanation]] | None = None
    unranked: Sequence[int] = ()
    warnings: Sequence[ModelWarning] = ()
    taken: Taken = field(default_factory=Taken)


@dataclass(frozen=True, slots=True, eq=False)
class _Settled:
    """A search in a collection that is recognised and checked.

    Attributes:
        request: the request with its branches.
        recognised: what the collection has.
        warnings: kinds of the search whose stored vectors are those of another model.
    """

    request: SearchRequest
    recognised: Recognised
    warnings: Sequence[ModelWarning]


class SearchOperation:
    """The search operation. Usable from any event loop.

    Args:
        embedder: the loaded model.
        store: access to the store.
        collections: the collections of the worker.
        model_check: check of the model of collections.
        limits: default limits on the lengths of texts.
        memory: the memory that requests may hold together.
    """

    def __init__(
        self,
        embedder: Embedder,
        store: StoreAccess,
        collections: Collections,
        model_check: ModelCheck,
        limits: LengthLimits,
        *,
        memory: MemoryBudget,
    ) -> None:
        self._embedder = embedder
        self._store = store
        self._collections = collections
        self._model_check = model_check
        self._limits = limits
        self._explainer = Explainer(embedder, limits)
        self._memory = memory
        self._embed_all = Embed(embedder, limits, memory=memory)
        self._vectors = VectorMemory(embedder.hidden_size, embedder.colbert_size)
        self._sizes = PartSizes()

    async def __call__(self, request: SearchRequest, admit: Admit = lambda _size, _numbers: None) -> SearchResult:
        """Search. All queries are embedded together and sent to the store as one batch.

        If the store refuses the search because the name leads to another collection meanwhile, it is done again there.
        When the call ends, also by its cancellation, threads that still work for it begin nothing new.

        Args:
            request: the request.
            admit: check of the size of the answer, which is called before the search and while hits are read, also in
                other threads.

        Raises:
            WorkerError: a filter is needed and missing, the collection lacks a kind of vector, too many points would be
                read, the collection does not exist or has another schema, the model or the store fails, or `admit`
                raised.
        """
        with Cancellation(), self._memory.joined() as held:
            # What explained hits are read with need not be in the answer, and only takes memory.
            if request.explain:
                reader = PartReader(self._sizes, hold=held.grow)
            else:
                reader = PartReader(self._sizes, admit=admit, hold=held.grow)
            return await self._searched(request, reader, admit, held)

    async def _searched(
        self, request: SearchRequest, reader: PartReader, admit: Admit, held: Reservation
    ) -> SearchResult:
        name = self._collections.named(request.collection, "collection")
        self._collections.check_filter(request.options.where)
        check_kinds(request.options, self._collections.wanted.kinds)
        _check_size(request, branches=len(request.options.using) or 1)  # what no collection changes
        settled, results = await self._embedded(request, name, admit, held)
        try:
            return await self._answer(settled, results, reader)
        except StoreRejected:
            if not await self._has_changed(settled):
                raise
        settled, results = await self._embedded(request, name, admit, held)
        return await self._answer(settled, results, reader)

    async def _has_changed(self, settled: _Settled) -> bool:
        """Whether the name leads to a collection of another schema by now, after an alias was moved for example."""
        recognised = await self._collections.recognised(settled.recognised.collection)
        return recognised.schema != settled.recognised.schema

    async def _answer(self, settled: _Settled, results: Sequence[Result], reader: PartReader) -> SearchResult:
        """Search with the embedded queries, or with stored points if the request has them."""
        request = settled.request
        if request.like is not None:
            like = request.like
            search = await self._store.call(lambda: self._search_by_points(settled, like, reader))
            return await self._run(settled, [search], [None], 0, reader)
        searches = [self._search(settled, index, result) for index, result in enumerate(results)]
        tokens = sum(result.tokens for result in results if isinstance(result, Embedding))
        return await self._run(settled, searches, request.queries, tokens, reader)

    async def _settled(self, request: SearchRequest, name: str, admit: Admit) -> _Settled:
        """Recognise the collection, and check whether it has the vectors of the model and the answer has room."""
        recognised = await self._collections.recognised(name)
        settled = _with_branches_in(request, recognised)
        await self._check_vectors(settled, recognised, admit)
        schema = recognised.read_by(settled.text_key)
        warnings = await self._model_check.warnings(name, schema, schema.text_key, settled.options.kinds)
        return _Settled(settled, recognised, warnings)

    async def _check_vectors(self, request: SearchRequest, recognised: Recognised, admit: Admit) -> None:
        """Check that the dense vectors of all hits fit into the answer, if there are as many points.

        Only a search that is sure to find as many points as it may can be refused before it.
        """
        options, dense = request.options, recognised.schema.dense
        is_sure = "dense" in options.using and not options.indexed_only
        if dense is None or not is_sure or options.score_threshold is not None or options.group_by is not None:
            return
        numbers = (len(request.queries) or 1) * dense.size if "dense" in options.with_vectors else 0
        try:
            admit(0, numbers * options.limit)
        except WorkerError:
            collection = recognised.collection
            having, lacking = await self._indexed(collection, lambda: self._count_dense(recognised, options.where))
            # Hits are as many as the points with a dense vector at least, and those without one may be among them.
            admit(0, numbers * max(0, min(options.limit, having - options.offset) - lacking))

    def _count_dense(self, recognised: Recognised, where: Mapping[str, Any] | None) -> tuple[int, int]:
        """Count the points that match a filter, with a dense vector and without one."""
        store, parsed = self._store.opened(), parse_filter(where or {})
        condition = {"has_vector": recognised.schema.names.dense}
        matching = store.count(recognised.collection, parsed)
        having = store.count(recognised.collection, parsed.extended(must=[condition]))
        return having, matching - having

    async def _embedded(
        self, request: SearchRequest, name: str, admit: Admit, held: Reservation
    ) -> tuple[_Settled, Sequence[Result]]:
        """Embed the queries while the collection is recognised and checked, whose error ends the search first.

        The kinds are those of the request, or a guess by what was recognised last. Without a guess, and where it was
        wrong, the queries are embedded after the collection is recognised and checked. A search by stored points has
        nothing to embed.
        """
        if request.like is not None:
            return await self._settled(request, name, admit), []
        guessed = _guessed_kinds(request, self._collections.catalogue.guess(name))
        settling = asyncio.ensure_future(self._settled(request, name, admit))
        embedding = asyncio.ensure_future(self._embed(request, guessed, held)) if guessed else None
        try:
            settled = await settling
            kinds = settled.request.options.kinds
            if embedding is None or kinds != guessed:
                return settled, await self._embed(request, kinds, held)
            return settled, await embedding
        finally:
            running = [task for task in (settling, embedding) if task is not None]
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def _embed(self, request: SearchRequest, kinds: tuple[Kind, ...], held: Reservation) -> Sequence[Result]:
        """Embed the queries, for whose vectors memory is reserved before."""
        outputs = Outputs.of(kinds)
        if not is_quick(request.queries):
            queries = EmbedRequest(request.queries, outputs=outputs, role="query", label="queries")
            return (await self._embed_all(queries)).texts
        held.grow(self._vectors.of(most_tokens(request.queries, self._limits.query), outputs))
        try:
            return await self._embedder.embed(
                request.queries, outputs, max_length=self._limits.query, priority=Priority.QUERY
            )
        except InvalidRequest as error:
            raise error.at("queries") from None

    def _search(self, settled: _Settled, index: int, result: Result) -> Search:
        query = f"queries[{index}]"
        if isinstance(result, ModelFailure):
            raise result.at(query)
        search = conform_query(Vectors.of(result), settled.request.options, settled.recognised.schema)
        if isinstance(search, Refusal):
            raise ModelFailure(search.message).at(query)
        return search

    def _search_by_points(self, settled: _Settled, like: Like, reader: PartReader) -> Search:
        """Build the search from the vectors of stored points, without the model."""
        options, recognised = settled.request.options, settled.recognised
        vectors, where = recommend(
            self._store.opened(),
            recognised.collection,
            like.positive,
            like.negative,
            scope=like.id_scope or recognised.collection,
            kinds=options.kinds,
            where=options.where,
            field="like",
            schema=recognised.schema,
            reader=reader,
        )
        search = conform_query(vectors, replace(options, where=where), recognised.schema)
        if isinstance(search, Refusal):
            raise InvalidRequest(f"like: {search.message}")
        return search

    async def _run(
        self,
        settled: _Settled,
        searches: Sequence[Search],
        queries: Sequence[str | None],
        tokens: int,
        reader: PartReader,
    ) -> SearchResult:
        """Run the searches, and explain their hits if requested."""
        request, collection = settled.request, settled.recognised.collection
        if not request.explain:
            answers = await self._indexed(
                collection, lambda: search_pages(self._store.opened(), collection, searches, reader=reader)
            )
            return _result(settled, answers, tokens)
        schema = settled.recognised.read_by(request.text_key)
        explained = await self._indexed(
            collection, lambda: self._explainer.run(self._store.opened(), collection, searches, schema, reader)
        )
        self._memory.grow(
            sum(len(page.hits) * _query_tokens(search) for page, search in zip(explained, searches, strict=True))
            * EXPLANATION_TOKEN_BYTES
        )
        threads = text_threads(self._explainer.characters(explained, schema))
        explanations = await threads.run(lambda: self._explainer.explain(queries, explained, schema))
        return _result(settled, explained, tokens, explanations)

    async def _indexed(self, collection: str, call: Callable[[], T]) -> T:
        """Run a blocking call that may filter by a key whose index has to be created first."""
        return await self._store.call(
            lambda: self._collections.catalogue.indexes.run(self._store.opened(), collection, call)
        )


def _query_tokens(search: Search) -> int:
    """Number of tokens that a hit may share with a query, and of rows that it is compared with."""
    sparse, colbert = search.vectors.sparse, search.vectors.colbert
    return (0 if sparse is None else len(sparse.indices)) + (0 if colbert is None else len(colbert))


def _result(
    settled: _Settled,
    answers: Sequence[SearchPage | Explained],
    tokens: int,
    explanations: Sequence[Sequence[HitExplanation]] | None = None,
) -> SearchResult:
    request = settled.request
    unranked = [answer.unranked for answer in answers] if request.options.rerank else []
    taken = settled.recognised.taken_with(request.text_key)
    return SearchResult([answer.hits for answer in answers], tokens, explanations, unranked, settled.warnings, taken)


def _with_branches_in(request: SearchRequest, recognised: Recognised) -> SearchRequest:
    """The request with its branches in a collection.

    Raises:
        SchemaMismatch: a kind that the search needs is ambiguous.
        InvalidRequest: the collection lacks a kind, or the search is too large.
    """
    options = request.options
    recognised.require(options.using or default_branches(recognised.kinds))
    recognised.require((*options.with_vectors, *(() if options.rerank is None else (options.rerank,))))
    settled = replace(request, options=with_branches(options, recognised.schema))
    _check_size(settled, branches=len(settled.options.using))
    return settled


def _guessed_kinds(request: SearchRequest, guess: Recognised | None) -> tuple[Kind, ...]:
    """The kinds of query vectors that the search is likely to need; empty if that is unknown."""
    if request.options.using:
        return request.options.kinds
    if guess is None:
        return ()
    try:
        return with_branches(request.options, guess.schema).kinds
    except InvalidRequest:
        return ()  # the collection itself decides


def _check_filter(request: SearchRequest, *, copies: int) -> None:
    """Check that all copies of the filter together are small. Raises InvalidRequest."""
    where = request.options.where
    size = 0 if where is None else parse_filter(where).size_bytes
    if size * copies > FILTER_COPIES_MAX_BYTES:
        raise invalid_field(
            "filter",
            f"must have at most {FILTER_COPIES_MAX_BYTES} bytes in all branches of all queries (queries x branches x "
            f"size), got {copies} x {size}; send fewer queries or a smaller filter",
        )


def _check_size(request: SearchRequest, *, branches: int) -> None:
    """Check that a search with so many branches explains few hits and has few candidates.

    Raises:
        InvalidRequest: the search explains too many hits, or has too many candidates.
    """
    options = request.options
    searches, hits = len(request.queries) or 1, options.limit * options.group_size
    _check_filter(request, copies=searches * branches)
    candidates = searches * branches * options.prefetch
    if options.group_by is not None and candidates > CANDIDATES_MAX:
        raise invalid_field(
            "prefetch",
            f"must ask for at most {CANDIDATES_MAX} candidates with groupBy (queries x branches x prefetch), "
            f"got {candidates}; lower prefetch or send fewer queries",
        )
    if not request.explain:
        return
    by_group = " x groupSize" if options.group_by else ""
    with_rows = "colbert" in options.kinds
    hits_max = EXPLAINED_ROWS_HITS_MAX if with_rows else EXPLAINED_HITS_MAX
    if searches * hits > hits_max:
        raise invalid_field(
            "explain",
            f"must cover at most {hits_max} hits{' with colbert' if with_rows else ''} (queries x limit{by_group}), "
            f"got {searches * hits}; lower limit or send fewer queries",
        )
    depth = max(options.prefetch, (options.limit + options.offset) * options.group_size)
    candidates = searches * branches * depth
    if candidates > CANDIDATES_MAX:
        raise invalid_field(
            "explain",
            f"must cover at most {CANDIDATES_MAX} candidates (queries x candidates of all branches), "
            f"got {candidates}; lower prefetch or offset, or send fewer queries",
        )
