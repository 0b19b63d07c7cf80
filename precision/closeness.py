"""Closeness of the vectors of the same texts in two types: pure functions over numpy arrays.

The first of two arguments is always the reference.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embedder.vectors import SparseVector

NOTICEABLE = 0.01
"""Share of its text's largest weight from which a weight's own relative error is reported."""


@dataclass(frozen=True, slots=True)
class Spread:
    """The extremes of some numbers and three percentiles. NaN throughout for no numbers.

    Attributes:
        count: how many numbers.
        least: the smallest.
        percentile_1: 1st percentile, linear between neighbours.
        median: 50th percentile.
        percentile_99: 99th percentile.
        largest: the largest.
    """

    count: int
    least: float
    percentile_1: float
    median: float
    percentile_99: float
    largest: float

    @classmethod
    def of(cls, values: NDArray[Any]) -> Spread:
        """The spread of an array [N] of finite numbers."""
        if not len(values):
            return cls(0, *[float("nan")] * 5)
        return cls(len(values), *(float(value) for value in np.percentile(values, (0, 1, 50, 99, 100))))


@dataclass(frozen=True, slots=True)
class SparseDifference:
    """The differences of the lexical weights of all texts.

    A text's scale is its largest weight in the reference (in the other type if the reference has none).
    A missing weight is 0.

    Attributes:
        error: over the ids of either type, |w' - w| / max(w, floor x scale): see `sparse_difference`.
        own_error: over the ids of both whose w is at least 1 % of the scale, |w' - w| / w.
        jaccard: per text, ids of both / ids of either; 1 for two empty sets (Jaccard 1912).
        weighted_jaccard: per text, sum of min(w, w') / sum of max(w, w'); 1 for two empty sets (Ruzicka 1958).
        one_sided: ids, over all texts, that only one type has.
        one_sided_largest: the largest weight of such an id as a share of its text's scale; 0 without one.
    """

    error: Spread
    own_error: Spread
    jaccard: Spread
    weighted_jaccard: Spread
    one_sided: int
    one_sided_largest: float


def cosines(reference: NDArray[Any], other: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of each row with its counterpart, float64 [N].

    Args:
        reference: [N, H].
        other: as `reference`.

    Returns:
        Within [-1, 1]; where both rows are zero 1, where one is 0.
    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    norms = np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1)
    product = norms[0] * norms[1]
    cosine = (a * b).sum(axis=1) / np.where(product == 0, 1.0, product)
    found: NDArray[np.float64] = np.clip(np.where((norms[0] == 0) & (norms[1] == 0), 1.0, cosine), -1.0, 1.0)
    return found


def row_cosines(reference: Sequence[NDArray[Any]], other: Sequence[NDArray[Any]]) -> NDArray[np.float64]:
    """Cosines of all rows of all texts, float64 [R]; text by text, so that no copy of all rows is made.

    Args:
        reference: per text [T, C].
        other: of the same shapes.
    """
    return np.concatenate([np.empty(0), *(cosines(a, b) for a, b in zip(reference, other, strict=True))])


def sparse_difference(
    reference: Sequence[SparseVector], other: Sequence[SparseVector], *, floor: float
) -> SparseDifference:
    """Compare lexical weights text by text.

    A weight is relu(a . h + b): its rounding error follows the size of h, not its own, so the relative error of
    a weight near zero has no bound in any type. Hence the floor: a weight of at least `floor` times its text's
    largest is compared with itself, a smaller one with `floor` times the largest.

    Args:
        reference: one vector per text.
        other: as `reference`.
        floor: share of a text's scale, in (0, 1].
    """
    pairs = [_aligned(a, b) for a, b in zip(reference, other, strict=True)]
    w = np.concatenate([np.empty(0), *(pair[0] for pair in pairs)])
    v = np.concatenate([np.empty(0), *(pair[1] for pair in pairs)])
    scale = np.concatenate(
        [np.empty(0), *(np.full(len(a), a.max(initial=0) or b.max(initial=0)) for a, b in pairs)]
    )  # > 0 wherever there is an id
    difference = np.abs(v - w)
    shared = (w > 0) & (v > 0)
    noticeable = shared & (w >= NOTICEABLE * scale)
    return SparseDifference(
        error=Spread.of(difference / np.maximum(w, floor * scale)),
        own_error=Spread.of(difference[noticeable] / w[noticeable]),
        jaccard=Spread.of(_per_text(pairs, lambda a, b: (int(((a > 0) & (b > 0)).sum()), len(a)))),
        weighted_jaccard=Spread.of(
            _per_text(pairs, lambda a, b: (float(np.minimum(a, b).sum()), float(np.maximum(a, b).sum())))
        ),
        one_sided=int((~shared).sum()),
        one_sided_largest=float((np.maximum(w, v)[~shared] / scale[~shared]).max(initial=0.0)),
    )


def _aligned(reference: SparseVector, other: SparseVector) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Weights of both by the ids of either, ascending: two float64 [N], 0 where one has no weight."""
    ids = np.union1d(reference.indices, other.indices)
    found = np.zeros((2, len(ids)))
    for row, vector in zip(found, (reference, other), strict=True):
        row[np.searchsorted(ids, vector.indices)] = vector.values
    return found[0], found[1]


def _per_text(
    pairs: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    parts: Callable[[NDArray[np.float64], NDArray[np.float64]], tuple[float, float]],
) -> NDArray[np.float64]:
    """Per text a part over a whole, float64 [B]; two texts without ids agree."""
    return np.array([part / whole if whole else 1.0 for part, whole in (parts(a, b) for a, b in pairs)])
