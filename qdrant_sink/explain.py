"""Why a hit stands where it does: its place in every branch, and what of its vectors matched the query's.

An explained search is asked together with one search per branch, of which only ids and scores come back, and with the
sparse and ColBERT vectors of its own hits. All of that is one request (`Inquiry.searches`); the rest is computed here.
Only a grouped search that looked deeper than its first round (`qdrant_sink.grouping`) has its branches asked again.

Qdrant orders equal scores anew at every request, so among equal scores a branch alone can rank a point otherwise
than it did inside the fused search. There the fused score decides which of those ranks it was.

Pure functions of numpy, but for `explained`, which asks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import isclose, prod
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import Kind, SparseVector
from qdrant_sink.grouping import DEEPEST, STEP
from qdrant_sink.search import Fuse, Hit, PayloadKeys, Search, WithPayload, plan

FUSED_TOLERANCE: Final[Mapping[str, float]] = {"rrf": 1e-6, "dbsf": 1e-3}
"""Of a fused score, against the sum of what its branches contributed. A store scales scores in float32."""

MOST_TIES: Final = 4096
"""Combinations of ranks that are tried where scores of branches are equal."""


Ask = Callable[[Sequence[Search]], Sequence[Sequence[Hit]]]
"""Sends searches to a store as one batch; the hits of each, in their order."""


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
            fused, or the branches alone do not add up to it (the collection changed meanwhile).
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
        text_key: of the payload, where the text is that an explanation points into.
        asked: the search, with the payload and the vectors that the explanation needs.
        branches: by kind, the candidates of each branch of the search.
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
        payload = _with_text(search.with_payload, text_key)
        asked = replace(search, with_payload=payload, with_vectors=tuple(sorted(needed)))
        planned = plan(search)
        fuse = planned.query if planned is not None and isinstance(planned.query, Fuse) else None
        return cls(search, text_key, asked, branches, fuse)

    @property
    def searches(self) -> list[Search]:
        """All that is asked, the hits first."""
        return [self.asked, *self.branches.values()]

    def deeper(self, answers: Sequence[Sequence[Hit]]) -> Inquiry | None:
        """The inquiry of which the branches look further; None where these answers explain the hits, or nothing will.

        A grouped search takes hits from as deep as it must to find its groups, and does not tell how deep that was.
        """
        hits, *others = answers
        full = any(len(found) == one.limit for one, found in zip(self.branches.values(), others, strict=True))
        depth = max(one.limit for one in self.branches.values())
        if self.search.group_by is None or not full or depth >= DEEPEST:
            return None
        branches = self._ranked(others)
        if all(self._placed(hit, branches) for hit in hits):
            return None
        depth = min(depth * STEP, DEEPEST)
        return replace(self, branches={kind: replace(one, limit=depth) for kind, one in self.branches.items()})

    def explain(self, answers: Sequence[Sequence[Hit]], *, halved: bool) -> list[Explanation]:
        """Of each hit in `answers[0]`.

        Args:
            answers: to `searches`.
            halved: whether the store compares ColBERT rows in float16.
        """
        hits, *others = answers
        branches = self._ranked(others)
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
                payload=self._selected(hit.payload),
                vectors=replace(
                    hit.vectors, **{kind: None for kind in ("dense", "sparse", "colbert") if kind not in kinds}
                )
                if kinds and hit.vectors is not None
                else None,
            )
            for hit in hits
        ]

    def _selected(self, payload: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
        """Without the text, where that was fetched for the explanation alone."""
        wanted = self.search.with_payload
        if not wanted or payload is None:
            return None
        if wanted is True or any(path in wanted.keys for path in _paths(self.text_key)) != wanted.excluded:
            return payload
        return {key: value for key, value in payload.items() if key != self.text_key}

    def _ranked(self, answers: Sequence[Sequence[Hit]]) -> dict[Kind, _Branch]:
        return dict(zip(self.branches, map(_Branch, answers), strict=True))

    def _placed(self, hit: Hit, branches: Mapping[Kind, _Branch]) -> bool:
        """Whether the branches account for the hit: for its fused score, or at least for its being there."""
        if self.fuse is not None:
            return self._fused(hit, branches, self.fuse) is not None
        return any(branch.place(hit) for branch in branches.values())

    def _of(self, hit: Hit, branches: Mapping[Kind, _Branch], rows: NDArray[Any] | None) -> Explanation:
        fused = None if self.fuse is None else self._fused(hit, branches, self.fuse)
        chosen, fusion = fused or ({kind: branch.place(hit) for kind, branch in branches.items()}, None)
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
        self, hit: Hit, branches: Mapping[Kind, _Branch], fuse: Fuse
    ) -> tuple[dict[Kind, Place | None], dict[Kind, float]] | None:
        """The places that explain a fused score, and their parts of it."""
        places = {kind: branch.places(hit) for kind, branch in branches.items()}
        if prod(max(1, len(found)) for found in places.values()) > MOST_TIES:
            places = {kind: found[:1] for kind, found in places.items()}
        weights = dict(zip(places, self.search.weights or (1.0,) * len(places), strict=True))
        options: list[Sequence[Place | None]] = [found or [None] for found in places.values()]
        for ranked in product(*options):
            chosen: dict[Kind, Place | None] = dict(zip(places, ranked, strict=True))
            parts = {
                kind: 0.0 if place is None else branches[kind].part(place, fuse, weights[kind])
                for kind, place in chosen.items()
            }
            if isclose(sum(parts.values()), hit.score, rel_tol=0, abs_tol=FUSED_TOLERANCE[fuse.method]):
                return chosen, parts
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Explained:
    """The answer to an explained search.

    Attributes:
        hits: with no more than the search asked for.
        payloads: of the hits, with the text at least.
        explanations: of the hits.
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

    def place(self, hit: Hit) -> Place | None:
        """Where the hit stands; None if it is no candidate."""
        return next(iter(self.places(hit)), None)

    def part(self, place: Place, fuse: Fuse, weight: float) -> float:
        """What the branch adds to a fused score: by rank or, scaled to 3 standard deviations of a sample, by score."""
        if fuse.method == "rrf":
            return 1 / (fuse.k - 1 + place.rank / weight)
        if self._scores[0] == self._scores[-1]:
            return 0.5
        if self._scale is None:
            self._scale = float(np.mean(self._scores)), float(np.std(self._scores, ddof=1))
        mean, deviation = self._scale
        return 0.5 + (place.score - mean) / (6 * deviation)

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


def explained(searches: Sequence[Search], ask: Ask, *, text_key: str, halved: bool) -> list[Explained]:
    """The hits of each search and what explains them.

    Args:
        searches: that `conformance.conform_query` has proven.
        ask: the store.
        text_key: as in `Inquiry`.
        halved: as in `Inquiry.explain`.
    """
    inquiries = [Inquiry.of(search, text_key) for search in searches]
    rest = iter(ask([one for inquiry in inquiries for one in inquiry.searches]))
    answers = [[next(rest) for _ in inquiry.searches] for inquiry in inquiries]
    found = []
    for inquiry, own in zip(inquiries, answers, strict=True):
        deeper = inquiry.deeper(own)
        while deeper is not None:
            own[1:] = ask(list(deeper.branches.values()))
            deeper = deeper.deeper(own)
        payloads = [hit.payload for hit in own[0]]
        found.append(Explained(inquiry.bare(own[0]), payloads, inquiry.explain(own, halved=halved)))
    return found


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


def _paths(key: str) -> tuple[str, ...]:
    """What selects a payload's own key: the key in quotes and, unless it would be read as a path, as it is."""
    quoted = f'"{key}"'
    return (quoted, key) if re.fullmatch(r"[\w-]+", key) else (quoted,)


def _with_text(wanted: WithPayload, key: str) -> WithPayload:
    """The selection, and the text beside it where its key can be written."""
    if isinstance(wanted, PayloadKeys) and wanted.excluded:
        kept = tuple(path for path in wanted.keys if path not in _paths(key))
        return PayloadKeys(kept, excluded=True) if kept else True
    if wanted is True or '"' in key:
        return wanted
    return PayloadKeys((*(wanted.keys if wanted else ()), _paths(key)[0]))
