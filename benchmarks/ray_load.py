"""The benchmark of loads on Ray: two nodes of one core beside one process on the same two cores.

python -m benchmarks.ray_load                                    the miniature, 20 000 texts
python -m benchmarks.ray_load --model /path --texts 240          a full-size checkpoint
python -m benchmarks.ray_load --texts 100000 --characters 20     the memory of the actors over many rows
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
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any, Final, Self

import psutil

from benchmarks.ingest import passages
from service.bulk.line_batches import BATCH_MAX_TEXTS

GOAL: Final = 0.9
"""Least share of the rate of one process."""

_CORES: Final = 2
_SAMPLE_S: Final = 0.5
_OTHERS: Final = "other programs"
_ACTORS: Final = "actors"


def main() -> None:
    """Measure both in turns, each in processes of its own, and print the medians."""
    options = _parse()
    if options.contender:
        _CONTENDERS[options.contender](options)
        return
    rates: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    spent: dict[str, list[float]] = {name: [] for name in _CONTENDERS}
    for _ in range(options.rounds):
        for name in _CONTENDERS:
            command = [sys.executable, "-m", "benchmarks.ray_load", *sys.argv[1:], "--contender", name]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            said = next(line for line in output.splitlines() if line.startswith("rate "))
            rates[name].append(float(said.split()[1]))
            spent[name].append(float(said.split()[3]))
            print(f"{name}: {said}", flush=True)
    share, of_time = (statistics.median(of["ray"]) / statistics.median(of["process"]) for of in (rates, spent))
    print(
        f"Ray: {100 * share:.1f} % of one process (goal {GOAL:.0%}: {'met' if share >= GOAL else 'missed'}); "
        f"{100 * of_time:.1f} % of its texts per second of a processor, which other programs hardly change"
    )


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
        texts = _texts(options)
        load = BulkLoad(
            core,
            LoadOptions(request, "notes"),
            None,
            lambda _text: None,
            progress=lambda _report: memory.look(),
            batch_texts=_batch_texts(options),
        )
        with ProcessorTime() as spent:
            started = time.time()
            report = load.run(Line(number, text, number, None, size=len(text)) for number, text in enumerate(texts))
            ended = time.time()
        if report.failure is not None or report.stored != len(texts):
            raise RuntimeError(f"{report.stored} of {len(texts)} texts are stored: {report.failure}")
        _print(report.stored / (ended - started), spent.between(started, ended), str(memory))
        core.close()


class TakingActor:
    """The actor of a load, over a store that takes every point, with the times of each batch."""

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

        began = time.time()
        outcome = await self._store(table_lines(batch, self._fields))
        self._memory.look()
        return pa.table(
            {
                "began": [began],
                "ended": [time.time()],
                "stored": [outcome.stored],
                "first_mb": [self._memory.first],
                "most_mb": [self._memory.most],
                "process": [os.getpid()],
            }
        )


def _ray(options: argparse.Namespace) -> None:
    """Two nodes of one core, each with an actor. The clock starts when both have loaded their models."""
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
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.wait_for_min_actors_s = 600
        texts = _texts(options)
        rows = [{"id": number, "text": text} for number, text in enumerate(texts)]
        ray.data.range(1).map_batches(_same).materialize()  # Ray starts processes of its own for the first data set
        batch = _batch_texts(options)
        pool = ActorPool(size=_CORES, num_cpus=0.6, batch_size=batch)
        ds = ray.data.from_items(rows, override_num_blocks=max(_CORES, len(texts) // batch))
        with ProcessorTime() as spent:
            found = ds.map_batches(TakingActor, fn_constructor_args=(options,), **pool.arguments).to_pandas()
        if found["stored"].sum() != len(texts) or found["process"].nunique() != _CORES:
            raise RuntimeError(f"{found['stored'].sum()} of {len(texts)} texts are stored")
        began, ended = found["began"].min(), found["ended"].max()
        memory = ", ".join(
            f"{rows['first_mb'].min():.0f} to {rows['most_mb'].max():.0f} MB" for _, rows in found.groupby("process")
        )
        _print(len(texts) / (ended - began), spent.between(began, ended), f"memory of the actors {memory}")
    finally:
        ray.shutdown()
        cluster.shutdown()


def _same(batch: Any) -> Any:
    return batch


def _print(rate: float, spent: Mapping[str, float], memory: str) -> None:
    """Print the result of a contender."""
    own = sum(share for name, share in spent.items() if name != _OTHERS)
    shares = ", ".join(f"{name} {100 * share:.0f} %" for name, share in spent.items())
    print(f"rate {rate:.2f} texts/s, {rate / own:.2f} per second of a processor; {memory}; {shares}")


def _texts(options: argparse.Namespace) -> list[str]:
    """The texts, which differ also where they are cut."""
    if options.characters is None:
        return passages(options.texts)
    some = passages(min(options.texts, 1000))
    return [f"{some[number % len(some)][: options.characters]} {number}" for number in range(options.texts)]


def _batch_texts(options: argparse.Namespace) -> int:
    """Texts of a batch: enough batches that a load of few texts ends without one actor waiting for the other."""
    return int(max(1, min(BATCH_MAX_TEXTS, options.texts // 24)))


class ProcessorTime:
    """Samples the time of processors that this process, its children and all other programs use."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float, dict[int, float]]] = []
        self._names: dict[int, str] = {}
        self._ended = Event()
        self._thread = Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        """Start."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End."""
        self._ended.set()
        self._thread.join()

    def _sample(self) -> None:
        me, seconds = psutil.Process(), dict[int, float]()
        while True:
            for process in (me, *me.children(recursive=True)):
                with suppress(psutil.Error):
                    times = process.cpu_times()
                    seconds[process.pid] = times.user + times.system
                    if self._names.get(process.pid) != _ACTORS:  # its title is another one before and after
                        self._names[process.pid] = "this process" if process == me else _kind(process)
            everything = psutil.cpu_times()
            # A guest's time is in that of users too.
            idle = everything.idle + everything.iowait + everything.guest + everything.guest_nice
            self._samples.append((time.time(), sum(everything) - idle, dict(seconds)))
            if self._ended.wait(_SAMPLE_S):
                return

    def between(self, began: float, ended: float) -> dict[str, float]:
        """Who used the processors between two times, as multiples of one processor."""
        before = [sample for sample in self._samples if sample[0] <= began]
        after = [sample for sample in self._samples if sample[0] >= ended]
        start, all_before, first = before[-1] if before else self._samples[0]
        end, all_after, last = after[0] if after else self._samples[-1]
        spent: dict[str, float] = {}
        for process, seconds in last.items():
            name = self._names[process]
            spent[name] = spent.get(name, 0) + seconds - first.get(process, 0)
        spent[_OTHERS] = all_after - all_before - sum(spent.values())
        return {name: seconds / (end - start) for name, seconds in spent.items()}


def _kind(process: psutil.Process) -> str:
    title = " ".join(process.cmdline())
    return _ACTORS if "TakingActor" in title else "Ray"


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
    parser.add_argument("--characters", type=int, help="cut texts to this length, to see the memory of many rows")
    parser.add_argument("--rounds", type=int, default=2, help="number of rounds")
    parser.add_argument("--contender", choices=["process", "ray"], help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
