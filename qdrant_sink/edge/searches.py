"""Searches of the embedded engine, in calls that do not hold the interpreter lock for long.

    several plans              as many in a call as take `CALL_S`, by the time of the calls before
    colbert alone              slices of the collection, of which each returns its best hits
    rerank of many candidates  the branches alone, and their candidates in portions; MaxSim of a point needs no other
    colbert beside others      the branch alone, in slices, and then the whole plan, with its candidates in that branch

All of them give the hits of one call. Between two calls other requests use the collection, and a search whose caller
has gone ends.
"""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import replace

import qdrant_edge as edge

from embedder.cancellation import check_cancelled
from embedder.errors import InvalidRequest
from qdrant_sink.edge.collection import EdgeCollection
from qdrant_sink.edge.faults import mapped
from qdrant_sink.edge.models import edge_id, hit, payload_selector, query_request, sink_id, stored
from qdrant_sink.edge.slices import resolved_filter, slice_of
from qdrant_sink.edge.work import (
    CALL_S,
    FIRST_PLANS,
    SPLIT_S,
    UNDIVIDED_MAX_S,
    PairRate,
    pair_s,
    row_numbers,
)
from qdrant_sink.filters import parse_filter
from qdrant_sink.points import PointId
from qdrant_sink.searching.plan import Branch, Hit, Nearest, Plan, Traversal


def search(collection: EdgeCollection, plans: Sequence[Plan], rate: PairRate) -> list[list[Hit]]:
    """Return the hits of each plan.

    Raises:
        Cancelled: the caller has gone.
        InvalidRequest: a filter is not supported, or a fusion compares too many ColBERT rows.
        StoreError: see the table in `qdrant_sink.store`.
    """
    return _Searches(collection, rate).hits(plans)


class _Searches:
    def __init__(self, collection: EdgeCollection, rate: PairRate) -> None:
        self._collection = collection
        self._rate = rate
        self._conditions: dict[int, edge.Filter | None] = {}  # by the identity of the filter
        self._scanned: dict[tuple[object, ...], list[PointId]] = {}  # by all that decides on the candidates

    def hits(self, plans: Sequence[Plan]) -> list[list[Hit]]:
        answers: dict[int, list[Hit]] = {}
        whole: list[tuple[int, Plan]] = []
        for index, plan in enumerate(plans):
            if isinstance(plan.query, Nearest) and not plan.branches and self._is_long_scan(plan.query):
                answers[index] = self._with_parts(plan, self._scan(plan))
            elif self._is_long_rerank(plan):
                answers[index] = self._with_parts(plan, self._rerank(plan))
            else:
                whole.append((index, plan))
        for batch, hits in self._batches([plan for _, plan in whole]):
            answers.update(zip([index for index, _ in whole[batch]], hits, strict=True))
        return [answers[index] for index in range(len(plans))]

    def _batches(self, plans: Sequence[Plan]) -> Iterator[tuple[slice, list[list[Hit]]]]:
        """Yield the hits of consecutive plans, as many at a time as a call may take."""
        start, other_s = 0, CALL_S / FIRST_PLANS
        while start < len(plans):
            check_cancelled()
            end, planned_s = start, 0.0
            while end < len(plans):
                plan_s = other_s + self._pairs_s(plans[end])
                if end > start and planned_s + plan_s > CALL_S:
                    break
                planned_s += plan_s
                end += 1
            batch = plans[start:end]
            requests = [self._request(plan) for plan in batch]
            with self._collection.opened() as shard, mapped("search"):
                began = time.perf_counter()
                answers = shard.query_batch(edge.QueryBatchRequest(requests))
                taken_s = time.perf_counter() - began
                hits = [[hit(point, plan.names) for point in found] for plan, found in zip(batch, answers, strict=True)]
            rest_s = max(0.0, taken_s - sum(map(self._pairs_s, batch)))
            if rest_s > SPLIT_S:
                self._learn_filter(batch, rest_s)
            other_s = rest_s / len(batch)
            yield slice(start, end), hits
            start = end

    def _learn_filter(self, plans: Sequence[Plan], seconds: float) -> None:
        """Note a slow call as that of its filter, which costs more than the rest where payloads are large."""
        filters = [parse_filter(plan.where) for plan in plans if plan.where is not None]
        if filters:
            compared = self._points() * sum(max(1, len(plan.branches)) for plan in plans)
            self._collection.filter_rates.observe(filters[0], compared, seconds)

    def _request(self, plan: Plan) -> edge.QueryRequest:
        candidates: dict[int, edge.Filter] = {}
        for index, branch in enumerate(plan.branches):
            if self._is_long_scan(branch.query):
                candidates_max = min(branch.limit, self._points())
                if branch.query.rows * candidates_max * pair_s(branch.query) > UNDIVIDED_MAX_S:
                    raise _too_many(branch, candidates_max)
                ids = self._candidates(plan, branch)
                candidates[index] = edge.Filter(must=[edge.HasIdCondition(set(map(edge_id, ids)))])
        return query_request(plan, self._condition(plan), candidates)

    def _pairs_s(self, plan: Plan) -> float:
        """Return the time in seconds in which the last stage of a plan compares ColBERT rows."""
        if not plan.branches or not isinstance(plan.query, Nearest) or plan.query.kind != "colbert":
            return 0.0
        pairs = plan.query.rows * sum(branch.limit for branch in plan.branches)
        return pairs * self._rate.seconds(row_numbers(plan.query))

    def _is_long_rerank(self, plan: Plan) -> bool:
        query = plan.query
        if not plan.branches or not isinstance(query, Nearest) or query.kind != "colbert":
            return False
        return query.rows * sum(branch.limit for branch in plan.branches) * pair_s(query) > SPLIT_S

    def _is_long_scan(self, query: Nearest) -> bool:
        """Whether a stage that searches the collection itself compares ColBERT rows for long."""
        return query.kind == "colbert" and query.rows * self._points() * pair_s(query) > SPLIT_S

    def _points(self) -> int:
        with self._collection.opened() as shard, mapped("search"):
            return shard.info().points_count

    def _candidates(self, plan: Plan, branch: Branch) -> list[PointId]:
        """Return the ids of the candidates of a branch, best first."""
        key = (
            id(branch.query.vector),
            branch.query.rescoring,
            id(plan.where),
            plan.traversal,
            plan.names,
            branch.limit,
        )
        if key not in self._scanned:
            alone = replace(
                plan,
                query=branch.query,
                branches=(),
                limit=branch.limit,
                offset=0,
                score_threshold=None,
                with_payload=False,
                with_vectors=(),
            )
            [hits] = self.hits([alone])
            self._scanned[key] = [found.id for found in hits]
        return self._scanned[key]

    def _scan(self, plan: Plan) -> list[Hit]:
        """Search all ColBERT rows of the collection in slices."""
        query = plan.query
        if not isinstance(query, Nearest):
            raise TypeError("only a stage with a vector searches the collection")
        condition, points = self._condition(plan), self._points()
        total = math.ceil(query.rows * points * self._rate.seconds(row_numbers(query)) / CALL_S)
        bare = replace(plan, limit=plan.offset + plan.limit, offset=0, with_payload=False, with_vectors=())
        hits: list[Hit] = []
        for index in range(total):
            check_cancelled()
            request = query_request(bare, slice_of(condition, total, index), {})
            hits += self._compared(bare, request, query.rows * points // total)
            hits = _best(hits, bare.limit)
        return hits[plan.offset :]

    def _rerank(self, plan: Plan) -> list[Hit]:
        """Rerank the candidates of the branches in portions."""
        query = plan.query
        if not isinstance(query, Nearest):
            raise TypeError("only a stage with a vector reranks")
        ids = list(dict.fromkeys(point for branch in plan.branches for point in self._candidates(plan, branch)))
        size = max(1, int(CALL_S / (query.rows * self._rate.seconds(row_numbers(query)))))
        hits: list[Hit] = []
        start = 0
        while start < len(ids):
            check_cancelled()
            portion = ids[start : start + size]
            alone = replace(
                plan,
                branches=(),
                limit=len(portion),
                offset=0,
                with_payload=False,
                with_vectors=(),
                traversal=Traversal(exact=query.rescoring is None),  # that of the branches is not for their candidates
            )
            condition = edge.Filter(must=[edge.HasIdCondition(set(map(edge_id, portion)))])
            hits += self._compared(alone, query_request(alone, condition, {}), query.rows * len(portion))
            start += len(portion)
            size = max(1, int(CALL_S / (query.rows * self._rate.seconds(row_numbers(query)))))
        return _best(hits, plan.offset + plan.limit)[plan.offset :]

    def _compared(self, plan: Plan, request: edge.QueryRequest, pairs: int) -> list[Hit]:
        """Make a call that compares so many pairs of a query row and a passage, and learn how long that takes."""
        with self._collection.opened() as shard, mapped("search"):
            began = time.perf_counter()
            found = shard.query(request)
            self._rate.observe(pairs, time.perf_counter() - began)
            return [hit(point, plan.names) for point in found]

    def _with_parts(self, plan: Plan, hits: Sequence[Hit]) -> list[Hit]:
        """Return the hits with the parts of the plan. Points that were deleted in between are left out."""
        if not hits or not (plan.with_payload or plan.with_vectors):
            return list(hits)
        vectors = [plan.names.of(kind) for kind in plan.with_vectors] or False
        with self._collection.opened() as shard, mapped("search"):
            records = shard.retrieve(
                [edge_id(found.id) for found in hits],
                with_payload=payload_selector(plan.with_payload),
                with_vector=vectors,
            )
            parts = {sink_id(record.id): stored(record, plan.names) for record in records}
        return [
            replace(found, payload=parts[found.id].payload, vectors=parts[found.id].vectors)
            for found in hits
            if found.id in parts
        ]

    def _condition(self, plan: Plan) -> edge.Filter | None:
        key = id(plan.where)
        if key not in self._conditions:
            self._conditions[key] = resolved_filter(self._collection, plan.where)
        return self._conditions[key]


def _best(hits: Sequence[Hit], limit: int) -> list[Hit]:
    """Return the best hits, equal scores by id."""
    return sorted(hits, key=lambda found: (-found.known_score, *_rank(found.id)))[:limit]


def _rank(point: PointId) -> tuple[bool, int]:
    return (True, point.int) if isinstance(point, uuid.UUID) else (False, point)


def _too_many(branch: Branch, candidates_max: int) -> InvalidRequest:
    pairs_max = int(UNDIVIDED_MAX_S / pair_s(branch.query))
    return InvalidRequest(
        f"prefetch: a fusion with a colbert branch in the embedded store must compare at most {pairs_max} pairs of a "
        f"query row and a candidate (rows x candidates), got {branch.query.rows} x {candidates_max}; lower prefetch or "
        "offset, leave out groupBy, use colbert for reranking, or use a Qdrant server"
    )
