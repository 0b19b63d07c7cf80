"""The benchmark of shards: one process beside several that load a shard each, on the same texts and the same cores.

python -m benchmarks.shards                                      the miniature, 20 000 texts, a minute on two cores
python -m benchmarks.shards --model /path --texts 200            a full-size checkpoint
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from benchmarks.bulk import OpenStore
from benchmarks.ingest import passages
from embedder import Embedder
from qdrant_sink.loading import Shard
from service.bulk import BulkLoad, LoadOptions
from service.bulk.line import Line
from service.operations import IngestRequest, Operations
from service.settings import Settings

GOAL = 0.90
"""Least share of the rate of one process."""


def main() -> None:
    """Measure both in turns, and print the medians."""
    options = _parse()
    if options.shard is not None:
        _work(options)
        return
    cores = len(os.sched_getaffinity(0))
    shards = [Shard(index, options.shards) for index in range(1, options.shards + 1)]
    one: list[float] = []
    many: list[float] = []
    for number in range(options.rounds):
        measured = {}
        for is_divided in (number % 2 == 1, number % 2 == 0):  # neither has the machine always first
            parts = shards if is_divided else [Shard(1, 1)]
            measured[is_divided] = _measured(options, parts, max(1, cores // len(parts)))
        alone, together = measured[False], measured[True]
        one.append(alone.seconds)
        many.append(together.seconds)
        print(f"one process {alone}; {options.shards} shards {together}", flush=True)
    share = statistics.median(one) / statistics.median(many)
    verdict = "met" if share >= GOAL else "missed"
    print(
        f"{options.texts} texts on {cores} cores: {options.shards} shards load at "
        f"{100 * share:.1f} % of the rate of one process (goal {GOAL:.0%}: {verdict})"
    )


@dataclass(frozen=True)
class Measured:
    """What shards take that are loaded concurrently.

    Attributes:
        seconds: the time until the last has ended.
        cpu_seconds: the time of the cores together, which other programs on the machine change less.
        peak_mb: the highest peak of a process in MB.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: int

    def __str__(self) -> str:
        return f"{self.seconds:.2f} s ({self.cpu_seconds:.2f} s of the cores, peak of a process {self.peak_mb} MB)"


def _measured(options: argparse.Namespace, shards: Sequence[Shard], threads: int) -> Measured:
    """Load these shards concurrently."""
    with ExitStack() as stack:
        workers = []
        for shard in shards:
            command = [sys.executable, "-m", "benchmarks.shards", *sys.argv[1:], "--shard", str(shard)]
            environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            worker = subprocess.Popen(command, env=environment, **pipes)  # type: ignore[call-overload]
            stack.callback(worker.wait)
            stack.callback(worker.kill)
            workers.append(worker)
        for worker in workers:
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError("a shard did not start")
        started = time.perf_counter()
        for worker in workers:
            worker.stdin.write("go\n")
            worker.stdin.flush()
        ends = [json.loads(worker.stdout.readline()) for worker in workers]
        seconds = time.perf_counter() - started
    if sum(end["stored"] for end in ends) != options.texts:
        raise RuntimeError(f"{sum(end['stored'] for end in ends)} of {options.texts} texts are stored")
    return Measured(seconds, sum(end["cpu_seconds"] for end in ends), max(end["peak_mb"] for end in ends))


def _work(options: argparse.Namespace) -> None:
    """Load one shard when the parent says so."""
    settings = Settings.from_environment({"MODEL_ID": options.model, "GPU_DEVICE": "cpu", "DTYPE": options.dtype})
    texts = passages(options.texts)
    request = IngestRequest(texts=[""], collection="shards", vectors=("dense", "sparse"))
    with tempfile.TemporaryDirectory() as folder:
        core = Operations(settings, Embedder.load(settings.model_options), OpenStore(folder))
        shard = Shard.parse(options.shard)
        chosen = LoadOptions(request, "shards", load_id=shard.load_of("shards"), shard=shard)
        print("ready", flush=True)
        sys.stdin.readline()
        cpu_before = time.process_time()
        load = BulkLoad(core, chosen, None, lambda _text: None)
        report = load.run(Line(number, text, number, None, size=len(text)) for number, text in enumerate(texts))
        peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        cpu_seconds = time.process_time() - cpu_before
        print(json.dumps({"stored": report.stored, "peak_mb": peak_mb, "cpu_seconds": cpu_seconds}), flush=True)
        core.close()


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shards", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtype", default="float32", help="as DTYPE")
    parser.add_argument("--texts", type=int, default=20_000, help="number of texts")
    parser.add_argument("--shards", type=int, default=4, help="number of shards")
    parser.add_argument("--rounds", type=int, default=3, help="number of rounds")
    parser.add_argument("--shard", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
