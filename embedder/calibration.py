"""Find the token budget of a batch by measuring: the smallest at which the engine is near its best rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from embedder.engine import Engine, TokenBatch
from embedder.vectors import Outputs

log = logging.getLogger(__name__)

_TEXT = 128
"""Tokens per text while measuring: between a query and a long passage."""
_SMALLEST = 512
_LARGEST = {"cpu": 16_384, "cuda": 131_072}
_WORTH = 1.05
"""A doubled batch must raise the rate by this factor to be worth the longer wait for queries."""


def warm(engine: Engine) -> None:
    """Run one short and one longer batch, so that the first request meets allocated buffers and chosen kernels."""
    for lengths in ([8], [_TEXT] * 2):
        engine.encode(_batch([min(length, engine.max_length) for length in lengths]), Outputs())


def calibrate(engine: Engine, *, seconds: float = 2.0, clock: Callable[[], float] = time.perf_counter) -> int:
    """Tokens per batch beyond which this engine on this machine gains less than 5 %.

    Doubles the batch until the rate stops growing, `seconds` would be exceeded or the memory is full;
    never returns less than 512. The model must be warm.
    """
    import torch

    length = min(_TEXT, engine.max_length)
    best, best_rate, spent = _SMALLEST, 0.0, 0.0
    tokens = _SMALLEST
    largest = _LARGEST["cpu" if engine.device == "cpu" else "cuda"]
    while tokens <= largest:
        started = clock()
        try:
            engine.encode(_batch([length] * (tokens // length)), Outputs())
        except torch.OutOfMemoryError:
            break
        took = max(clock() - started, 1e-9)
        rate = tokens / took
        if rate < best_rate * _WORTH:
            break
        best, best_rate, spent = tokens, rate, spent + took
        if spent + 2 * took > seconds:
            break
        tokens *= 2
    log.info("token budget: %d per batch on %s (%.0f tokens/s)", best, engine.device, best_rate)
    return best


def _batch(lengths: list[int]) -> TokenBatch:
    # Ids 5 and up are ordinary tokens in every XLM-RoBERTa vocabulary.
    return TokenBatch.of([np.arange(5, 5 + length, dtype=np.int32) for length in lengths])
