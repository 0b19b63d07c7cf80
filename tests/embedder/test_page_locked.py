"""Results hold page-locked memory up to a limit."""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch

from embedder.engines.page_locked import PageLocked


def rows(count: int) -> torch.Tensor:
    """Return rows of four float32 numbers, 16 bytes each."""
    return torch.arange(4.0 * count).view(count, 4)


@pytest.mark.slow
def test_a_result_is_a_view_of_the_buffer_and_returns_it() -> None:
    """Nothing is copied, and the buffer is reused after the last view of a batch is gone."""
    lender = PageLocked(limit_bytes=1000)
    buffer = rows(10)
    array = lender.lent(buffer)
    views = [array[0], array[3:5]]
    assert np.shares_memory(array, buffer.numpy())
    del array
    gc.collect()
    assert lender.lent_bytes == 256, "views hold the whole buffer"
    views.pop()
    assert lender.lent_bytes == 256
    views.clear()
    gc.collect()
    assert lender.lent_bytes == 0


def test_beyond_the_limit_results_are_copies() -> None:
    """Kept results never hold more page-locked memory than the limit."""
    lender = PageLocked(limit_bytes=300)
    first, second = lender.lent(rows(10)), lender.lent(rows(10))
    assert lender.lent_bytes == 256
    np.testing.assert_array_equal(first, second)
    assert second.base is None
    assert first.base is not None
    del first
    gc.collect()
    assert lender.lent(rows(12)).base is not None


@pytest.mark.parametrize(("count", "lent"), [(0, 0), (1, 16), (8, 128), (9, 256)])
def test_a_buffer_counts_as_the_block_that_torch_took_for_it(count: int, lent: int) -> None:
    """A buffer counts at torch's block size, which rounds up to a power of two."""
    lender = PageLocked()
    array = lender.lent(rows(count))
    assert (len(array), lender.lent_bytes) == (count, lent)
