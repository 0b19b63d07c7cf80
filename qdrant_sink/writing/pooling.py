"""Fewer ColBERT rows for a text that has more than a multivector holds.

Token pooling (Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal
Performance Impact via Token Pooling") replaces groups of similar rows by their mean. The paper finds the groups
by clustering; here they are neighbours in the text, its sequential variant: that takes time linear in the
rows where clustering is quadratic, gives the same rows for the same text everywhere, and a row still
stands for a span of the text.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MEAN_MIN: Final = 1e-3
"""Norm below which the mean of unit rows has no direction: its rows cancel out up to rounding."""


def pooled(rows: NDArray[Any], limit: int) -> NDArray[Any]:
    """At most `limit` rows: the unit means of as many groups of neighbours, of nearly equal size.

    Rows that fit are returned unchanged, and no more are merged than must be: two of 1024 rows for a limit of 1023.
    A group whose mean is near zero is represented by its first row.
    Numbers that are not finite stay so, for conformance to find.

    Args:
        rows: float [N, size], of L2 norm 1.
        limit: at least 1; `conformance.rows_max` of the size for a multivector of Qdrant.

    Returns:
        float [min(N, limit), size], of the dtype of `rows`.
    """
    if limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    count = rows.shape[0]
    if count <= limit:
        return rows
    starts = np.arange(limit) * count // limit
    wide = rows.astype(np.result_type(rows.dtype, np.float32), copy=False)
    with np.errstate(invalid="ignore", over="ignore"):
        means = np.add.reduceat(wide, starts, axis=0)
        means /= np.diff(starts, append=count)[:, np.newaxis]
        means = np.where(_norms(means) < MEAN_MIN, wide[starts], means)
        means /= np.maximum(_norms(means), MEAN_MIN)
    return means.astype(rows.dtype, copy=False)


def _norms(rows: NDArray[Any]) -> NDArray[Any]:
    norms: NDArray[Any] = np.linalg.norm(rows, axis=1, keepdims=True)
    return norms
