"""The ceiling that a share refers to: the rate of a matrix product of the model's own shape on this machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

ROWS, INNER, COLUMNS = 2048, 1024, 4096
FLOPS = 2.0 * ROWS * INNER * COLUMNS

Product = Callable[[], Any]


def measure(dtype: str, device: str, *, seconds: float = 0.5) -> dict[str, float]:
    """Operations per second of a 2048 x 1024 x 4096 product, by each way there is to do it.

    Args:
        dtype: of the engine; `int8` means int8 weights and activations.
        device: `cpu` or `cuda:N`.
        seconds: per way; its quickest repetition counts.
    """
    with torch.inference_mode():
        return {way: FLOPS / _quickest(product, device, seconds) for way, product in _ways(dtype, device).items()}


def _ways(dtype: str, device: str) -> dict[str, Product]:
    stored = _stored(dtype, device)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, INNER, generator=generator).to(device, stored)
    weight = torch.randn(COLUMNS, INNER, generator=generator).to(device, stored)
    bias = torch.zeros(COLUMNS).to(device, stored)
    ways: dict[str, Product] = {}
    if dtype == "int8":
        rows, columns = x.clamp(-1, 1).mul(127).to(torch.int8), weight.clamp(-1, 1).mul(127).to(torch.int8).t()
        sums = torch.empty(ROWS, COLUMNS, dtype=torch.int32)  # fresh memory would cost as much as the product
        ways["integers alone"] = lambda: torch._int_mm(rows, columns, out=sums)  # noqa: SLF001 - has no public name
    else:
        ways["plain"] = lambda: functional.linear(x, weight, bias)
    try:
        from embedder.model.linear import prepare

        prepared = prepare(weight, bias, dtype=dtype)
        prepared(x)
    except (ImportError, TypeError, RuntimeError):
        return ways  # the engine has no such product here
    ways["prepared as the engine does"] = lambda: prepared(x)
    return ways


def _stored(dtype: str, device: str) -> torch.dtype:
    """Type of the rows that a product takes: the engine's, or of a library without it the type itself."""
    try:
        from embedder.model.processor import state_type
    except ImportError:
        return torch.float32 if dtype == "int8" else getattr(torch, dtype)
    return state_type(dtype, torch.device(device).type)


def _quickest(product: Product, device: str, seconds: float) -> float:
    repeats = 1 if device == "cpu" else 50  # a single kernel is shorter than its launch
    for _ in range(2):
        product()
    _wait(device)
    best, ends = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < ends or best == float("inf"):
        started = time.perf_counter()
        for _ in range(repeats):
            product()
        _wait(device)
        best = min(best, (time.perf_counter() - started) / repeats)
    return best


def _wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
