"""Reduce the number of ColBERT rows of a text that has more than a multivector can hold.

Token pooling (Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal
Performance Impact via Token Pooling") replaces groups of similar rows by their mean. The paper forms the groups
by clustering. This module uses its sequential variant, in which a group consists of neighbouring rows. It takes linear
instead of quadratic time, it is deterministic, and a row still stands for a span of the text.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MEAN_MIN: Final = 1e-3
"""Norm below which the mean of unit rows has no direction, because the rows cancel each other out up to rounding."""


def pooled(rows: NDArray[Any], limit: int) -> NDArray[Any]:
    """Pool rows to at most `limit` rows: the normalised means of groups of neighbouring rows, of nearly equal size.

    If there are at most `limit` rows, they are returned unchanged. Otherwise as few rows as possible are merged: two of
    1024 rows for a limit of 1023. A group whose mean is near zero is represented by its first row. Numbers that are not
    finite are kept, so that conformance refuses them.

    Args:
        rows: float [N, size] with L2 norm 1.
        limit: maximum number of rows, at least 1. For a multivector of Qdrant it is `conformance.rows_max(size)`.

    Returns:
        float [min(N, limit), size] with the dtype of `rows`.
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
