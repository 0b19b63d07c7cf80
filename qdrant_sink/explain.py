"""Why a hit stands where it does: its place in every branch, and what of its vectors matched the query's.

An explained search is asked together with one search per branch, of which only ids and scores come back, and with the
sparse and ColBERT vectors of its own hits. All of that is one request (`Inquiry.searches`); the rest is computed here.

Qdrant orders equal scores anew at every request, so among equal scores a branch alone can rank a point otherwise
than it did inside the fused search. There the fused score decides which of those ranks it was.

Pure functions of numpy.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isclose, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.search import Fuse, Hit, Search, plan

FUSED_TOLERANCE: Final = 1e-6
"""Of a fused score, against the sum of what its branches contributed."""

MOST_TIES: Final = 4096
"""Combinations of ranks that are tried where scores of branches are equal."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a branch ranked a point: from 1, among its candidates, and by which score."""

    rank: int
    score: float


@dataclass(frozen=True, slots=True)
class TokenMatch:
    """A token id that query and passage share, and its weight in each."""

    id: int
    query: float
    passage: float

    @property
    def contribution(self) -> float:
        """To the inner product."""
        return self.query * self.passage


@dataclass(frozen=True, slots=True)
class RowMatch:
    """The passage's row that is nearest to one row of the query, and their inner product."""

    row: int
    score: float


@dataclass(frozen=True, slots=True, eq=False)
class Explanation:
    """Of one hit.

    Attributes:
        branches: its place in each branch of the search; None where it was not among the candidates.
        fusion: what each branch contributed to the fused score, which is their sum; None where the score is not
            that of RRF, or the branches alone do not add up to it (the collection changed meanwhile).
        sparse: what matched, the largest contribution first; None if the query has no weights.
        colbert: per row of the query; None if the query has no rows, or the point has none.
        rows: ColBERT rows of the point; None if they are not known.
        indices: uint32, token ids that the point has weights for; None if it has none.
    """

    branches: Mapping[Kind, Place | None]
    fusion: Mapping[Kind, float] | None
    sparse: tuple[TokenMatch, ...] | None
    colbert: tuple[RowMatch, ...] | None
    rows: int | None
    indices: NDArray[np.uint32] | None


@dataclass(frozen=True, slots=True, eq=False)
class Inquiry:
    """A search and what must be asked beside it to explain its hits.

    Attributes:
        search: as it was.
        asked: the same, with the payload and the vectors that the explanation needs.
        branches: by kind, the candidates of each branch of the search.
    """

    search: Search
    asked: Search
    branches: Mapping[Kind, Search]

    @classmethod
    def of(cls, search: Search) -> Inquiry:
        """The inquiry of a search that `conformance.conform_query` has proven."""
        needed: set[Kind] = {*search.with_vectors, "sparse"}
        if search.colbert is not None:
            needed.add("colbert")
        branches = {
            kind: replace(
                search,
                using=(kind,),
                fusion="rrf",
                weights=None,
                rerank=None,
                limit=search.depth,
                offset=0,
                score_threshold=None,
                with_payload=False,
                with_vectors=(),
                group_by=None,
                group_size=1,
            )
            for kind in search.using
        }
        payload = search.with_payload or True  # what was selected, else all of it
        asked = replace(search, with_payload=payload, with_vectors=tuple(sorted(needed)))
        return cls(search, asked, branches)

    @property
    def searches(self) -> list[Search]:
        """All that is asked, the hits first."""
        return [self.asked, *self.branches.values()]

    def explain(self, answers: Sequence[Sequence[Hit]], *, halved: bool) -> list[Explanation]:
        """Of each hit in `answers[0]`.

        Args:
            answers: to `searches`.
            halved: whether the store compares ColBERT rows in float16.
        """
        hits, *others = answers
        branches = dict(zip(self.branches, (_Branch(found) for found in others), strict=True))
        rows = self.search.colbert
        if rows is not None and halved:
            rows = rows.astype(np.float16)
        return [self._of(hit, branches, rows) for hit in hits]

    def bare(self, hits: Sequence[Hit]) -> list[Hit]:
        """The hits with no more than the search itself asked for."""
        kinds = self.search.with_vectors
        return [
            replace(
                hit,
                payload=hit.payload if self.search.with_payload else None,
                vectors=replace(
                    hit.vectors, **{kind: None for kind in ("dense", "sparse", "colbert") if kind not in kinds}
                )
                if kinds and hit.vectors is not None
                else None,
            )
            for hit in hits
        ]

    def _of(self, hit: Hit, branches: Mapping[Kind, _Branch], rows: NDArray[Any] | None) -> Explanation:
        places = {kind: branch.places(hit) for kind, branch in branches.items()}
        chosen = {kind: found[0] if found else None for kind, found in places.items()}
        fusion = None
        fused = self._fused(hit.score, places)
        if fused is not None:
            chosen, fusion = fused
        stored = hit.vectors
        sparse = None if stored is None else stored.sparse
        colbert = None if stored is None else stored.colbert
        return Explanation(
            branches=chosen,
            fusion=fusion,
            sparse=None if self.search.sparse is None else token_matches(self.search.sparse, sparse),
            colbert=None if rows is None or colbert is None else row_matches(rows, colbert),
            rows=None if colbert is None else len(colbert),
            indices=None if sparse is None else sparse.indices,
        )

    def _fused(
        self, score: float, places: Mapping[Kind, Sequence[Place]]
    ) -> tuple[dict[Kind, Place | None], dict[Kind, float]] | None:
        """The places that explain a score of RRF, and their parts of it."""
        search, planned = self.search, plan(self.search)
        if planned is None or not isinstance(planned.query, Fuse) or planned.query.method != "rrf":
            return None
        if prod(max(1, len(found)) for found in places.values()) > MOST_TIES:
            places = {kind: found[:1] for kind, found in places.items()}
        weights = dict(zip(search.using, search.weights or (1.0,) * len(search.using), strict=True))
        options: list[Sequence[Place | None]] = [found or [None] for found in places.values()]
        for ranked in product(*options):
            chosen: dict[Kind, Place | None] = dict(zip(places, ranked, strict=True))
            parts = {
                kind: 0.0 if place is None else 1 / (search.rrf_k + place.rank / weights[kind])
                for kind, place in chosen.items()
            }
            if isclose(sum(parts.values()), score, rel_tol=0, abs_tol=FUSED_TOLERANCE):
                return chosen, parts
        return None


class _Branch:
    """The candidates of one branch, best first."""

    def __init__(self, hits: Sequence[Hit]) -> None:
        self._scores = [hit.score for hit in hits]
        self._ranks = {hit.id: rank for rank, hit in enumerate(hits, start=1)}

    def places(self, hit: Hit) -> list[Place]:
        """Where the hit stands, and behind that where it might as well, its score being that of others too."""
        own = self._ranks.get(hit.id)
        if own is None:
            return []
        score = self._scores[own - 1]
        first = last = own
        while first > 1 and self._scores[first - 2] == score:
            first -= 1
        while last < len(self._scores) and self._scores[last] == score:
            last += 1
        return [Place(rank, score) for rank in (own, *(rank for rank in range(first, last + 1) if rank != own))]


def token_matches(query: SparseVector, passage: SparseVector | None) -> tuple[TokenMatch, ...]:
    """What the two have in common, the largest contribution first; the contributions add up to the inner product."""
    if passage is None:
        return ()
    shared, ours, theirs = np.intersect1d(query.indices, passage.indices, assume_unique=True, return_indices=True)
    found = [
        TokenMatch(index, one, other)
        for index, one, other in zip(
            shared.tolist(), query.values[ours].tolist(), passage.values[theirs].tolist(), strict=True
        )
    ]
    return tuple(sorted(found, key=lambda match: (-match.contribution, match.id)))


def row_matches(query: NDArray[Any], passage: NDArray[Any]) -> tuple[RowMatch, ...]:
    """The best row of the passage for each of the query; the scores add up to the MaxSim.

    Args:
        query: float [Q, size], rows of norm 1.
        passage: float [R, size], likewise, R at least 1.
    """
    products = query.astype(np.float32) @ passage.astype(np.float32).T
    best = products.argmax(axis=1)
    scores = products[np.arange(len(best)), best]
    return tuple(RowMatch(row, score) for row, score in zip(best.tolist(), scores.tolist(), strict=True))
