"""The benchmark of loads on Ray: two nodes of one core beside one process on the same two cores.

python -m benchmarks.ray_load                                    the miniature, 20 000 texts
python -m benchmarks.ray_load --model /path --texts 60           a full-size checkpoint
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import psutil

from benchmarks.ingest import passages

GOAL: Final = 0.9
"""Least share of the rate of one process."""

_CORES: Final = 2


def main() -> None:
    """Measure both in turns, each in processes of its own, and print the medians."""
    options = _parse()
    if options.contender:
        _CONTENDERS[options.contender](options)
        return
    rates: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    for _ in range(options.rounds):
        for name in _CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.ray_load", *sys.argv[1:], "--contender", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            said = next(line for line in output.splitlines() if line.startswith("rate "))
            rates[name].append(float(said.split()[1]))
            print(f"{name}: {said}", flush=True)
    share = statistics.median(rates["ray"]) / statistics.median(rates["process"])
    print(f"Ray: {100 * share:.1f} % of one process (goal {GOAL:.0%}: {'met' if share >= GOAL else 'missed'})")


def _core(options: argparse.Namespace, folder: str) -> Any:
    """Operations over a store that takes every point."""
    from benchmarks.bulk import OpenStore
    from embedder import Embedder
    from service.operations import Operations

    settings = _settings(options)
    return Operations(settings, Embedder.load(settings.model_options), OpenStore(folder))


def _settings(options: argparse.Namespace) -> Any:
    from service.settings import Settings

    return Settings.from_environment(
        {"MODEL_ID": options.model, "GPU_DEVICE": "cpu", "DTYPE": options.dtype, "TOKEN_BUDGET": "4096"}
    )


def _process(options: argparse.Namespace) -> None:
    """One process with all cores, which reads lines and stores them: a bulk load."""
    from service.bulk import BulkLoad, LoadOptions
    from service.bulk.line import Line
    from service.operations import IngestRequest

    with tempfile.TemporaryDirectory() as folder:
        core = _core(options, folder)
        memory = _Memory()
        request = IngestRequest(texts=[""], collection="notes", vectors=("dense", "sparse"))
        texts = passages(options.texts)
        marks: list[tuple[float, int]] = []
        load = BulkLoad(core, LoadOptions(request, "notes"), None, lambda _text: memory.look())
        started = time.time()
        report = load.run(Line(number, text, number, None, size=len(text)) for number, text in enumerate(texts))
        marks.append((time.time(), report.stored))
        if report.failure is not None or report.stored != len(texts):
            raise RuntimeError(f"{report.stored} of {len(texts)} texts are stored: {report.failure}")
        print(f"rate {report.stored / (marks[-1][0] - started):.2f} texts/s, {memory}")
        core.close()


class TakingActor:
    """The actor of a load, over a store that takes every point, with the time of each batch."""

    def __init__(self, options: argparse.Namespace) -> None:
        from service.bulk.field_mapping import FieldOptions
        from service.bulk.line_ingest import line_ingest
        from service.ray_data.batch_ingest import BatchIngest
        from service.ray_data.options import load_options

        self._folder = tempfile.mkdtemp()
        request = load_options("notes", vectors=("dense", "sparse")).request
        core = _core(options, self._folder)
        asyncio.run(core.collections.exists("notes"))
        core.collections.catalogue.ensure("notes")
        self._fields = FieldOptions()
        self._store = BatchIngest(line_ingest(core), request)
        self._memory = _Memory()

    async def __call__(self, batch: Any) -> Any:
        """Store the rows of a batch."""
        import pyarrow as pa

        from service.bulk.columnar import table_lines

        outcome = await self._store(table_lines(batch, self._fields))
        self._memory.look()
        return pa.table(
            {
                "ended": [time.time()],
                "stored": [outcome.stored],
                "first_mb": [self._memory.first],
                "most_mb": [self._memory.most],
                "process": [os.getpid()],
            }
        )


def _ray(options: argparse.Namespace) -> None:
    """Two nodes of one core, each with an actor."""
    import ray
    from ray.cluster_utils import Cluster

    from service.ray_data.actor_pool import ActorPool

    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray")
    node = {"num_cpus": 1, "object_store_memory": 200_000_000, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=node)
    try:
        cluster.add_node(num_cpus=1, object_store_memory=200_000_000)
        path = str(Path(__file__).parents[1])
        ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": path}})
        ray.data.DataContext.get_current().enable_progress_bars = False
        texts = passages(options.texts)
        rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
        batch = min(500, max(1, len(texts) // 40))
        pool = ActorPool(size=_CORES, num_cpus=0.6, batch_size=batch)
        ds = ray.data.from_items(rows, override_num_blocks=max(_CORES * 2, len(texts) // 2000))
        found = ds.map_batches(TakingActor, fn_constructor_args=(options,), **pool.arguments).to_pandas()
        if found["stored"].sum() != len(texts):
            raise RuntimeError(f"{found['stored'].sum()} of {len(texts)} texts are stored")
        # While both actors work: one may load its model longer than the other, or have less to do at the end.
        ends = found.groupby("process")["ended"]
        first, last = ends.min().max(), ends.max().min()
        stored = found["stored"][(found["ended"] > first) & (found["ended"] <= last)].sum()
        memory = ", ".join(
            f"{rows['first_mb'].min():.0f} to {rows['most_mb'].max():.0f} MB" for _, rows in found.groupby("process")
        )
        print(f"rate {stored / (last - first):.2f} texts/s, memory of the actors {memory}")
    finally:
        ray.shutdown()
        cluster.shutdown()


class _Memory:
    """Resident memory of this process: after the first look, and at most."""

    def __init__(self) -> None:
        self.first = 0.0
        self.most = 0.0

    def look(self) -> None:
        """Look now."""
        now = psutil.Process().memory_info().rss / 1e6
        self.first = self.first or now
        self.most = max(self.most, now)

    def __str__(self) -> str:
        """The memory for a person."""
        return f"memory {self.first:.0f} to {self.most:.0f} MB"


_CONTENDERS: Final = {"process": _process, "ray": _ray}


def _parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ray_load", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtype", default="float32", help="as DTYPE")
    parser.add_argument("--texts", type=int, default=20_000, help="number of texts")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds")
    parser.add_argument("--contender", choices=["process", "ray"], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
