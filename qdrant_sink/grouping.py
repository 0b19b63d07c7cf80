"""The hits of a search by document: at most so many per group, from as many groups as were asked for.

A grouped search ranks candidates as the same search without groups would, and then keeps of each group its best. While
fewer groups than wanted are among them and the store has more, the next round looks four times as deep in every
branch, up to `DEEPEST`. Qdrant has a request of its own for groups, which the embedded engine lacks and which gives up
after a few rounds on long documents; this one is the same over every store.

Rounds carry no more of a payload than the key of the group. What the hits are to carry is fetched at the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from embedder.vectors import Kind
from qdrant_sink.points import PointId
from qdrant_sink.search import Hit, Plan, Search, Stored, WithPayload, best_first, page, plan

DEEPEST: Final = 10_000
"""Candidates per branch beyond which no round looks for more groups, unless the search itself asks for more."""

STEP: Final = 4
"""A round is so many times as deep as the one before."""

AT_ONCE: Final = 50_000
"""Hits that a deeper round asks for in one batch, and one more search."""

MOST_NUMBERS: Final = 2**20
"""Of query vectors in one batch: 4 MB over gRPC; 21 MB as JSON, of which a server takes 32; 32 MB as a client's lists.
A query of 20 tokens with ColBERT rows of 1024 has 21 504.
"""

GROUP_KEY = r"^[\w-]+(\.[\w-]+)*$"
"""A path that leads through objects alone, to one value."""

Ask = Callable[[Sequence[Plan]], Sequence[Sequence[Hit]]]
"""Sends plans to a store as one batch; the hits of each, in their order."""

Fetch = Callable[[Sequence[PointId], WithPayload, tuple[Kind, ...]], Mapping[PointId, Stored]]
"""Reads stored points; those that are not there are left out."""


def answer(searches: Sequence[Search], ask: Ask, fetch: Fetch) -> list[list[Hit]]:
    """The hits of every search, best first. What lacks groups is asked again, deeper.

    One batch asks for all, unless their vectors together have more than `MOST_NUMBERS`.
    """
    answers: list[list[Hit]] = [[] for _ in searches]
    depths = {number: search.depth for number, search in enumerate(searches)}
    first = True
    while depths:
        planned = {n: p for n, depth in depths.items() if (p := plan(searches[n], depth)) is not None}
        found = [hits for batch in _batches(list(planned.values()), deep=not first) for hits in ask(batch)]
        first = False
        depths = {}
        for (number, one), hits in zip(planned.items(), found, strict=True):
            if one.search.group_by is None:
                answers[number] = page(one, hits)
            else:
                answers[number] = grouped(one.search, hits)
                deeper = next_depth(one, hits)
                if deeper is not None:
                    depths[number] = deeper
    return _completed(searches, answers, fetch)


def _batches(plans: Sequence[Plan], *, deep: bool) -> Iterator[list[Plan]]:
    """Of at most `MOST_NUMBERS`, or of one plan; those of deep rounds, which are large, of about `AT_ONCE` hits too."""
    batch: list[Plan] = []
    numbers = hits = 0
    for one in plans:
        if batch and (numbers + one.numbers > MOST_NUMBERS or (deep and hits >= AT_ONCE)):
            yield batch
            batch, numbers, hits = [], 0, 0
        batch.append(one)
        numbers += one.numbers
        hits += one.limit
    if batch:
        yield batch


def grouped(search: Search, hits: Sequence[Hit]) -> list[Hit]:
    """At most `group_size` hits of each of the `limit` best groups after the first `offset`, best first.

    A group is as good as its best hit.

    Args:
        search: with `group_by`.
        hits: of its plan, in any order, with the key in their payload.
    """
    members: dict[object, list[Hit]] = {}
    for hit in best_first(_above(search, hits)):
        key = group_of(hit, search.group_by or "")
        name = ("its own", hit.id) if key is None else (type(key), key)  # 1 and "1" are two groups
        members.setdefault(name, []).append(replace(hit, group=key))
    chosen = list(members.values())[search.offset : search.offset + search.limit]
    return best_first([hit for group in chosen for hit in group[: search.group_size]])


def next_depth(planned: Plan, hits: Sequence[Hit]) -> int | None:
    """Candidates per branch of the next round, or None where there are groups enough, no more points, or no patience.

    A store that gives fewer hits than one branch may have has given all that it has.
    """
    search = planned.search
    if len(hits) < planned.depth or planned.depth >= DEEPEST:
        return None
    groups = len(grouped(replace(search, offset=0, limit=search.offset + search.limit, group_size=1), hits))
    return None if groups >= search.offset + search.limit else min(planned.depth * STEP, DEEPEST)


def group_of(hit: Hit, path: str) -> str | int | None:
    """The string or integer at `path` of the payload; None where there is another value or none."""
    value: Any = hit.payload
    for part in path.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value if type(value) in (str, int) else None


def _above(search: Search, hits: Sequence[Hit]) -> Sequence[Hit]:
    if search.score_threshold is None:
        return hits
    threshold = float(np.float32(search.score_threshold))  # as a store compares
    return [hit for hit in hits if hit.score >= threshold]


def _completed(searches: Sequence[Search], answers: list[list[Hit]], fetch: Fetch) -> list[list[Hit]]:
    """With what the hits of grouped searches are to carry; a point that has gone meanwhile goes from the hits too."""
    wanted: dict[tuple[WithPayload, tuple[Kind, ...]], dict[PointId, None]] = {}
    for search, hits in zip(searches, answers, strict=True):
        if search.group_by is not None and hits:
            ids = wanted.setdefault((search.with_payload, search.with_vectors), {})
            ids.update(dict.fromkeys(hit.id for hit in hits))
    fetched = {
        what: fetch(list(ids), *what) if what != (False, ()) else dict.fromkeys(ids, Stored())
        for what, ids in wanted.items()
    }
    return [
        hits
        if search.group_by is None or not hits
        else _carrying(hits, fetched[search.with_payload, search.with_vectors])
        for search, hits in zip(searches, answers, strict=True)
    ]


def _carrying(hits: Sequence[Hit], stored: Mapping[PointId, Stored]) -> list[Hit]:
    return [
        replace(hit, payload=stored[hit.id].payload, vectors=stored[hit.id].vectors) for hit in hits if hit.id in stored
    ]
