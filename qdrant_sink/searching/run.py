"""Run searches on a store: batches of plans, the ranking of a search, its pages and groups.

The pages of a search are slices of one ranking, which does not depend on the offset. It is a sequence of tiers:

    first page    the first `limit` hits, as the store returns them for the first page
    tier 0        all candidates of the branches with a depth of `SearchOptions.depth`
    tier 1, ...   all candidates with a depth four times as large, and so on

Each tier adds the points that the earlier ones lack, in its own order: best score first, and equal scores by id. With
reranking, candidates without ColBERT rows have no score. They follow those with rows, in the order of the fusion of the
branches. They come from a plan of their own in the same batch (`planning.lacking_plan`), because a store leaves them
out of a reranked answer.

The first page is one request. A later page requests the first page and tier 0 together, and deeper tiers while the
ranking is too short, all for ids only. The payloads and vectors of its hits, and of hits without a score, are fetched
when it is complete (see `searching.pages`).

The best score is the largest, or the smallest where it is a distance. With a threshold, hits with a worse score and
hits without a score are left out. The ranking ends if the store has no more points, which a tier with fewer candidates
than its depth shows, or with a tier that has a hit with a worse score than the threshold.

A grouped search (`group_by`) groups the same ranking from tier 0 on. Groups are ranked by their best hit, and have
further hits of the tier that found them. Tiers up to `DEPTH_MAX` are requested until there are enough groups, even if
hits are worse than the threshold, because a reranked hit of a deeper tier can be better. Qdrant's
own request for groups is not used: the embedded engine does not have it, and it stops after a few attempts on long
documents.

If a server refuses a query because of a limit that only the additional candidates exceed, it is asked again within this
limit (see `searching.limits`).
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Final, Protocol

import numpy as np

from embedder.cancellation import check_cancelled
from qdrant_sink.errors import AnswerTooLarge, LimitExceeded
from qdrant_sink.payload_path import PayloadPath
from qdrant_sink.points import PayloadKeys, PointId, Stored
from qdrant_sink.searching.limits import Answer, QueryLimits
from qdrant_sink.searching.pages import Pages, SearchPage, requested_parts
from qdrant_sink.searching.plan import Hit, Plan
from qdrant_sink.searching.planning import TIE_MARGIN_HITS, first_page_plan, lacking_plan, tier_plan
from qdrant_sink.searching.query import Search
from qdrant_sink.searching.reading import KEY_PORTION_MAX_POINTS, Fetches, InlineBudget, PartReader, Parts

DEPTH_MAX: Final = 10_000
"""Maximum number of candidates per branch in a tier, unless the search itself requests more hits or candidates."""

DEPTH_FACTOR: Final = 4
"""Factor from the depth of a tier to the depth of the next one."""

BATCH_MAX_HITS: Final = 50_000
"""Maximum number of hits in one batch. The last query of the batch may exceed it."""

BATCH_MAX_NUMBERS: Final = 2**20
"""Maximum number of components of the query vectors in one batch. They take 4 MB over gRPC, 21 MB as JSON (a server
accepts 32 MB) and 32 MB as Python lists. A query of 20 tokens with ColBERT rows of 1024 components has 21 504.
"""

BATCH_MAX_FILTER_BYTES: Final = 4_000_000
"""Maximum size of the filters in one batch in bytes: every branch of every query has a copy. A copy takes some twenty
times as much memory on the way. A single query may exceed it.
"""


class Searchable(Fetches, Protocol):
    """The part of `Store` that searches use."""

    def query(self, collection: str, plans: Sequence[Plan], /) -> list[list[Hit]]:
        """Return the hits of each plan."""
        ...


def run(store: Searchable, collection: str, searches: Sequence[Search]) -> list[list[Hit]]:
    """Return the hits of every search in the order of its ranking; see `search_pages`."""
    return [page.hits for page in search_pages(store, collection, searches)]


def search_pages(
    store: Searchable,
    collection: str,
    searches: Sequence[Search],
    *,
    internal: Sequence[Search] = (),
    reader: PartReader | None = None,
) -> list[SearchPage]:
    """Return the page of every search.

    All searches are sent in one batch, unless their vectors together exceed `BATCH_MAX_NUMBERS`, their hits
    `BATCH_MAX_HITS` or their filters `BATCH_MAX_FILTER_BYTES`. A search that cannot match anything (only sparse,
    without weights) is not sent.

    Args:
        store: store of the collection.
        collection: name of the collection, or an alias.
        searches: searches that `conform_query` returned.
        internal: further searches, which the caller of the service did not ask for. A limit of the server on the
            number of hits does not end them. Their pages follow those of `searches`.
        reader: reader of payloads and vectors. Without one, a first page comes with them, whatever their sizes.

    Raises:
        Cancelled: the caller has gone.
        LimitExceeded: options of `searches` exceed a limit of the server.
        WorkerError: see the table in `qdrant_sink.store`.
    """
    limits = QueryLimits()
    rankings = [_Ranking(search) for search in (*searches, *internal)]
    pages = Pages(store, collection, [ranking.search for ranking in rankings], reader)
    pending = list(enumerate(rankings))
    are_bare = False  # whether hits come without parts
    while pending:
        inline = InlineBudget(reader, collection, is_closed=are_bare)
        steps = [ranking.plans(limits, inline) for _, ranking in pending]
        answers = _answers(store, collection, [plan for step in steps for plan in step], limits, reader)
        for (index, ranking), step in zip(pending, steps, strict=True):
            try:
                answer = [next(answers) for _ in step]
            except LimitExceeded as error:
                limits = limits.lowered(error, searches)
                break
            except AnswerTooLarge:
                if inline.is_empty:
                    raise
                are_bare = True
                break
            if reader is not None:
                answer = _with_keys(store, collection, ranking, answer, reader)
            ranking.add(answer, limits)
            if ranking.complete:
                page = ranking.taken_page()
                if reader is not None and index < len(searches):
                    reader.add_hits(page.hits)
                pages.add(index, page, needs_parts=ranking.needs_parts)
        pending = [(index, ranking) for index, ranking in pending if index not in pages]
    return pages.all()


def _answers(
    store: Searchable, collection: str, plans: Sequence[Plan], limits: QueryLimits, reader: PartReader | None
) -> Iterator[Answer]:
    """Yield the answer to each plan, which may take several queries. A batch is sent when its first hits are needed."""
    slices = [limits.slices(plan) for plan in plans]
    batches = _batches([query for parts in slices for query in parts], limits.queries)
    hits = (found for batch in batches for found in _hits(store, collection, batch, reader))
    for parts in slices:
        yield Answer.joined(parts, [next(hits) for _ in parts])


def _hits(
    store: Searchable, collection: str, batch: Sequence[Plan], reader: PartReader | None
) -> Sequence[Sequence[Hit]]:
    check_cancelled()
    hits = store.query(collection, batch)
    if reader is not None:
        reader.hold_hits(sum(map(len, hits)))
    return hits


def _with_keys(
    store: Searchable,
    collection: str,
    ranking: _Ranking,
    answers: Sequence[Answer],
    reader: PartReader,
) -> list[Answer]:
    """Return the answers to a step of a ranking, with the group keys of their hits if it has groups."""
    parts = ranking.key_parts
    if parts is None:
        return list(answers)
    hits = [hit for answer in answers for hit in answer.hits]
    if not ranking.needs_keys:
        reader.add_inline(collection, parts, [(hit.payload, None) for hit in hits], is_answered=False)
        return list(answers)
    counts = dict.fromkeys((hit.id for hit in hits), 0)
    stored = reader.fetch(store, collection, counts, parts, points_max=KEY_PORTION_MAX_POINTS)
    return [
        replace(answer, hits=[replace(hit, payload=stored.get(hit.id, Stored()).payload) for hit in answer.hits])
        for answer in answers
    ]


def _batches(plans: Sequence[Plan], queries_max: int | None) -> Iterator[list[Plan]]:
    """Yield batches within the limits of a batch and `queries_max`, or of one plan."""
    batch: list[Plan] = []
    numbers = hits = filters = 0
    for plan in plans:
        is_full = numbers + plan.numbers > BATCH_MAX_NUMBERS or hits >= BATCH_MAX_HITS or len(batch) == queries_max
        if batch and (is_full or filters + plan.filter_bytes > BATCH_MAX_FILTER_BYTES):
            yield batch
            batch, numbers, hits, filters = [], 0, 0, 0
        batch.append(plan)
        numbers += plan.numbers
        hits += plan.limit
        filters += plan.filter_bytes
    if batch:
        yield batch


class _Ranking:
    """The ranking of one search, as far as its page needs it.

    Attributes:
        search: the search.
        complete: whether the page is known.
        needs_parts: whether the hits of the page lack their payloads and vectors.
        key_parts: the group key as a part of points; None without groups.
        needs_keys: whether the hits of the last step lack their group keys.
    """

    def __init__(self, search: Search) -> None:
        self.search = search
        self.complete = False
        self.needs_parts = False
        self.key_parts = _key_parts(search)
        self.needs_keys = False
        self._end = search.options.offset + search.options.limit
        self._hits: list[Hit] = []
        self._depths: list[int] = []  # depth of the tier of each hit
        self._seen: set[PointId] = set()
        self._unranked: set[PointId] = set()
        self._groups: dict[object, list[int]] = {}  # ranks of the hits of each group
        self._is_first = search.options.group_by is None  # whether the first page is to be requested next
        self._depth = 0  # depth of the last tier

    def plans(self, limits: QueryLimits, inline: InlineBudget) -> list[Plan]:
        """Return the plans of the next step; empty, and the ranking complete, if the search cannot match anything."""
        depth = self._next_depth(limits)
        options = self.search.options
        plans: list[Plan | None] = []
        if self._is_first:
            requested, hits_max = requested_parts(self.search), options.limit + TIE_MARGIN_HITS
            is_bare = bool(options.offset) or not inline.takes(requested, hits_max)
            bare = self.search.with_options(with_payload=False, with_vectors=())
            plans.append(first_page_plan(bare if is_bare else self.search, depth))
            self.needs_parts = is_bare
        if not self._is_first or options.offset:
            plans.append(tier_plan(self.search, depth))
        plans.append(lacking_plan(self.search, depth))
        sent = [plan for plan in plans if plan is not None]
        self.complete = not sent
        if self.key_parts is not None:
            candidates = sum(plan.limit for plan in sent)
            self.needs_keys = not inline.takes(self.key_parts, candidates, hits_max=KEY_PORTION_MAX_POINTS)
            if self.needs_keys:
                sent = [replace(plan, with_payload=False) for plan in sent]
        return sent

    def add(self, answers: Sequence[Answer], limits: QueryLimits) -> None:
        """Add the answers to the plans of the last step."""
        if not answers:
            return
        depth = self._next_depth(limits)
        unranked: list[Hit] = []
        if self.search.options.rerank:
            *answers, lacking = answers
            unranked = [replace(hit, score=None) for hit in _sorted_hits(lacking.hits)]
            self._unranked.update(hit.id for hit in unranked)
        if not self._is_first:
            self._add_tier(answers[0], unranked, depth, limits)
            return
        self._is_first = False
        first = answers[0]
        is_decided = self._add_first_page(first.hits, depth)
        if self.search.options.offset:
            self._add_tier(answers[1], unranked, depth, limits)
        elif is_decided:
            is_cut = len(self._hits) < len(first.hits)
            if unranked and not is_cut and len(self._hits) < self.search.options.limit:
                self._add_tier(first, unranked, depth, limits)  # the hits are all candidates that have rows
            else:
                self.complete = True

    def taken_page(self) -> SearchPage:
        """Return the page in the order of the ranking, and forget the candidates of the others."""
        page = SearchPage(self._page_hits(), len(self._unranked))
        self._hits, self._depths, self._seen, self._unranked, self._groups = [], [], set(), set(), {}
        return page

    def _page_hits(self) -> list[Hit]:
        offset, group_by = self.search.options.offset, self.search.options.group_by
        if group_by is None:
            page = range(len(self._hits))[offset : self._end]
            return [replace(self._hits[rank], depth=self._depths[rank]) for rank in page]
        ranks = sorted(rank for group in list(self._groups.values())[offset : self._end] for rank in group)
        hits = [(self._hits[rank], self._depths[rank]) for rank in ranks]
        return [replace(hit, depth=depth, group=group_of(hit, group_by)) for hit, depth in hits]

    def _next_depth(self, limits: QueryLimits) -> int:
        """Return the depth of the next tier. It does not depend on the offset."""
        if not self._depth:
            return limits.depth(self.search, self.search.options.depth)
        deeper = self._depth * DEPTH_FACTOR
        return limits.depth(self.search, DEPTH_MAX if self._depth < DEPTH_MAX < deeper else deeper)

    def _add_first_page(self, hits: Sequence[Hit], depth: int) -> bool:
        """Add the first page, unless hits that tie with its last one may be missing: then tier 0 decides.

        Returns whether the page was added.
        """
        limit = self.search.options.limit
        ordered = _sorted_hits(_within_threshold(self.search, hits), ascending=self.search.ascending)
        if len(ordered) >= limit + TIE_MARGIN_HITS and ordered[limit - 1].score == ordered[-1].score:
            return False
        self._append(ordered[:limit], depth)
        return True

    def _add_tier(self, answer: Answer, unranked: Sequence[Hit], depth: int, limits: QueryLimits) -> None:
        self.needs_parts = True
        options = self.search.options
        within = _within_threshold(self.search, answer.hits)
        ranked = _sorted_hits(within, ascending=self.search.ascending)
        self._append(ranked if options.score_threshold is not None else [*ranked, *unranked], depth)
        self._depth = depth
        is_grouped = options.group_by is not None
        length = len(self._groups) if is_grouped else len(self._hits)
        is_cut = len(within) < len(answer.hits) and not is_grouped
        is_last = answer.count + len(unranked) < depth or is_cut
        if length >= self._end or is_last or depth >= max(DEPTH_MAX, self._end):
            self.complete = True
        elif self._next_depth(limits) == depth:
            if not is_grouped or self._end > depth:
                raise limits.unreachable(length, self._end)
            self.complete = True

    def _append(self, hits: Sequence[Hit], depth: int) -> None:
        """Append the hits that the ranking lacks. Groups that are already complete remain as they are."""
        options = self.search.options
        added: dict[object, list[int]] = {}
        for hit in hits:
            if hit.id in self._seen:
                continue
            self._seen.add(hit.id)
            if options.group_by is not None:
                value = group_of(hit, options.group_by)
                key: object = ("its own", hit.id) if value is None else (type(value), value)  # 1 and "1" are two groups
                ranks = added.setdefault(key, [])
                if len(ranks) < options.group_size:
                    ranks.append(len(self._hits))
            self._hits.append(hit)
            self._depths.append(depth)
        for key, ranks in added.items():
            self._groups.setdefault(key, ranks)


def group_of(hit: Hit, path: str) -> str | int | None:
    """Return the string or integer at a path of the payload; None for any other value."""
    value = PayloadPath.parse(path).value_in(hit.payload)
    return value if type(value) in (str, int) else None


def _within_threshold(search: Search, hits: Sequence[Hit]) -> Sequence[Hit]:
    if search.options.score_threshold is None:
        return hits
    threshold = float(np.float32(search.options.score_threshold))  # stores compare in float32
    if search.ascending:
        return [hit for hit in hits if hit.known_score <= threshold]
    return [hit for hit in hits if hit.known_score >= threshold]


def _sorted_hits(hits: Sequence[Hit], *, ascending: bool = False) -> list[Hit]:
    """Sort hits, best score first, and equal scores by ascending id, integers before UUIDs."""
    sign = 1 if ascending else -1

    def key(hit: Hit) -> tuple[float, bool, int]:
        by_uuid = isinstance(hit.id, uuid.UUID)
        return sign * hit.known_score, by_uuid, hit.id.int if isinstance(hit.id, uuid.UUID) else hit.id

    return sorted(hits, key=key)


def _key_parts(search: Search) -> Parts | None:
    group_by = search.options.group_by
    return None if group_by is None else (PayloadKeys((group_by,)), (), search.schema.names)
