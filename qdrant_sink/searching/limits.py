"""Limits of a server on queries (its strict mode), as its refusals tell them, and plans that respect them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from qdrant_sink.errors import LimitExceeded
from qdrant_sink.searching.plan import OVERSAMPLING, Branch, Hit, Lacking, Nearest, Plan
from qdrant_sink.searching.planning import TIE_MARGIN_HITS
from qdrant_sink.searching.query import PREFETCH, Search, SearchOptions

SLICES_MAX: Final = 50
"""Maximum number of slices of one plan. The server searches every slice from the first hit on."""


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """Limits of a server; None for a limit that it has not shown.

    Attributes:
        hits: maximum limit of a query and of each of its branches. An offset is not limited.
        queries: maximum number of queries in one batch.
        oversampling: maximum oversampling.
    """

    hits: int | None = None
    queries: int | None = None
    oversampling: float | None = None

    def lowered(self, error: LimitExceeded, searches: Sequence[Search]) -> Self:
        """Return the limits extended by the limit that a server has just shown.

        Args:
            error: refusal of the server.
            searches: searches of the caller.

        Raises:
            LimitExceeded: the options of a search exceed the limit by themselves, or the limit was known already.
        """
        for search in searches:
            _check(search.options, error)
        maximum = error.maximum
        if error.field == "limit" and maximum >= 1 and (self.hits is None or maximum < self.hits):
            return replace(self, hits=int(maximum))
        if error.field == "search batch size" and maximum >= 1 and (self.queries is None or maximum < self.queries):
            return replace(self, queries=int(maximum))
        known = self.oversampling
        if error.field == "oversampling" and maximum >= 1 and (known is None or maximum < known):
            return replace(self, oversampling=maximum)
        raise error

    def depth(self, search: Search, depth: int) -> int:
        """Return the number of candidates per branch, lowered to the greatest that the server accepts."""
        if self.hits is None:
            return depth
        single = len(search.options.using) == 1 and search.options.rerank is None
        return min(depth, _step(self.hits) * SLICES_MAX if single else self.hits)

    def unreachable(self, reached: int, end: int) -> LimitExceeded:
        """Create the error for a page up to hit `end` of a search that reaches only `reached` on this server."""
        return LimitExceeded(
            f"offset: offset + limit must be at most {reached}, which this search reaches within the max_query_limit "
            f"({self.hits}) of Qdrant's strict mode, got {end}; lower offset or raise max_query_limit",
            field="limit",
            maximum=self.hits or 0,
        )

    def slices(self, plan: Plan) -> list[Plan]:
        """Split a plan into consecutive plans that the server accepts.

        Slices overlap by the margin for ties, because the server orders equal scores arbitrarily in every request.
        """
        plan = self._with_oversampling(plan)
        if self.hits is not None and isinstance(plan.query, Lacking):
            # The fusion before the last stage has a limit of its own, which no slice can continue.
            query = replace(plan.query, candidates_max=min(plan.query.candidates_max, self.hits))
            return [replace(plan, query=query, limit=min(plan.limit, self.hits))]
        if self.hits is None or plan.limit <= self.hits:
            return [plan]
        offsets = range(0, max(1, plan.limit - self.hits + _step(self.hits)), _step(self.hits))
        return [replace(plan, limit=min(self.hits, plan.limit - offset), offset=offset) for offset in offsets]

    def _with_oversampling(self, plan: Plan) -> Plan:
        if self.oversampling is None:
            return plan
        branches = tuple(Branch(self._lowered_query(branch.query), branch.limit) for branch in plan.branches)
        query = self._lowered_query(plan.query) if isinstance(plan.query, Nearest) else plan.query
        return replace(plan, query=query, branches=branches)

    def _lowered_query(self, query: Nearest) -> Nearest:
        if query.rescoring is None or self.oversampling is None:
            return query
        lowered = min(query.rescoring.oversampling, self.oversampling)
        return replace(query, rescoring=replace(query.rescoring, oversampling=lowered))


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """The answer to a plan.

    Attributes:
        hits: hits in any order.
        count: number of hits up to the last one. It exceeds that of `hits` if slices overlap by more than their offsets
            tell, because the store searches each of them anew.
    """

    hits: Sequence[Hit]
    count: int

    @classmethod
    def joined(cls, slices: Sequence[Plan], hits: Sequence[Sequence[Hit]]) -> Self:
        """Join the hits of consecutive slices. A hit of several slices is kept once."""
        unique = {hit.id: hit for part in hits for hit in part}
        count = max(plan.offset + len(part) for plan, part in zip(slices, hits, strict=True) if part or not plan.offset)
        return cls(list(unique.values()), count)


def _step(hits: int) -> int:
    """Return the number of hits by which one slice begins after the previous one."""
    return hits - min(TIE_MARGIN_HITS, hits // 2)


def _check(options: SearchOptions, error: LimitExceeded) -> None:
    """Raise an error in words if the options exceed a limit by themselves, and not because of a default."""
    asked: dict[str, Sequence[tuple[str, Any, float, str]]] = {
        "limit": (
            ("limit", options.limit, 0, "max_query_limit"),
            ("prefetch", options.prefetch, PREFETCH, "max_query_limit"),
        ),
        "hnsw_ef": (("hnsw_ef", options.hnsw_ef or 0, 0, "search_max_hnsw_ef"),),
        "oversampling": (("oversampling", options.rescoring.oversampling, OVERSAMPLING, "search_max_oversampling"),),
    }
    for name, value, default, setting in asked.get(error.field, ()):
        if value > max(error.maximum, default):
            raise LimitExceeded(
                f"{name}: must be at most {error.maximum:g}, the {setting} of Qdrant's strict mode, got {value:g}; "
                f"lower {name} or raise {setting}",
                field=error.field,
                maximum=error.maximum,
            ) from error
