"""FlagEmbedding, one instance in half precision, on the texts that the embedder is measured with."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.clock import percentile, repeated, synchronize
from benchmarks.gpu.results import Row
from benchmarks.gpu.texts import MAX_LENGTH, OUTPUTS
from embedder import Outputs

_BATCHES = {256: 2048, 32: 512}
"""Number of texts to embed by batch size; small batches are slow."""
_KINDS = ("all, float32 rows", "dense + sparse", "dense")


def flagembedding(bench: Bench) -> Iterator[Row]:
    """Tokens per second of mixed passages by batch size, and one query at a time."""
    try:
        from FlagEmbedding import BGEM3FlagModel
    except ImportError as error:
        raise NotRunError(f"FlagEmbedding cannot be imported: {error}") from error
    with _quiet():
        model: Any = BGEM3FlagModel(str(bench.checkpoint), use_fp16=bench.on_gpu, devices=[bench.device])
    _encode(bench, model, bench.texts.mixed[:64], 64, Outputs())  # warm: it places the model on its device
    for batch_size, count in _BATCHES.items():
        texts = bench.texts.mixed[: min(count, len(bench.texts.mixed))]
        tokens = sum(len(text) for text in bench.embedder.tokenize(texts, MAX_LENGTH))
        for label in _KINDS:
            seconds = _encode(bench, model, texts, batch_size, OUTPUTS[label])
            yield {
                "batch_size": batch_size,
                "outputs": label.partition(",")[0],
                "texts": len(texts),
                "tokens": tokens,
                "seconds": seconds,
                "tokens_s": tokens / seconds,
            }
    durations = repeated(
        lambda: _encode(bench, model, bench.texts.queries[:1], 1, Outputs()), seconds=bench.seconds(1.5), warm=2
    )
    yield {"batch_size": 1, "outputs": "one query", "p50_s": percentile(durations, 0.5), "n": len(durations)}


def _encode(bench: Bench, model: Any, texts: Sequence[str], batch_size: int, outputs: Outputs) -> float:
    started_s = time.perf_counter()
    with _quiet():
        model.encode(
            list(texts),
            batch_size=batch_size,
            max_length=MAX_LENGTH,
            return_dense=outputs.dense,
            return_sparse=outputs.sparse,
            return_colbert_vecs=outputs.colbert,
        )
    synchronize(bench.device)
    return time.perf_counter() - started_s


def _quiet() -> contextlib.redirect_stderr[io.StringIO]:
    """Without the library's progress bars."""
    return contextlib.redirect_stderr(io.StringIO())
