"""Hours that GPUs need for all passages, from rates that docs/benchmarks-gpu.md has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from embedder.vectors import Kind

GPU: Final = "NVIDIA H200"
"""The card of the rates."""

MIXED_TOKENS_PER_S: Final = 752_000.0
"""Tokens/s of dense and sparse vectors through `Embedder.embed`: 2048 passages of 8 to 512 tokens, float16."""

MIXED_COLBERT_TOKENS_PER_S: Final = 751_000.0
"""Tokens/s of all three kinds through `Embedder.embed`, with rows in float16, on the same passages."""

LONG_TOKENS: Final = 8192
LONG_TOKENS_PER_S: Final = 308_000.0
"""Tokens/s of the engine with dense and sparse vectors for passages of 8192 tokens, one after the other."""

MIDDLE_TOKENS: Final = 512
"""Length up to which the rate of mixed passages holds."""


def tokens_per_second(tokens: float, kinds: Sequence[Kind]) -> float:
    """Tokens/s of one NVIDIA H200.

    Up to 512 tokens it is the rate of mixed passages. Beyond, the time of a token grows with the length, because each
    token attends to all others: on a line through the measurements at 512 and at 8192 tokens.

    Args:
        tokens: mean tokens of a passage.
        kinds: kinds of vectors that are computed.
    """
    rate = MIXED_COLBERT_TOKENS_PER_S if "colbert" in kinds else MIXED_TOKENS_PER_S
    if tokens <= MIDDLE_TOKENS:
        return rate
    slope = (1 / LONG_TOKENS_PER_S - 1 / MIXED_TOKENS_PER_S) / (LONG_TOKENS - MIDDLE_TOKENS)
    return 1 / (1 / rate + slope * (tokens - MIDDLE_TOKENS))
