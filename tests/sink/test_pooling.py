"""Pooled ColBERT rows fit into a multivector and still return the same hits."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from qdrant_sink.conformance import conform, rows_max
from qdrant_sink.points import Draft, Point, Vectors
from qdrant_sink.writing.pooling import pooled
from tests.sink.samples import sample_vectors, schema_for, unit


def smooth(count: int, size: int, seed: int = 0) -> NDArray[np.float32]:
    """Create unit rows whose neighbours are similar, like those of a text."""
    steps = np.random.default_rng(seed).normal(size=(count + 8, size))
    return unit(np.stack([steps[at : at + 8].mean(axis=0) for at in range(count)]))


def max_sim(query: NDArray[Any], rows: NDArray[Any]) -> float:
    """Compute the mean over the query rows of the best score."""
    return float((query @ rows.T).max(axis=1).mean())


@pytest.mark.slow
@given(count=st.integers(1, 300), limit=st.integers(1, 300))
def test_rows_are_unit_means_of_neighbours(count: int, limit: int) -> None:
    """Every pooled row is the normalised mean of its group, and the sizes of the groups differ by at most one."""
    rows = unit(np.random.default_rng(count).normal(size=(count, 6)))
    pooled_rows = pooled(rows, limit)
    assert len(pooled_rows) == min(count, limit)
    bounds = [index * count // len(pooled_rows) for index in range(len(pooled_rows) + 1)]
    sizes = np.diff(bounds)
    assert sizes.max() - sizes.min() <= 1
    for row, (start, end) in zip(pooled_rows, pairwise(bounds), strict=True):
        assert row == pytest.approx(unit(rows[start:end].mean(axis=0)), abs=1e-5)
    assert np.linalg.norm(pooled_rows, axis=1) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("count", [1, 7, 8])
def test_rows_that_fit_stay_as_they_are(count: int) -> None:
    """A text within the limit is not changed."""
    rows = smooth(count, 4)
    assert pooled(rows, 8) is rows


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_the_type_is_kept(dtype: str) -> None:
    """The dtype is kept, and sums of float16 rows are computed in float32."""
    rows = smooth(300, 8).astype(dtype)
    pooled_rows = pooled(rows, 2)
    assert pooled_rows.dtype == rows.dtype
    assert pooled_rows == pytest.approx(pooled(rows.astype(np.float64), 2), abs=2e-3)


def test_rows_that_cancel_out_keep_the_first() -> None:
    """A group whose mean is zero is represented by its first row."""
    row = unit(np.array([[3.0, 4.0]]))
    assert pooled(np.concatenate([row, -row, row, row]), 2) == pytest.approx(np.concatenate([row, row]))


def test_nan_is_kept() -> None:
    """Pooling keeps a NaN, so that conformance refuses it."""
    rows = smooth(10, 4)
    rows[3, 1] = np.nan
    assert np.isnan(pooled(rows, 5)).any(axis=1).tolist() == [False, True, False, False, False]


def test_a_limit_below_one_is_refused() -> None:
    """A multivector must have at least one row."""
    with pytest.raises(ValueError, match="at least 1, got 0"):
        pooled(smooth(3, 4), 0)


@pytest.mark.parametrize("factor", [2, 4])
def test_a_search_finds_the_same_in_pooled_rows(factor: int) -> None:
    """If neighbouring rows are similar, MaxSim changes little, and the best text stays the best."""
    texts = [smooth(240, 64, seed) for seed in range(12)]
    for wanted, rows in enumerate(texts):
        query = unit(rows[::30] + 0.3 * unit(np.random.default_rng(99).normal(size=(8, 64))))
        before = [max_sim(query, text) for text in texts]
        after = [max_sim(query, pooled(text, 240 // factor)) for text in texts]
        assert np.argmax(before) == np.argmax(after) == wanted
        assert after[wanted] == pytest.approx(before[wanted], abs=0.06 * factor)
        assert after[wanted] > 1.3 * sorted(after)[-2]


def test_a_text_of_the_full_model_fits_when_pooled() -> None:
    """8191 rows of 1024 are pooled to 1023, the limit of a multivector."""
    assert rows_max(1024) == 1023
    long = sample_vectors(0, rows=8191, size=1024, kinds=("colbert",))
    assert long.colbert is not None
    short = pooled(long.colbert.astype(np.float16), rows_max(1024))
    assert short.shape == (1023, 1024)
    fitting = Vectors(colbert=short)
    assert isinstance(conform(Draft(0, 0, {}, fitting), schema_for(1024, 1024)), Point)


@pytest.mark.parametrize("size", [1, 8, 192, 1000, 1024])
def test_rows_max_is_where_conformance_ends(size: int) -> None:
    """Pooling and conformance use the same limit."""
    assert rows_max(size) * size < 2**20 <= (rows_max(size) + 1) * size
