"""The embedder, from texts to vectors: passages beside the engine's own rate, and the service's handler."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.clock import percentile, repeated
from benchmarks.gpu.engine import pipelined_rate
from benchmarks.gpu.results import Row
from benchmarks.gpu.texts import MAX_LENGTH, OUTPUTS, batches
from embedder import Embedder, Embedding, Outputs, Priority

_HANDLER_TEXTS = 512


def embedder(bench: Bench) -> Iterator[Row]:
    """All mixed passages as one job, per set of outputs, beside the engine on the same texts."""
    texts = bench.texts.mixed
    encoded = bench.embedder.tokenize(texts, MAX_LENGTH)
    tokens = sum(len(text) for text in encoded)
    tokenize = repeated(lambda: bench.embedder.tokenize(texts, MAX_LENGTH), seconds=bench.seconds(0.5))
    yield {"step": "tokenize", "texts": len(texts), "tokens": tokens, "tokens_s": tokens / percentile(tokenize, 0.5)}
    embed(bench.embedder, texts, OUTPUTS["dense"])  # warm, and the pool shows its budget
    budget_tokens = bench.budget_tokens
    for label, outputs in OUTPUTS.items():
        durations = repeated(
            lambda outputs=outputs: embed(bench.embedder, texts, outputs),  # type: ignore[misc]
            seconds=bench.seconds(2.0),
        )
        cut = list(batches(encoded, budget_tokens))
        rate = pipelined_rate(bench.engine, cut, outputs, seconds=bench.seconds(1.0))
        seconds = percentile(durations, 0.5)
        yield {
            "step": "embed",
            "outputs": label,
            "texts": len(texts),
            "tokens": tokens,
            "seconds": seconds,
            "tokens_s": tokens / seconds,
            "best_tokens_s": tokens / min(durations),
            "engine_tokens_s": rate,
            "budget_tokens": budget_tokens,
            "n": len(durations),
        }


def handler(bench: Bench) -> Iterator[Row]:
    """Passages as base64 float16 through the handler of the queue, beside the engine on the same texts."""
    try:
        from service.operations import Operations
        from service.settings import Settings
        from service.transports.queue.worker import unprinted
        from service.wire import Codec
    except ImportError as error:
        raise NotRunError(f"the service's packages are missing: {error.name} is not installed") from error
    texts = bench.texts.mixed[:_HANDLER_TEXTS]
    settings = Settings(model_id=str(bench.checkpoint), max_response_mb=10_000.0)
    codec = Codec(Operations(settings, bench.embedder))
    job = {"texts": texts, "isPassage": True, "encoding": "base64", "dtype": "float16"}

    def answer() -> Any:
        return unprinted(asyncio.run(codec.job(job)))

    refusal = answer().get("error")
    if refusal:
        raise RuntimeError(f"the handler answered: {refusal}")
    durations = repeated(answer, seconds=bench.seconds(4.0))
    encoded = bench.embedder.tokenize(texts, MAX_LENGTH)
    tokens = sum(len(text) for text in encoded)
    cut = list(batches(encoded, bench.budget_tokens))
    outputs = OUTPUTS["all, float16 rows"]
    engine_s = tokens / pipelined_rate(bench.engine, cut, outputs, seconds=bench.seconds(1.0))
    embed_s = percentile(repeated(lambda: embed(bench.embedder, texts, outputs), seconds=bench.seconds(1.0)), 0.5)
    yield {
        "texts": len(texts),
        "tokens": tokens,
        "handler_s": percentile(durations, 0.5),
        "embed_s": embed_s,
        "engine_s": engine_s,
        "n": len(durations),
    }


def embed(embedder: Embedder, texts: Sequence[str], outputs: Outputs) -> None:
    """One job of passages, from a loop of its own.

    Raises:
        RuntimeError: the model could not embed a text.
    """
    results = asyncio.run(embedder.embed(texts, outputs, max_length=MAX_LENGTH, priority=Priority.PASSAGE))
    failures = [result for result in results if not isinstance(result, Embedding)]
    if failures:
        raise RuntimeError(f"{len(failures)} of {len(texts)} texts failed: {failures[0]}")
