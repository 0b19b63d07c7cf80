"""Fewer ColBERT rows for a text that has more than a multivector holds.

Token pooling (Clavié, Chaffin and Adams 2024, "Reducing the Footprint of Multi-Vector Retrieval with Minimal
Performance Impact via Token Pooling") replaces groups of similar rows by their mean. The paper finds the groups
by clustering; here they are neighbours in the text, its sequential variant: that takes time linear in the
rows where clustering is quadratic, gives the same rows for the same text everywhere, and a row still
stands for a place in the text.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MEAN_MIN: Final = 1e-3
"""A mean of unit rows that is shorter than this points nowhere: its rows cancel out but for rounding."""


def pooled(rows: NDArray[Any], limit: int) -> NDArray[Any]:
    """At most `limit` rows: the unit means of as many groups of neighbours, of nearly equal size.

    Rows that fit are returned as they are, and no more is merged than must be: of 1024 rows for 1023 places two.
    A group whose mean is near zero is represented by its first row.
    What is not finite stays so, for conformance to find.

    Args:
        rows: float [N, size], of L2 norm 1.
        limit: at least 1; `conformance.most_rows` of the size for a multivector of Qdrant.

    Returns:
        Of the dtype of `rows`; [min(N, limit), size].
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
