"""A worker over HTTP in a process of its own, and what the operating system says of it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from tests.loopback import Worker, free_port

ROOT: Final = Path(__file__).parents[2]
SETTINGS: Final = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "TOKEN_BUDGET": "4096"}
PATIENCE: Final = 120.0
"""Timeout in seconds for a hanging worker."""


@dataclass(frozen=True)
class Usage:
    """What a process holds.

    Attributes:
        memory_bytes: resident memory.
        descriptors: open file descriptors.
        threads: threads.
    """

    memory_bytes: int
    descriptors: int
    threads: int


class ServedProcess:
    """A worker that is ready.

    Args:
        worker: the process.
        port: its port on loopback.
    """

    def __init__(self, worker: Worker, port: int) -> None:
        self.worker = worker
        self.port = port
        self.url = f"http://127.0.0.1:{port}"

    @property
    def _process(self) -> Path:
        return Path(f"/proc/{self.worker.pid}")

    def usage(self) -> Usage:
        """What the process holds now."""
        status = self._status()
        descriptors = sum(1 for _ in (self._process / "fd").iterdir())
        return Usage(int(status["VmRSS"].split()[0]) * 1024, descriptors, int(status["Threads"]))

    def forget_peak(self) -> None:
        """Begin anew with the peak of the resident memory."""
        (self._process / "clear_refs").write_text("5")

    def peak_bytes(self) -> int:
        """The greatest resident memory since the start, or since `forget_peak`."""
        return int(self._status()["VmHWM"].split()[0]) * 1024

    def client(self) -> httpx.Client:
        """A client of the worker."""
        return httpx.Client(base_url=self.url, timeout=PATIENCE, trust_env=False)

    def _status(self) -> dict[str, str]:
        lines = (self._process / "status").read_text().splitlines()
        return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextmanager
def served_process(store: Path, **settings: str) -> Iterator[ServedProcess]:
    """Start a worker, wait until it is ready, and end it.

    Args:
        store: directory of its store.
        settings: further variables.
    """
    port = free_port()
    environment = {**SETTINGS, "QDRANT_PATH": str(store), "PORT": str(port), **settings}
    with Worker(None, cwd=ROOT, script="-m", args=("service", "serve"), env=environment) as worker:
        served = ServedProcess(worker, port)
        deadline = time.monotonic() + PATIENCE
        while not _is_ready(served):
            if time.monotonic() > deadline:
                raise TimeoutError(worker.output[-2000:])
            time.sleep(0.05)
        yield served


def _is_ready(served: ServedProcess) -> bool:
    with served.client() as client:
        try:
            return client.get("/ping").status_code == 200
        except httpx.TransportError:
            return False
