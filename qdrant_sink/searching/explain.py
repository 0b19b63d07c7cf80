"""Explain the rank of a hit by its rank in every branch and by the matches of its vectors.

An explained search also requests the sparse and ColBERT vectors of its hits, and it is run together with one search per
branch, which returns only ids and scores. All of them are sent as one request, and the explanation is computed from the
answers. Only hits of a deeper tier (see `searching.run`) are explained by further searches of the branches.

Qdrant orders equal scores arbitrarily in every request, so that a point can have another rank in the separate search of
a branch than inside the fused search. Among such ranks, the fused score decides.

All functions except `explain`, which calls the store, are pure and use only numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isclose, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import KINDS, Kind
from qdrant_sink.payload_path import path_of_key
from qdrant_sink.points import PayloadKeys, PointId, WithPayload
from qdrant_sink.searching.matches import RowMatch, TokenMatch, row_matches, token_matches
from qdrant_sink.searching.plan import Fuse, Hit
from qdrant_sink.searching.planning import first_page_plan
from qdrant_sink.searching.query import Search
from qdrant_sink.searching.reading import PartReader
from qdrant_sink.searching.run import Searchable, search_pages

FUSED_TOLERANCE: Final[Mapping[str, float]] = {"rrf": 1e-6, "dbsf": 1e-3}
"""Maximum difference between a fused score and the sum of its contributions. A store computes scores in float32."""

TIE_COMBINATIONS_MAX: Final = 4096
"""Maximum number of rank combinations that are tried if branches have equal scores."""


@dataclass(frozen=True, slots=True)
class BranchRank:
    """Rank (from 1) and score of a point among the candidates of a branch."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Explanation of one hit.

    Attributes:
        branches: rank in each branch of the search; None if the hit was not among the candidates of the branch.
        fusion: contribution of each branch to the fused score, which is their sum. None if the score is not fused, or
            if the contributions do not add up to it because the collection changed in between.
        sparse: matching tokens, the largest product of weights first; None if the query has no weights.
        colbert: best match of each row of the query; None if the query or the point has no rows.
        rows: number of ColBERT rows of the point; None if unknown.
        indices: token ids of the point's weights as uint32; None without weights.
    """

    branches: Mapping[Kind, BranchRank | None]
    fusion: Mapping[Kind, float] | None
    sparse: tuple[TokenMatch, ...] | None
    colbert: tuple[RowMatch, ...] | None
    rows: int | None
    indices: NDArray[np.uint32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Inquiry:
    """A search together with the additional searches that explain its hits.

    Attributes:
        search: search of the caller.
        text_key: key of the payload with the text to which explanations refer, without `"` and backslashes.
        extended: search that also requests the payload and the vectors that the explanation needs.
        branches: search for the candidates of each branch in the first tier, by kind.
        fuse: fusion of the branches; None without fusion.
    """

    search: Search
    text_key: str
    extended: Search
    branches: Mapping[Kind, Search]
    fuse: Fuse | None

    @classmethod
    def of(cls, search: Search, text_key: str = "text") -> Inquiry:
        """Create the inquiry of a search that `conform_query` returned."""
        options = search.options
        needed: set[Kind] = set(options.with_vectors)
        if search.schema.sparse is not None:
            needed.add("sparse")
        if search.vectors.colbert is not None:
            needed.add("colbert")
        branches = {
            kind: search.with_options(
                using=(kind,),
                fusion="rrf",
                weights=None,
                rerank=None,
                limit=options.depth,
                offset=0,
                score_threshold=None,
                with_payload=False,
                with_vectors=(),
                group_by=None,
                group_size=1,
            )
            for kind in options.using
        }
        payload = _with_text(options.with_payload, text_key)
        extended = search.with_options(with_payload=payload, with_vectors=tuple(sorted(needed)))
        plan = first_page_plan(search, options.depth)
        fuse = plan.query if plan is not None and isinstance(plan.query, Fuse) else None
        return cls(search, text_key, extended, branches, fuse)

    def explain(self, answers: Sequence[Sequence[Hit]]) -> list[Explanation]:
        """Explain each hit in `answers[0]`.

        Args:
            answers: hits of one tier, and the candidates of each branch with the depth of this tier.
        """
        hits, *branch_hits = answers
        branches = dict(zip(self.branches, map(_Branch, branch_hits), strict=True))
        return [self._explanation(hit, branches) for hit in hits]

    def stripped(self, hits: Sequence[Hit]) -> list[Hit]:
        """Return the hits with only the payload and vectors that the caller requested."""
        kinds = self.search.options.with_vectors
        return [
            replace(
                hit,
                payload=self._selected(hit.payload),
                vectors=replace(hit.vectors, **{kind: None for kind in KINDS if kind not in kinds})
                if kinds and hit.vectors is not None
                else None,
            )
            for hit in hits
        ]

    @property
    def _has_idf(self) -> bool:
        sparse = self.search.schema.sparse
        return sparse is not None and sparse.modifier == "idf"

    def _selected(self, payload: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Remove the text from a payload if it was fetched only for the explanation."""
        wanted = self.search.options.with_payload
        if not wanted or payload is None:
            return None
        if wanted is True or (path_of_key(self.text_key) in wanted.keys) != wanted.excluded:
            return payload
        return {key: value for key, value in payload.items() if key != self.text_key}

    def _explanation(self, hit: Hit, branches: Mapping[Kind, _Branch]) -> Explanation:
        fused = None if self.fuse is None else self._fused(hit, branches, self.fuse)
        chosen, fusion = fused or ({kind: branch.rank(hit) for kind, branch in branches.items()}, None)
        query, rows = self.search.vectors.sparse, self.search.vectors.colbert
        sparse = None if hit.vectors is None else hit.vectors.sparse
        colbert = None if hit.vectors is None else hit.vectors.colbert
        return Explanation(
            branches=chosen,
            fusion=fusion,
            sparse=None if query is None else token_matches(query, sparse, idf=self._has_idf),
            colbert=None if rows is None or colbert is None else row_matches(_as_compared(rows, colbert), colbert),
            rows=None if colbert is None else len(colbert),
            indices=None if sparse is None else sparse.indices,
        )

    def _fused(
        self, hit: Hit, branches: Mapping[Kind, _Branch], fuse: Fuse
    ) -> tuple[dict[Kind, BranchRank | None], dict[Kind, float]] | None:
        """Find the ranks that explain a fused score. Returns them with their contributions; None without a solution."""
        ranks = {kind: branch.ranks(hit) for kind, branch in branches.items()}
        if prod(max(1, len(tied)) for tied in ranks.values()) > TIE_COMBINATIONS_MAX:
            ranks = {kind: tied[:1] for kind, tied in ranks.items()}
        weights = dict(zip(ranks, self.search.options.weights or (1.0,) * len(ranks), strict=True))
        candidates: list[Sequence[BranchRank | None]] = [tied or [None] for tied in ranks.values()]
        for combination in product(*candidates):
            chosen: dict[Kind, BranchRank | None] = dict(zip(ranks, combination, strict=True))
            parts = {
                kind: 0.0 if rank is None else branches[kind].part(rank, fuse, weights[kind])
                for kind, rank in chosen.items()
            }
            if isclose(sum(parts.values()), hit.known_score, rel_tol=0, abs_tol=FUSED_TOLERANCE[fuse.method]):
                return chosen, parts
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """Result of an explained search.

    Attributes:
        hits: hits with only the payload and vectors that the caller requested.
        payloads: payload of each hit, which includes the text.
        explanations: explanation of each hit.
        unranked: number of candidates without ColBERT rows, as in `run.SearchPage`.
    """

    hits: Sequence[Hit]
    payloads: Sequence[Mapping[str, Any] | None]
    explanations: Sequence[Explanation]
    unranked: int


class _Branch:
    """The candidates of one branch, best first."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._scores = [hit.known_score for hit in hits]
        self._ranks = {hit.id: rank for rank, hit in enumerate(hits, start=1)}
        self._scale: tuple[float, float] | None = None

    def rank(self, hit: Hit) -> BranchRank | None:
        """Return the rank of the hit; None if it is not a candidate."""
        return next(iter(self.ranks(hit)), None)

    def part(self, rank: BranchRank, fuse: Fuse, weight: float) -> float:
        """Compute the contribution to a fused score: from the rank (RRF) or from the scaled score (DBSF)."""
        if fuse.method == "rrf":
            return 1 / (fuse.k - 1 + rank.rank / weight)
        if self._scores[0] == self._scores[-1]:
            return 0.5
        if self._scale is None:
            self._scale = float(np.mean(self._scores)), float(np.std(self._scores, ddof=1))
        mean, deviation = self._scale
        return 0.5 + (rank.score - mean) / (6 * deviation)

    def ranks(self, hit: Hit) -> list[BranchRank]:
        """Return the rank of the hit, followed by the ranks of other candidates with the same score."""
        own = self._ranks.get(hit.id)
        if own is None:
            return []
        score = self._scores[own - 1]
        first = last = own
        while first > 1 and self._scores[first - 2] == score:
            first -= 1
        while last < len(self._scores) and self._scores[last] == score:
            last += 1
        return [BranchRank(rank, score) for rank in (own, *(rank for rank in range(first, last + 1) if rank != own))]


def explain(
    store: Searchable,
    collection: str,
    searches: Sequence[Search],
    *,
    text_key: str,
    reader: PartReader | None = None,
) -> list[Explained]:
    """Run searches and explain their hits. The call blocks.

    Args:
        store: store of the collection.
        collection: name of the collection, or an alias.
        searches: searches that `conform_query` returned.
        text_key: key of the payload with the text to which explanations refer, without `"` and backslashes.
        reader: reader of payloads and vectors, as in `search_pages`.

    Raises:
        Cancelled: the caller has gone.
        WorkerError: see the table in `qdrant_sink.store`.
    """
    inquiries = [Inquiry.of(search, text_key) for search in searches]
    branches = [branch for inquiry in inquiries for branch in inquiry.branches.values()]
    extended = [inquiry.extended for inquiry in inquiries]
    answers = search_pages(store, collection, extended, internal=branches, reader=reader)
    rest = iter([page.hits for page in answers[len(inquiries) :]])
    results = []
    for inquiry, page in zip(inquiries, answers, strict=False):
        hits = page.hits
        candidates = [next(rest) for _ in inquiry.branches]
        explanations: dict[PointId, Explanation] = {}
        for depth in sorted({hit.depth for hit in hits}):
            if depth > inquiry.search.options.depth:
                deeper = [branch.with_options(limit=depth) for branch in inquiry.branches.values()]
                pages = search_pages(store, collection, [], internal=deeper, reader=reader)
                candidates = [page.hits for page in pages]
            tier = [hit for hit in hits if hit.depth == depth]
            explained = inquiry.explain([tier, *(branch[:depth] for branch in candidates)])
            explanations.update(zip((hit.id for hit in tier), explained, strict=True))
        payloads = [hit.payload for hit in hits]
        explained = [explanations[hit.id] for hit in hits]
        results.append(Explained(inquiry.stripped(hits), payloads, explained, page.unranked))
    return results


def _as_compared(query: NDArray[Any], stored: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of a query as the store compares them. A store of float16 rows rounds the query to float16 too.

    The stored rows tell the type: the collection may have been created with another one than the schema has, and rows
    of norm 1 that were never rounded are not all float16 numbers.
    """
    return query.astype(np.float16) if np.array_equal(stored, stored.astype(np.float16)) else query


def _with_text(wanted: WithPayload, key: str) -> WithPayload:
    """Extend a selection by the text."""
    path = path_of_key(key)
    if isinstance(wanted, PayloadKeys) and wanted.excluded:
        kept = tuple(selected for selected in wanted.keys if selected != path)
        return PayloadKeys(kept, excluded=True) if kept else True
    if wanted is True:
        return wanted
    return PayloadKeys((*(wanted.keys if wanted else ()), path))
