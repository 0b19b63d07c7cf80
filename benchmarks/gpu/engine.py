"""The engine alone: one batch at a time, and with two batches in flight."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.ceilings import require_float8
from benchmarks.gpu.clock import percentile, repeated
from benchmarks.gpu.power import metered
from benchmarks.gpu.results import Row
from benchmarks.gpu.texts import OUTPUTS, random_batch, shapes
from embedder import Outputs
from embedder.engines import TokenBatch
from embedder.engines.packed import PackedEngine

_IN_FLIGHT = 2
_LARGE_TOKENS = 32_768
"""Tokens of a batch from which the rate is measured for long enough that the card takes its sustained clock."""
SMALL = {"1 x 16": [16], "1 x 64": [64], "1 x 256": [256], "128 x 8": [8] * 128}
FLOAT8_SHAPE, FLOAT8_OUTPUTS = "128 x 256", "dense + sparse"


def engine(bench: Bench) -> Iterator[Row]:
    """Every batch with every set of outputs."""
    for name, lengths in shapes(quick=bench.quick).items():
        batch = random_batch(lengths, bench.shape.vocabulary)
        for label, outputs in OUTPUTS.items():
            yield {"batch": name, "outputs": label} | _measured(bench, bench.engine, batch, outputs)


def small_batches(bench: Bench) -> Iterator[Row]:
    """The median time of small batches, with CUDA graphs and without where the engine lets one choose."""
    engines = {"default": bench.engine}
    if bench.graphs_optional:
        engines = {"graphs": bench.engine, "eager": bench.load_engine(bench.dtype, graphs=False)}
    for name, lengths in SMALL.items():
        batch = random_batch(lengths, bench.shape.vocabulary)
        for way, measured in engines.items():
            durations = repeated(
                lambda measured=measured, batch=batch: measured.encode(batch, Outputs()),  # type: ignore[misc]
                seconds=bench.seconds(0.6),
                least=10 if bench.on_gpu else 3,
                warm=10 if bench.on_gpu else 1,
            )
            yield {
                "batch": name,
                "way": way,
                "p50_s": percentile(durations, 0.5),
                "p95_s": percentile(durations, 0.95),
                "n": len(durations),
            }


def float8(bench: Bench) -> Iterator[Row]:
    """float8 beside float16 on one batch, and how near its dense vectors are."""
    require_float8(bench)
    batch = random_batch(shapes(quick=bench.quick)[FLOAT8_SHAPE], bench.shape.vocabulary)
    outputs = OUTPUTS[FLOAT8_OUTPUTS]
    names = {"batch": FLOAT8_SHAPE, "outputs": FLOAT8_OUTPUTS}
    exact = bench.engine.encode(batch, outputs).dense
    yield {"dtype": bench.dtype, **names} | _measured(bench, bench.engine, batch, outputs)
    quantised = bench.float8_engine
    cosines = _cosines(exact, quantised.encode(batch, outputs).dense)
    yield {
        "dtype": "float8",
        **names,
        **_measured(bench, quantised, batch, outputs),
        "cosine_mean": float(cosines.mean()),
        "cosine_min": float(cosines.min()),
    }
    for name in ("64 x 512", "512 x 128", "128 x 9"):
        other = random_batch(shapes(quick=bench.quick)[name], bench.shape.vocabulary)
        for label in ("dense + sparse", "all, float16 rows"):
            measured = _measured(bench, quantised, other, OUTPUTS[label])
            yield {"dtype": "float8", "batch": name, "outputs": label} | measured


def pipelined_rate(
    engine: PackedEngine, batches: Sequence[TokenBatch], outputs: Outputs, *, seconds: float, least: int = 4
) -> float:
    """Tokens per second of passages with two batches in flight, or one by one where the engine cannot launch.

    Goes through the batches again and again for so many seconds, whole rounds, at least `least` batches.
    """
    start = launcher(engine, outputs)
    for batch in list(batches)[:_IN_FLIGHT]:
        start(batch)()
    pending: deque[tuple[int, Callable[[], Any]]] = deque()
    tokens = done = 0
    started_s = time.perf_counter()
    for index, batch in enumerate(cycle(batches), 1):
        pending.append((len(batch.ids), start(batch)))
        if len(pending) >= _IN_FLIGHT:
            size, wait = pending.popleft()
            wait()
            tokens, done = tokens + size, done + 1
        if not index % len(batches) and done >= least and time.perf_counter() - started_s >= seconds:
            break
    for size, wait in pending:
        wait()
        tokens += size
    return tokens / (time.perf_counter() - started_s)


def launcher(engine: PackedEngine, outputs: Outputs) -> Callable[[TokenBatch], Callable[[], Any]]:
    """Starts a batch and returns what waits for its vectors; without `PackedEngine.launch` the start does it all."""
    launch = getattr(engine, "launch", None)
    if launch is None:

        def encoded(batch: TokenBatch) -> Callable[[], Any]:
            result = engine.encode(batch, outputs, _never_yield)
            return lambda: result

        return encoded

    def launched(batch: TokenBatch) -> Callable[[], Any]:
        wait: Callable[[], Any] = launch(batch, outputs, _never_yield).wait
        return wait

    return launched


def _never_yield() -> None:
    """The yield point of a batch of passages that nothing interrupts."""


def _measured(bench: Bench, engine: PackedEngine, batch: TokenBatch, outputs: Outputs) -> Row:
    tokens = len(batch.ids)
    durations = repeated(
        lambda: engine.encode(batch, outputs), seconds=bench.seconds(0.2), warm=3 if bench.on_gpu else 1
    )
    encode_s = percentile(durations, 0.5)
    with metered(bench.device) as figures:
        rate = pipelined_rate(engine, [batch], outputs, seconds=bench.seconds(0.7 if tokens >= _LARGE_TOKENS else 0.2))
    return {
        "tokens": tokens,
        "encode_s": encode_s,
        "encode_tokens_s": tokens / encode_s,
        "tokens_s": rate,
        "flops_s": 2.0 * bench.shape.linear * rate,
        "in_flight": _IN_FLIGHT if hasattr(engine, "launch") else 1,
        **(figures if tokens >= _LARGE_TOKENS else {}),
    }


def _cosines(exact: NDArray[np.float32] | None, other: NDArray[np.float32] | None) -> NDArray[np.float32]:
    if exact is None or other is None:
        raise TypeError("the engine gave no dense vectors")
    cosines: NDArray[np.float32] = (exact * other).sum(axis=1)
    return cosines
