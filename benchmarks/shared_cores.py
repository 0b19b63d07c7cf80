"""Requests on cores of their own and beside busy processes: this engine, and the original design.

python -m benchmarks.shared_cores                                  about 3 minutes on two cores
python -m benchmarks.shared_cores --quick                          a small checkpoint; its figures mean little
python -m benchmarks.shared_cores --checkpoint DIR --dtype int8 --busy 0 1 2 4

Each side is loaded in a process of its own and sends one request after the other: a query of 9 tokens, 32 queries in
one request, and 4 passages of 512 tokens. Beside it so many processes keep a core busy each, and the medians and 95th
percentiles say what that costs. The third side is this engine with `OMP_DYNAMIC=false`, which uses all cores in any
case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from benchmarks import original, packed
from benchmarks.checkpoint import made
from benchmarks.machine import hardware
from benchmarks.plan import ENTRIES
from benchmarks.seam import Contender, Load, Setup
from benchmarks.sections import table
from benchmarks.texts import Writer

ROOT: Final = Path(__file__).parents[1]
SIDES: Final = {
    "packed": ("packed", "this engine", {}),
    "fixed": ("packed", "this engine, `OMP_DYNAMIC=false`", {"OMP_DYNAMIC": "false"}),
    "original": ("original", "original design", {}),
}
"""Contender, title and environment of each side."""

REQUESTS: Final = {"a query of 9": (1, 9), "32 queries of 9": (32, 9), "4 x 512": (4, 512)}
"""Number of texts and tokens per text of each request."""

SETTLING_S: Final = 1.0
"""Time that the busy processes run, and requests with them, before the first request counts."""

REQUESTS_MIN: Final = 2
"""Least number of requests, however long they take."""


@contextmanager
def neighbours(count: int) -> Iterator[None]:
    """Processes that keep a core busy each."""
    processes = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


async def measured(contender: Contender, texts: dict[str, list[str]], seconds: float) -> dict[str, list[float]]:
    """The seconds of each request, by its name."""

    async def one(name: str) -> float:
        began = time.perf_counter()
        await contender.embed(texts[name], query="quer" in name, max_length=512)
        return time.perf_counter() - began

    taken: dict[str, list[float]] = {}
    settled = time.perf_counter() + SETTLING_S
    await one(next(iter(texts)))
    while time.perf_counter() < settled:
        await one(next(iter(texts)))
    for name in texts:
        taken[name] = []
        end = time.perf_counter() + seconds
        while len(taken[name]) < REQUESTS_MIN or time.perf_counter() < end:
            taken[name].append(await one(name))
    return taken


async def run_side(options: argparse.Namespace) -> None:
    """Load one side, and print what it takes beside each number of busy processes."""
    entry = ENTRIES[SIDES[options.side][0]]
    load: Load = original.load if entry.kind == "original" else packed.load
    contender = await load(Setup(options.checkpoint, "cpu", options.dtype, entry.lanes), lambda _: None)
    writer = Writer(options.checkpoint / "tokenizer.json", seed=0)
    chosen = {name: REQUESTS[name] for name in options.requests}
    texts = {name: [writer.text(length) for _ in range(count)] for name, (count, length) in chosen.items()}
    figures = {}
    for busy in options.busy:
        with neighbours(busy):
            figures[str(busy)] = await measured(contender, texts, options.seconds)
    print(json.dumps({"dtype": contender.dtype, "figures": figures}), flush=True)
    os._exit(0)  # without waiting for the threads of a library


def side_figures(side: str, options: argparse.Namespace) -> tuple[str, dict[str, dict[str, list[float]]]]:
    """Type and seconds of a side, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.shared_cores", "--side", side, "--checkpoint", str(options.checkpoint)]
    command += ["--dtype", options.dtype, "--seconds", str(options.seconds), "--busy", *map(str, options.busy)]
    command += ["--requests", *options.requests]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"} | SIDES[side][2]
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    answer = json.loads(done.stdout.splitlines()[-1])
    return answer["dtype"], answer["figures"]


def rendered(title: str, dtype: str, figures: dict[str, dict[str, list[float]]]) -> list[list[str]]:
    """A row of the table for each number of busy processes: median / 95th percentile, and ratio to the first median."""
    rows = []
    idle = next(iter(figures.values()))
    for busy, taken in figures.items():
        cells = []
        for name, seconds in taken.items():
            p50 = statistics.median(seconds)
            ratio = "" if taken is idle else f" ({p50 / statistics.median(idle[name]):.1f} x)"
            cells.append(f"{p50 * 1e3:.0f} / {percentile(seconds, 0.95) * 1e3:.0f}{ratio}")
        rows.append([f"{title} ({dtype})", busy, *cells])
    return rows


def percentile(values: Sequence[float], share: float) -> float:
    """The least value that so large a share of the values does not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def main() -> None:
    """Measure all sides, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shared_cores", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--checkpoint", type=Path, help="a directory; default: random weights of full size")
    parser.add_argument("--dtype", default="auto", help="of this engine, as DTYPE")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1, 2], help="numbers of busy processes")
    parser.add_argument("--seconds", type=float, default=4.0, help="per request and number of busy processes")
    parser.add_argument("--sides", nargs="+", choices=list(SIDES), default=list(SIDES))
    parser.add_argument("--requests", nargs="+", choices=list(REQUESTS), default=list(REQUESTS))
    parser.add_argument("--quick", action="store_true", help="a small checkpoint, and half a second each")
    parser.add_argument("--side", choices=list(SIDES), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        asyncio.run(run_side(options))
        return
    if options.quick:
        options.seconds = 0.5
    folder = ROOT / "build" / "bench" / ("quick" if options.quick else "")
    options.checkpoint = (options.checkpoint or made(folder / "checkpoint", quick=options.quick)).resolve()
    rows = []
    for side in options.sides:
        rows += rendered(SIDES[side][1], *side_figures(side, options))
    print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    print(table(["", "busy processes", *(f"{name}, ms" for name in options.requests)], rows))


if __name__ == "__main__":
    main()
