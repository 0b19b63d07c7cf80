"""Filters of the points that lack vectors, so that a later run finds by itself what an earlier one has left."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations

from embedder.vectors import Kind
from qdrant_sink.filters import Filter
from qdrant_sink.schema import VectorNames


def of_all_kinds(kinds: Sequence[Kind], names: VectorNames) -> Filter:
    """Return the filter of the points that have the vectors of all these kinds."""
    return {"must": [{"has_vector": names.of(kind)} for kind in kinds]}


def of_any_lacking(kinds: Sequence[Kind], names: VectorNames) -> Filter:
    """Return the filter of the points that lack the vector of at least one of these kinds."""
    return {"should": [{"must_not": [{"has_vector": names.of(kind)}]} for kind in kinds]}


def of_exactly_lacking(lacking: Sequence[Kind], kinds: Sequence[Kind], names: VectorNames) -> Filter:
    """Return the filter of the points that lack the vectors of `lacking` and have those of the other `kinds`."""
    present = [kind for kind in kinds if kind not in lacking]
    return {
        "must": [{"has_vector": names.of(kind)} for kind in present],
        "must_not": [{"has_vector": names.of(kind)} for kind in lacking],
    }


def kinds_lacking(kinds: Sequence[Kind]) -> Iterator[tuple[Kind, ...]]:
    """Yield every set of kinds that a point may lack, the smallest first.

    A point that gets some of the vectors that it lacks then does not come to a set that is still to be walked.
    """
    for count in range(1, len(kinds) + 1):
        yield from combinations(kinds, count)
