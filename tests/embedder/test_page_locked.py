"""Results hold page-locked memory up to a limit."""

from __future__ import annotations

import gc
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embedder.engines import TokenBatch
from embedder.engines.cuda import PendingCudaBatch
from embedder.engines.inputs import Inputs
from embedder.engines.outputs import HeadInputs
from embedder.engines.page_locked import PageLocked
from embedder.scheduling.runner import Text, _results
from embedder.vectors import Embedding, Outputs
from tests.embedder.bench import Bench


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_results_of_a_gpu_hold_its_buffers_until_the_last_view_is_gone(mini: Bench) -> None:
    """Jobs of both types have views of what the device wrote, whose memory returns with the last of them."""
    lender = PageLocked()
    texts = mini.tokenizer.encode(["tool", "library", "data", "tool"], 16)
    assert len({len(text) for text in texts}) == 1, "each job has half of the batch"
    batch = TokenBatch.of([text.ids for text in texts])
    inputs = Inputs.of(batch, mini.model.config.pad_id)
    wanted = [Outputs(colbert_type="float16"), Outputs()]
    heads = HeadInputs.of(inputs, wanted[0] | wanted[1], mini.model.heads)
    indices = {name: torch.from_numpy(array) for name, array in heads.indices.items()}
    staged = heads.launch(mini.model.heads, torch.randn(len(inputs.ids), mini.model.config.hidden), indices)
    buffers = {name: tensor.numpy() for name, tensor in staged.items()}
    event: Any = SimpleNamespace(synchronize=lambda: None)
    encoded = PendingCudaBatch("cpu", heads, len(texts), {}, staged, event, lender).wait()
    outputs = [wanted[number // 2] for number in range(4)]
    jobs = [Text(text, own, own.colbert_type) for text, own in zip(texts, outputs, strict=True)]
    results = [result for result in _results(jobs, encoded, heads.outputs) if isinstance(result, Embedding)]
    assert len(results) == len(texts)
    for result, own in zip(results, outputs, strict=True):
        assert result.dense is not None
        assert result.colbert is not None
        assert result.colbert.dtype == own.colbert_type
        assert np.shares_memory(result.dense, buffers["dense"])
        assert np.shares_memory(
            result.colbert, buffers["colbert" if own.colbert_type == "float32" else "colbert_float16"]
        )
    last = results[2].colbert
    del encoded, results, result
    gc.collect()
    assert last is not None
    assert lender.lent_bytes == _block(buffers["colbert"].nbytes), "the buffer of the last view alone"
    del last
    gc.collect()
    assert lender.lent_bytes == 0


def _block(size: int) -> int:
    """Return the smallest power of two from this size."""
    return 1 << (size - 1).bit_length()
