"""What this machine can do, measured at start: the rate of a product per type, and the token budget of a batch."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from embedder.engine import Engine, TokenBatch
from embedder.vectors import Outputs

if TYPE_CHECKING:
    from embedder.linear import Linear

_TEXT = 128
"""Tokens per text while measuring: between a query and a long passage."""
_SMALLEST = 512
_LARGEST = {"cpu": 16_384, "cuda": 131_072}
_WORTH = 1.05
"""A doubled batch must raise the rate by this factor to be worth the longer wait."""
_SHARE = 0.8
"""Of the free memory of a GPU, what the batches of all lanes may take together."""


def product_rate(
    dtype: str,
    *,
    device: str = "cpu",
    rows: int = 256,
    repeats: int = 4,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """FLOP/s of a [rows, 1024] x [1024, 4096] product, prepared as the engine prepares it: the best of some runs."""
    import torch

    from embedder.linear import prepare

    stored = torch.float32 if dtype == "int8" else getattr(torch, dtype)
    with torch.inference_mode():
        x = torch.ones(rows, 1024, dtype=stored, device=device)
        weight = torch.ones(4096, 1024, dtype=stored, device=device)
        linear: Linear = prepare(weight, weight[:, 0].contiguous(), dtype=dtype)
        linear(x)
        seconds = []
        for _ in range(repeats):
            _wait(device)
            started = clock()
            linear(x)
            _wait(device)
            seconds.append(clock() - started)
    return 2.0 * rows * 1024 * 4096 / max(min(seconds), 1e-9)


def warm(engine: Engine) -> None:
    """Run one short batch, so that the first request meets allocated buffers and chosen kernels."""
    engine.encode(batch_of([min(8, engine.max_length)]), Outputs())


def calibrate(
    engine: Engine, *, batches: int = 1, seconds: float = 0.25, clock: Callable[[], float] = time.perf_counter
) -> int:
    """Tokens per batch beyond which this engine on this machine gains less than 5 %.

    Doubles the batch until the rate stops growing or `seconds` would be exceeded; on a GPU this many
    `batches` must fit into its memory together. Never returns less than 512 for want of speed.
    """
    best, best_rate, spent = _SMALLEST, 0.0, 0.0
    tokens = _SMALLEST
    largest = _LARGEST["cpu" if engine.device == "cpu" else "cuda"]
    while tokens <= largest:
        took = _timed(engine, tokens, clock)
        if tokens / took < best_rate * _WORTH:  # once more: something else may have wanted the cores
            spent += took
            took = _timed(engine, tokens, clock)
        spent += took
        if tokens / took < best_rate * _WORTH:
            break
        best, best_rate = tokens, tokens / took
        if spent + 2 * took > seconds:
            break
        tokens *= 2
    while best > _SMALLEST and batches * engine.memory_share(_texts(engine, best)) > _SHARE:
        best //= 2
    return best


def batch_of(lengths: list[int]) -> TokenBatch:
    """Texts of these lengths, of tokens that every XLM-RoBERTa vocabulary has."""
    return TokenBatch.of([np.arange(5, 5 + length, dtype=np.int32) for length in lengths])


def _texts(engine: Engine, tokens: int) -> TokenBatch:
    length = min(_TEXT, engine.max_length)
    return batch_of([length] * max(1, tokens // length))


def _timed(engine: Engine, tokens: int, clock: Callable[[], float]) -> float:
    batch = _texts(engine, tokens)
    started = clock()
    try:
        engine.probe(batch)
    except MemoryError:
        return math.inf
    return max(clock() - started, 1e-9)


def _wait(device: str) -> None:
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
