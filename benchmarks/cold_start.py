"""Cold starts: from the start of a process to its first poll of the queue, or its first ready answer over HTTP."""

from __future__ import annotations

import re
import statistics
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from benchmarks.http_load import PATIENCE, ready
from tests.loopback import JobQueue, Worker, free_port

ROOT: Final = Path(__file__).parents[1]

_LINE: Final = re.compile(r"; seconds: (.*)$", re.MULTILINE)
_PHASE: Final = re.compile(r"([\w-]+) (\d+\.\d+)")


@dataclass(frozen=True, slots=True)
class ColdStart:
    """The starts of one transport.

    Attributes:
        transport: `queue` or `HTTP`.
        seconds: to readiness, one per start.
        phases: median seconds of each phase that the log names, in its order.
    """

    transport: str
    seconds: list[float]
    phases: dict[str, float]


def measure(environment: Mapping[str, str], rounds: int) -> list[ColdStart]:
    """Starts of both transports in turn, after one of each that is not counted and fills the caches.

    Args:
        environment: of the worker: model, type, device.
        rounds: starts per transport.

    Raises:
        TimeoutError: a worker was not ready in five minutes.
        RuntimeError: a worker ended before it was ready.
    """
    taken: dict[str, list[tuple[float, dict[str, float]]]] = {"queue": [], "HTTP": []}
    with tempfile.TemporaryDirectory() as root:
        worker_environment = {**environment, "QDRANT_PATH": f"{root}/store", "XDG_CACHE_HOME": f"{root}/cache"}
        for number in range(rounds + 1):
            for transport, start_of in (("queue", _polling), ("HTTP", _serving)):
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
