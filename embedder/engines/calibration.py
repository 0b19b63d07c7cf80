"""Calibration at start: the rate of a product per type on this machine, and the token budget of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from embedder.engines.engine import Engine, TokenBatch

_TEXT_TOKENS = 128
"""Tokens per text while measuring: between a query and a long passage."""
_BUDGET_MIN_TOKENS = 512
_BUDGET_MAX_TOKENS = {"cpu": 16_384, "cuda": 32_768}
_GAIN_MIN_FACTOR = 1.05
"""A doubled batch must raise the rate by this factor to be worth the longer wait."""
_DECISIVE_FACTOR = 4 / 3
"""Speed factor from which attention by products is preferred, which rounds scores; measurements vary by a tenth."""
_MEMORY_MAX_SHARE = 0.8
"""Share of a GPU's free memory that batches under way may take together."""


def product_rates(
    dtypes: Sequence[str], *, rows: int = 128, rounds: int = 3, clock: Callable[[], float] = time.thread_time
) -> dict[str, float]:
    """FLOP/s by type of a [rows, 1024] x [1024, 4096] product on one core of the CPU, prepared as the engine does it.

    Args:
        dtypes: types of `has_quick_product`.
        rows: number of rows.
        rounds: number of measurements of each type.
        clock: seconds of this thread.
    """
    import torch

    from embedder.model.linear import prepare
    from embedder.model.one_core import quickest_runs
    from embedder.model.processor import state_type

    with torch.inference_mode():
        products = {}
        for dtype in dtypes:
            stored = state_type(dtype, "cpu")
            x, weight = torch.ones(rows, 1024, dtype=stored), torch.ones(4096, 1024, dtype=stored)
            products[dtype] = partial(prepare(weight, weight[:, 0].contiguous(), dtype=dtype), x)
    seconds = quickest_runs(products, rounds=rounds, clock=clock)
    operations = 2.0 * rows * 1024 * 4096
    return {dtype: operations / max(seconds[dtype], 1e-9) for dtype in dtypes}


def products_attend_faster(*, tokens: int = 256, clock: Callable[[], float] = time.thread_time) -> bool:
    """Whether this CPU attends by products in bfloat16 faster than torch's kernel does, by a third.

    Args:
        tokens: of the text that is measured.
        clock: seconds of this thread.
    """
    import torch
    from torch.nn import functional

    from embedder.model.attention import attention_by_products
    from embedder.model.one_core import quickest_runs

    with torch.inference_mode():
        states = torch.ones(1, 8, tokens, 64, dtype=torch.bfloat16)  # one text, 8 heads
        ways = {
            "products": partial(attention_by_products, states, states, states),
            "kernel": partial(functional.scaled_dot_product_attention, states, states, states),
        }
        seconds = quickest_runs(ways, rounds=3, clock=clock)
    return seconds["kernel"] >= _DECISIVE_FACTOR * seconds["products"]


def calibrate(
    engine: Engine, *, batches: int = 1, seconds: float = 0.25, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Tokens per batch beyond which this engine on this machine gains less than 5 %.

    Doubles the batch until the rate stops growing or `seconds` would be exceeded; on a GPU this many
    `batches` must fit into its memory together. Never returns less than 512 for want of speed.
    """
    best, best_rate, spent = _BUDGET_MIN_TOKENS, 0.0, 0.0
    tokens = _BUDGET_MIN_TOKENS
    largest = _BUDGET_MAX_TOKENS["cpu" if engine.device == "cpu" else "cuda"]
    while tokens <= largest:
        took = _timed(engine, tokens, clock)
        if tokens / took < best_rate * _GAIN_MIN_FACTOR:  # once more: something else may have wanted the cores
            spent += took
            took = _timed(engine, tokens, clock)
        spent += took
        if tokens / took < best_rate * _GAIN_MIN_FACTOR:
            break
        best, best_rate = tokens, tokens / took
        if spent + 2 * took > seconds:
            break
        tokens *= 2
    while best > _BUDGET_MIN_TOKENS and batches * engine.memory_share(_texts(engine, best)) > _MEMORY_MAX_SHARE:
        best //= 2
    return best


def batch_of(lengths: list[int]) -> TokenBatch:
    """Texts of these lengths, of tokens that every XLM-RoBERTa vocabulary has."""
    return TokenBatch.of([np.arange(5, 5 + length, dtype=np.int32) for length in lengths])


def _texts(engine: Engine, tokens: int) -> TokenBatch:
    length = min(_TEXT_TOKENS, engine.max_length)
    return batch_of([length] * max(1, tokens // length))


def _timed(engine: Engine, tokens: int, clock: Callable[[], float]) -> float:
    batch = _texts(engine, tokens)
    started = clock()
    try:
        engine.probe(batch)
    except MemoryError:
        return math.inf
    return max(clock() - started, 1e-9)
