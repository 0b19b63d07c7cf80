"""The benchmark of bulk loads: a load beside the model alone, on the same texts. `make bench-bulk`.

make bench-bulk                                                      the miniature, 2 000 texts
make bench-bulk ARGS="--model /path --characters 30 --rounds 2"      a full-size checkpoint, 2 000 short texts
make bench-bulk ARGS="--rows 10000 100000"                           the peak memory of loads, of the miniature
"""

from __future__ import annotations

import argparse
import asyncio
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence

from benchmarks.ingest import passages
from benchmarks.spans import Recorder, watch_model
from embedder import Embedder, Outputs, Priority
from qdrant_sink import Point, PointId
from qdrant_sink.edge import EdgeStore
from service.bulk import BulkLoad, LoadOptions
from service.bulk.line import Line
from service.operations import IngestRequest, Operations
from service.settings import Settings

GOAL = 0.95
"""Least share of the rate of the model alone."""

GROWTH_GOAL_MB = 50
"""Most growth of the peak memory from the first number of rows to the last."""


class OpenStore(EdgeStore):
    """A store that takes every point and keeps none, so that only the load is measured."""

    def upsert(self, collection: str, points: Sequence[Point], *, insert_only: bool = False) -> None:
        """Do nothing."""

    def existing(self, collection: str, ids: Sequence[PointId]) -> set[PointId]:  # noqa: ARG002 - the signature of a store
        """Return all ids, because a load confirms what it has stored."""
        return set(ids)


def main() -> None:
    """Measure the rates or the memory, as the options say."""
    options = _parse()
    if options.rows is None:
        _measure_rates(options)
    elif len(options.rows) == 1:
        print(_peak_mb(options, options.rows[0]))
    else:
        _measure_memory(options)


def _measure_memory(options: argparse.Namespace) -> None:
    """Print the peak memory of loads, each in a process of its own."""
    peaks = []
    for rows in options.rows:
        given = ["--model", options.model, "--dtype", options.dtype, "--device", options.device, "--rows", str(rows)]
        child = [sys.executable, "-m", "benchmarks.bulk", *given]
        ended = subprocess.run(child, check=True, capture_output=True, text=True)
        peaks.append(float(ended.stdout.split()[-1]))
        print(f"{rows} rows: peak {peaks[-1]:.0f} MB", flush=True)
    growth = peaks[-1] - peaks[0]
    verdict = "met" if growth < GROWTH_GOAL_MB else "missed"
    print(f"growth: {growth:.0f} MB (goal {GROWTH_GOAL_MB} MB: {verdict})")


def _peak_mb(options: argparse.Namespace, rows: int) -> float:
    """The peak of the memory of this process, in MB, after a load of short rows."""
    settings = _settings(options)
    with tempfile.TemporaryDirectory() as folder:
        core = Operations(settings, Embedder.load(settings.model_options), OpenStore(folder))
        _load(core, (f"row {number} of {rows}" for number in range(rows)), rows, "rows")
        core.close()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def _settings(options: argparse.Namespace) -> Settings:
    return Settings.from_environment({"MODEL_ID": options.model, "GPU_DEVICE": options.device, "DTYPE": options.dtype})


def _measure_rates(options: argparse.Namespace) -> None:
    """Measure the load and the model in turns, and print the medians."""
    settings = _settings(options)
    texts = [text[: options.characters] for text in passages(options.texts)]
    embedder = Embedder.load(settings.model_options)
    recorder = Recorder()
    watch_model(embedder, recorder)
    with tempfile.TemporaryDirectory() as folder:
        core = Operations(settings, embedder, OpenStore(folder))
        alone: list[float] = []
        whole: list[float] = []
        asyncio.run(_embed(embedder, texts[: max(8, len(texts) // 20)]))
        for number in range(options.rounds):
            started = time.perf_counter()
            asyncio.run(_embed(embedder, texts))
            alone.append(time.perf_counter() - started)
            recorder.take(0.0, 1.0)
            started = time.perf_counter()
            _load(core, texts, len(texts), f"round{number}")
            ended = time.perf_counter()
            whole.append(ended - started)
            idle = recorder.take(started, ended).idle
            print(f"alone {alone[-1]:.2f} s, load {whole[-1]:.2f} s, model idle {100 * idle:.1f} %", flush=True)
        core.close()
    share = statistics.median(alone) / statistics.median(whole)
    verdict = "met" if share >= GOAL else "missed"
    print(
        f"{options.texts} texts, {embedder.label}: {100 * share:.1f} % of the model alone (goal {GOAL:.0%}: {verdict})"
    )


async def _embed(embedder: Embedder, texts: Sequence[str]) -> None:
    await embedder.embed(
        texts, Outputs.of(("dense", "sparse")), max_length=embedder.max_length, priority=Priority.PASSAGE
    )


def _load(core: Operations, texts: Iterable[str], count: int, collection: str) -> None:
    request = IngestRequest(texts=[""], collection=collection, vectors=("dense", "sparse"))
    load = BulkLoad(core, LoadOptions(request, collection), None, lambda _text: None)
    report = load.run(Line(number, text, number, None, size=len(text)) for number, text in enumerate(texts))
    if report.failure is not None or report.stored != count:
        raise RuntimeError(f"{report.stored} of {count} texts are stored: {report.failure}")


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bulk", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--texts", type=int, default=2000, help="number of texts")
    parser.add_argument("--characters", type=int, help="characters to which texts are cut (default: whole texts)")
    parser.add_argument("--rows", type=int, nargs="+", help="measure the peak memory of loads of so many rows")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    return parser.parse_args()


if __name__ == "__main__":
    main()
