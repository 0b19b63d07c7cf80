"""The device's time for a batch by class of kernel, and how long the device is idle."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.clock import synchronize
from benchmarks.gpu.results import Row
from benchmarks.gpu.texts import OUTPUTS, random_batch, shapes
from embedder import Outputs
from embedder.engines import TokenBatch
from embedder.engines.packed import PackedEngine

ENCODES = 3
CASES = (
    ("float16", "64 x 512", "all, float16 rows"),
    ("float16", "128 x 256", "dense + sparse"),
    ("float8", "128 x 256", "dense + sparse"),
)
_PATTERNS = (
    ("attention", r"flash|fmha|attention|_attend|sdpa|softmax"),
    ("heads", r"_normalised_rows|_entry_maxima"),
    ("products", r"gemm|cutlass|cublas|nvjet|scaled_mm|addmm|\bmm\b|matmul|linear|wgmma|xmma|splitk"),
    ("GELU", r"gelu"),
    ("norms", r"norm"),
    ("quantisation", r"quanti|float8"),
    ("copies", r"memcpy|memset|copy|pin_memory"),
    ("heads", r"sort|radix|scan|cub::|unique|segment|scatter|index|gather|reduce|sparse|dense|colbert|nonzero|relu"),
)
"""Classes of kernels and patterns of their names; the first one that matches counts."""
CLASSES = ("products", "attention", "norms", "GELU", "quantisation", "heads", "copies", "other")
_SHOWN = 16


def profile(bench: Bench) -> Iterator[Row]:
    """Share of the device's time by class, and its busy time beside the time by the clock."""
    for dtype, name, label in CASES:
        engine = bench.engines.get(bench.dtype if dtype == "float16" else dtype)
        if engine is None:  # the section float8 has loaded none
            continue
        batch = random_batch(shapes(quick=bench.quick)[name], bench.shape.vocabulary)
        kernels, wall_s = _traced(bench, engine, batch, OUTPUTS[label])
        seconds: Counter[str] = Counter()
        names: Counter[str] = Counter()
        for kernel, start_s, end_s in kernels:
            seconds[kind(kernel)] += end_s - start_s  # type: ignore[assignment]
            names[kernel] += end_s - start_s  # type: ignore[assignment]
        total_s = sum(seconds.values()) or 1.0
        case = {"dtype": engine.dtype, "batch": name, "outputs": label}
        yield {
            **case,
            "kernels": len(kernels) // ENCODES,
            "wall_s": wall_s / ENCODES,
            "busy_s": busy_seconds((start_s, end_s) for _, start_s, end_s in kernels) / ENCODES,
            "shares": {each: seconds[each] / total_s for each in CLASSES},
        }
        for kernel, spent_s in names.most_common(_SHOWN):
            yield {**case, "kernel": kernel[:120], "class": kind(kernel), "share": spent_s / total_s}


def kind(kernel: str) -> str:
    """The class of a kernel, by its name."""
    for name, pattern in _PATTERNS:
        if re.search(pattern, kernel, re.IGNORECASE):
            return name
    return "other"


def busy_seconds(spans: Iterable[tuple[float, float]]) -> float:
    """Seconds that any of the spans covers."""
    busy_s, until_s = 0.0, float("-inf")
    for start_s, end_s in sorted(spans):
        busy_s += max(0.0, end_s - max(start_s, until_s))
        until_s = max(until_s, end_s)
    return busy_s


def _traced(
    bench: Bench, engine: PackedEngine, batch: TokenBatch, outputs: Outputs
) -> tuple[list[tuple[str, float, float]], float]:
    """Kernels with start and end in seconds (operators, on a CPU), and the seconds by the clock of all encodes."""
    for _ in range(3 if bench.on_gpu else 1):
        engine.encode(batch, outputs)
    activity = torch.profiler.ProfilerActivity
    activities = [activity.CPU, activity.CUDA] if bench.on_gpu else [activity.CPU]
    synchronize(bench.device)
    with torch.profiler.profile(activities=activities) as traced:
        started_s = time.perf_counter()
        for _ in range(ENCODES):
            engine.encode(batch, outputs)
        synchronize(bench.device)
        wall_s = time.perf_counter() - started_s
    return [span for event in traced.events() or [] for span in _spans(event, on_gpu=bench.on_gpu)], wall_s


def _spans(event: Any, *, on_gpu: bool) -> Iterator[tuple[str, float, float]]:
    """The span of one event: of a kernel on a GPU, of an operator that no other calls on a CPU."""
    on_device = "CUDA" in str(event.device_type)
    annotation = getattr(event, "is_user_annotation", False)
    if on_device == on_gpu and not annotation and (on_gpu or event.cpu_parent is None):
        yield event.name, event.time_range.start / 1e6, event.time_range.end / 1e6
