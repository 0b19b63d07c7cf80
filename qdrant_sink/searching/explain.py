"""Why a hit ranks where it does: its rank in every branch, and what of its vectors matched the query's.

An explained search is run together with one search per branch, of which only ids and scores come back, and with the
sparse and ColBERT vectors of its own hits. All of that is one request (`Inquiry.searches`); the rest is computed here.
Only a grouped search that looked deeper than its first round (see `searching.run`) has its branches asked again.

Qdrant orders equal scores anew at every request, so among equal scores a branch alone can rank a point otherwise
than it did inside the fused search. There the fused score decides which of those ranks it was.

Pure functions of numpy, except `explain`, which asks the store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isclose, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import KINDS, Kind
from qdrant_sink.points import PayloadKeys, WithPayload
from qdrant_sink.searching.matches import RowMatch, TokenMatch, row_matches, token_matches
from qdrant_sink.searching.plan import Fuse, Hit
from qdrant_sink.searching.query import Search
from qdrant_sink.searching.run import DEPTH_FACTOR, DEPTH_MAX, Searchable, plan_of, run

FUSED_TOLERANCE: Final[Mapping[str, float]] = {"rrf": 1e-6, "dbsf": 1e-3}
"""Difference allowed between a fused score and the sum of its branches' parts. A store scales scores in float32."""

TIES_MAX: Final = 4096
"""Combinations of ranks that are tried where scores of branches are equal."""


@dataclass(frozen=True, slots=True)
class BranchRank:
    """Rank of a point in a branch, from 1, among its candidates, and the score that it has there."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Why one hit ranks where it does.

    Attributes:
        branches: rank in each branch of the search; None where the hit was not among the candidates.
        fusion: what each branch contributed to the fused score, which is their sum; None where the score is not
            fused, or the branches alone do not add up to it (the collection changed meanwhile).
        sparse: what matched, the largest contribution first; None if the query has no weights.
        colbert: best match per row of the query; None if the query or the point has no rows.
        rows: number of ColBERT rows of the point; None if unknown.
        indices: uint32, token ids of the point's weights; None without weights.
    """

    branches: Mapping[Kind, BranchRank | None]
    fusion: Mapping[Kind, float] | None
    sparse: tuple[TokenMatch, ...] | None
    colbert: tuple[RowMatch, ...] | None
    rows: int | None
    indices: NDArray[np.uint32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Inquiry:
    """A search and what must be asked beside it to explain its hits.

    Attributes:
        search: as its caller wants it.
        text_key: key of the payload with the text that an explanation points into.
        asked: the search, with the payload and the vectors that the explanation needs.
        branches: by kind, the search for the candidates of each branch.
        fuse: how the search fuses them; None if it does not.
    """

    search: Search
    text_key: str
    asked: Search
    branches: Mapping[Kind, Search]
    fuse: Fuse | None

    @classmethod
    def of(cls, search: Search, text_key: str = "text") -> Inquiry:
        """The inquiry of a search that `conformance.conform_query` has proven."""
        options = search.options
        needed: set[Kind] = {*options.with_vectors, "sparse"}
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
        asked = search.with_options(with_payload=payload, with_vectors=tuple(sorted(needed)))
        plan = plan_of(search, options.depth)
        fuse = plan.query if plan is not None and isinstance(plan.query, Fuse) else None
        return cls(search, text_key, asked, branches, fuse)

    @property
    def searches(self) -> list[Search]:
        """All searches, that for the hits first."""
        return [self.asked, *self.branches.values()]

    def deeper(self, answers: Sequence[Sequence[Hit]]) -> Inquiry | None:
        """The inquiry whose branches look further; None where these answers explain the hits, or nothing will.

        A grouped search takes hits from as deep as it must to find its groups, and does not say how deep that was.
        """
        hits, *others = answers
        limits = [branch.options.limit for branch in self.branches.values()]
        full = any(len(candidates) == limit for limit, candidates in zip(limits, others, strict=True))
        if self.search.options.group_by is None or not full or max(limits) >= DEPTH_MAX:
            return None
        branches = self._ranked(others)
        if all(self._accounts_for(hit, branches) for hit in hits):
            return None
        depth = min(max(limits) * DEPTH_FACTOR, DEPTH_MAX)
        return replace(
            self, branches={kind: branch.with_options(limit=depth) for kind, branch in self.branches.items()}
        )

    def explain(self, answers: Sequence[Sequence[Hit]], *, halved: bool) -> list[Explanation]:
        """The explanation of each hit in `answers[0]`.

        Args:
            answers: hits of each of `searches`.
            halved: whether the store compares ColBERT rows in float16.
        """
        hits, *others = answers
        branches = self._ranked(others)
        rows = self.search.vectors.colbert
        if rows is not None and halved:
            rows = rows.astype(np.float16)
        return [self._of(hit, branches, rows) for hit in hits]

    def bare(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits with only what the search itself asked for."""
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

    def _selected(self, payload: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """The payload without the text where that was fetched only for the explanation."""
        wanted = self.search.options.with_payload
        if not wanted or payload is None:
            return None
        if wanted is True or any(path in wanted.keys for path in _paths(self.text_key)) != wanted.excluded:
            return payload
        return {key: value for key, value in payload.items() if key != self.text_key}

    def _ranked(self, answers: Sequence[Sequence[Hit]]) -> dict[Kind, _Branch]:
        return dict(zip(self.branches, map(_Branch, answers), strict=True))

    def _accounts_for(self, hit: Hit, branches: Mapping[Kind, _Branch]) -> bool:
        """Whether the branches explain the hit's fused score, or at least contain the hit."""
        if self.fuse is not None:
            return self._fused(hit, branches, self.fuse) is not None
        return any(branch.rank(hit) for branch in branches.values())

    def _of(self, hit: Hit, branches: Mapping[Kind, _Branch], rows: NDArray[Any] | None) -> Explanation:
        fused = None if self.fuse is None else self._fused(hit, branches, self.fuse)
        chosen, fusion = fused or ({kind: branch.rank(hit) for kind, branch in branches.items()}, None)
        query = self.search.vectors.sparse
        sparse = None if hit.vectors is None else hit.vectors.sparse
        colbert = None if hit.vectors is None else hit.vectors.colbert
        return Explanation(
            branches=chosen,
            fusion=fusion,
            sparse=None if query is None else token_matches(query, sparse),
            colbert=None if rows is None or colbert is None else row_matches(rows, colbert),
            rows=None if colbert is None else len(colbert),
            indices=None if sparse is None else sparse.indices,
        )

    def _fused(
        self, hit: Hit, branches: Mapping[Kind, _Branch], fuse: Fuse
    ) -> tuple[dict[Kind, BranchRank | None], dict[Kind, float]] | None:
        """The ranks that explain a fused score, and their parts of it."""
        ranks = {kind: branch.ranks(hit) for kind, branch in branches.items()}
        if prod(max(1, len(tied)) for tied in ranks.values()) > TIES_MAX:
            ranks = {kind: tied[:1] for kind, tied in ranks.items()}
        weights = dict(zip(ranks, self.search.options.weights or (1.0,) * len(ranks), strict=True))
        candidates: list[Sequence[BranchRank | None]] = [tied or [None] for tied in ranks.values()]
        for combination in product(*candidates):
            chosen: dict[Kind, BranchRank | None] = dict(zip(ranks, combination, strict=True))
            parts = {
                kind: 0.0 if rank is None else branches[kind].part(rank, fuse, weights[kind])
                for kind, rank in chosen.items()
            }
            if isclose(sum(parts.values()), hit.score, rel_tol=0, abs_tol=FUSED_TOLERANCE[fuse.method]):
                return chosen, parts
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """The answer to an explained search.

    Attributes:
        hits: with only what the search asked for.
        payloads: payload of each hit, with the text at least.
        explanations: explanation of each hit.
    """

    hits: Sequence[Hit]
    payloads: Sequence[Mapping[str, Any] | None]
    explanations: Sequence[Explanation]


class _Branch:
    """The candidates of one branch, best first."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._scores = [hit.score for hit in hits]
        self._ranks = {hit.id: rank for rank, hit in enumerate(hits, start=1)}
        self._scale: tuple[float, float] | None = None

    def rank(self, hit: Hit) -> BranchRank | None:
        """The rank of the hit; None if it is not a candidate."""
        return next(iter(self.ranks(hit)), None)

    def part(self, rank: BranchRank, fuse: Fuse, weight: float) -> float:
        """What the branch adds to a fused score: by rank or, scaled to 3 standard deviations of a sample, by score."""
        if fuse.method == "rrf":
            return 1 / (fuse.k - 1 + rank.rank / weight)
        if self._scores[0] == self._scores[-1]:
            return 0.5
        if self._scale is None:
            self._scale = float(np.mean(self._scores)), float(np.std(self._scores, ddof=1))
        mean, deviation = self._scale
        return 0.5 + (rank.score - mean) / (6 * deviation)

    def ranks(self, hit: Hit) -> list[BranchRank]:
        """The rank of the hit, followed by the ranks of other candidates with the same score."""
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
    store: Searchable, collection: str, searches: Sequence[Search], *, text_key: str, halved: bool
) -> list[Explained]:
    """The hits of each search and what explains them. Blocks.

    Args:
        store: that has the collection.
        collection: its name, or an alias.
        searches: as `conform_query` proves them.
        text_key: as in `Inquiry`.
        halved: whether the store compares ColBERT rows in float16.

    Raises:
        WorkerError: see the table of `qdrant_sink.store`.
    """
    inquiries = [Inquiry.of(search, text_key) for search in searches]
    rest = iter(run(store, collection, [search for inquiry in inquiries for search in inquiry.searches]))
    answers = [[next(rest) for _ in inquiry.searches] for inquiry in inquiries]
    results = []
    for inquiry, own in zip(inquiries, answers, strict=True):
        deeper = inquiry.deeper(own)
        while deeper is not None:
            own[1:] = run(store, collection, list(deeper.branches.values()))
            deeper = deeper.deeper(own)
        payloads = [hit.payload for hit in own[0]]
        results.append(Explained(inquiry.bare(own[0]), payloads, inquiry.explain(own, halved=halved)))
    return results


def _paths(key: str) -> tuple[str, ...]:
    """The paths that select a key of the payload: the key in quotes and, unless it would be read as a path, itself."""
    quoted = f'"{key}"'
    return (quoted, key) if re.fullmatch(r"[\w-]+", key) else (quoted,)


def _with_text(wanted: WithPayload, key: str) -> WithPayload:
    """The selection together with the text, where its key can be written as a path."""
    if isinstance(wanted, PayloadKeys) and wanted.excluded:
        kept = tuple(path for path in wanted.keys if path not in _paths(key))
        return PayloadKeys(kept, excluded=True) if kept else True
    if wanted is True or '"' in key:
        return wanted
    return PayloadKeys((*(wanted.keys if wanted else ()), _paths(key)[0]))
