"""Cold starts: seconds from the start of a process to the first poll of the queue, or its first ready answer over HTTP.

Of the original design they are those to the first query embedded.

python -m benchmarks.cold_start --model DIR            all three in turn, five times; prints the table
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Final

import httpx

from benchmarks.http_load import PATIENCE, ready
from benchmarks.machine import hardware
from benchmarks.results import read_result
from benchmarks.sections import table
from benchmarks.texts import Texts
from tests.loopback import JobQueue, Worker, free_port

ROOT: Final = Path(__file__).parents[1]
ORIGINAL: Final = "original design"
QUERY: Final = "How do I copy only the changed parts of files?"

_LINE: Final = re.compile(r"; seconds: (.*)$", re.MULTILINE)
_PHASE: Final = re.compile(r"([\w-]+) (\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The starts of one transport.

    Attributes:
        transport: `queue`, `HTTP` or `ORIGINAL`.
        seconds: to readiness, one per start.
        phases: median seconds of each phase that the log names, in its order.
    """

    transport: str
    seconds: list[float]
    phases: dict[str, float]


def measure(environment: Mapping[str, str], rounds: int) -> list[ColdStart]:
    """Starts of both transports and of the original design in turn, after one of each that fills the caches.

    The original design is left out where FlagEmbedding is not installed. It embeds its first query where the worker
    polls: the worker has embedded a text by then.

    Args:
        environment: of the worker: model, which for the original design must be a directory, type, device.
        rounds: starts per transport that count.

    Raises:
        TimeoutError: a worker was not ready in five minutes.
        RuntimeError: a worker ended before it was ready.
    """
    sides: dict[str, Callable[[Mapping[str, str]], tuple[float, dict[str, float]]]] = {
        "queue": _polling,
        "HTTP": _serving,
    }
    if Path(environment["MODEL_ID"]).is_dir() and find_spec("FlagEmbedding"):
        sides[ORIGINAL] = _original
    taken: dict[str, list[tuple[float, dict[str, float]]]] = {name: [] for name in sides}
    with tempfile.TemporaryDirectory() as root:
        worker_environment = {**environment, "QDRANT_PATH": f"{root}/store", "XDG_CACHE_HOME": f"{root}/cache"}
        for number in range(rounds + 1):
            for transport, start_of in sides.items():
                start = start_of(worker_environment)
                if number:
                    taken[transport].append(start)
    return [
        ColdStart(
            transport,
            [seconds for seconds, _ in starts],
            {name: statistics.median(phases[name] for _, phases in starts) for name in starts[0][1]},
        )
        for transport, starts in taken.items()
    ]


def phases(log: str) -> dict[str, float]:
    """The durations in a worker's log, from the lines that end in `seconds: NAME 1.23, ...`."""
    return {name: float(value) for line in _LINE.findall(log) for name, value in _PHASE.findall(line)}


def starts_table(starts: Sequence[ColdStart]) -> str:
    """The table of the medians: seconds to readiness, ratio to those of the original design, and the phases."""
    names = list(dict.fromkeys(name for start in starts for name in start.phases))
    original = [statistics.median(start.seconds) for start in starts if start.transport == ORIGINAL]
    rows = [
        (
            start.transport,
            f"{(median := statistics.median(start.seconds)):.1f}",
            *(f"{seconds / median:.1f} x" for seconds in original),
            *(f"{start.phases[name]:.2f}" if name in start.phases else "" for name in names),
        )
        for start in starts
    ]
    faster = ("faster than the original",) if original else ()
    return table(("transport", "ready after", *faster, *names), rows)


def _original(environment: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    """A start of the original design, by the clock of its own process, which begins when it is started."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        Texts([QUERY], mixed=[], passages=[], longs=[], shorts=[], lengths={}).write(path / "texts.json")
        command = [sys.executable, "-m", "benchmarks.contender", "original", "--checkpoint", environment["MODEL_ID"]]
        command += ["--texts", str(path / "texts.json"), "--out", folder, "--device", environment["GPU_DEVICE"]]
        command += ["--started", repr(time.monotonic()), "--workloads"]
        variables = os.environ | {"HF_HUB_OFFLINE": "1"}
        subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, timeout=PATIENCE, check=True)
        result = read_result(path / "original.json")
    if result.status != "ok":
        raise RuntimeError(f"the original design did not start: {result.reason}")
    began = [0.0, *result.startup.values()]
    return began[-1], {name: end - start for name, (start, end) in zip(result.startup, pairwise(began), strict=True)}


def _polling(environment: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    with JobQueue() as queue:
        started = time.monotonic()
        with Worker(queue, cwd=ROOT, env=environment) as worker:
            return worker.wait_for_first_poll(PATIENCE) - started, phases(worker.output)


def _serving(environment: Mapping[str, str]) -> tuple[float, dict[str, float]]:
    port = free_port()
    started = time.monotonic()
    with (
        Worker(None, cwd=ROOT, env={**environment, "PORT": str(port)}) as worker,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE, trust_env=False) as client,
    ):
        while not ready(client):
            if time.monotonic() - started > PATIENCE:
                raise TimeoutError(worker.output[-2000:])
            time.sleep(0.02)
        return time.monotonic() - started, phases(worker.output)


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cold_start")
    parser.add_argument("--model", required=True, help="a directory in the published layout")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    environment = {"MODEL_ID": options.model, "GPU_DEVICE": options.device, "DTYPE": options.dtype}
    starts = measure(environment, options.rounds)
    print("; ".join(f"{name}: {value}" for name, value in hardware().items()))
    print(starts_table(starts))


if __name__ == "__main__":
    main()
