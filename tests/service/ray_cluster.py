"""A cluster of Ray on this machine, with drivers, actors and nodes that can be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Final

import psutil
from ray.cluster_utils import Cluster

ROOT: Final = Path(__file__).parents[2]
TIMEOUT_S: Final = 600.0
"""Timeout of a driver."""

_STORE_BYTES: Final = 80_000_000
ENVIRONMENT: Final = {
    "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'clients/python/src'}",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


class RayCluster:
    """A head and further nodes, each with one CPU. It is used by drivers in processes of their own."""

    def __init__(self) -> None:
        self._folder = mkdtemp(prefix="ray")  # its path must be short, since sockets lie under it
        self._before = dict(os.environ)
        os.environ.update(ENVIRONMENT, RAY_TMPDIR=self._folder)  # inherited by all processes of the cluster
        head = {"num_cpus": 1, "object_store_memory": _STORE_BYTES, "include_dashboard": False}
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self._nodes: list[Any] = []

    def add_node(self) -> None:
        """Add a node."""
        self._nodes.append(self._cluster.add_node(num_cpus=1, object_store_memory=_STORE_BYTES))

    def ensure_nodes(self, count: int) -> None:
        """Add nodes until there are as many beside the head."""
        while len(self._nodes) < count:
            self.add_node()

    def kill_node(self) -> None:
        """Kill all processes of the node that was added last."""
        node = self._nodes.pop()
        for process in _of_node(node):
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._cluster.remove_node(node, allow_graceful=False)

    def kill_actor(self, name: str) -> None:
        """Kill one process of an actor whose title has this name."""
        actors = [
            process for node in self._cluster.list_all_nodes() for process in _of_node(node) if name in _title(process)
        ]
        assert actors
        actors[0].kill()

    def driver(self, **task: Any) -> subprocess.Popen[str]:
        """Start a driver; see `tests.service.ray_driver`."""
        return subprocess.Popen(
            [sys.executable, "-m", "tests.service.ray_driver", json.dumps({"address": self._cluster.address, **task})],
            cwd=ROOT,
            env={**os.environ, **ENVIRONMENT},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, disturb: Callable[[], None] | None = None, **task: Any) -> dict[str, Any]:
        """The report of a driver.

        Args:
            disturb: called while it runs.
            task: its task.
        """
        driver = self.driver(**task)
        try:
            if disturb is not None:
                disturb()
            output, errors = driver.communicate(timeout=TIMEOUT_S)
        finally:
            kill(driver)
        assert driver.returncode == 0, errors[-3000:]
        report: dict[str, Any] = json.loads(next(line for line in output.splitlines() if line.startswith("{")))
        return report

    def close(self) -> None:
        """End all processes of the cluster, also those that do not stop."""
        processes = [process for node in self._cluster.list_all_nodes() for process in _of_node(node)]
        with suppress(Exception):
            self._cluster.shutdown()
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        os.environ.clear()
        os.environ.update(self._before)
        shutil.rmtree(self._folder, ignore_errors=True)


def kill(driver: subprocess.Popen[str]) -> None:
    """Kill a driver, and all processes that it started."""
    with suppress(ProcessLookupError):
        os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    for stream in (driver.stdout, driver.stderr):
        if stream is not None:
            stream.close()


def _of_node(node: Any) -> list[psutil.Process]:
    """The processes of a node and of its workers."""
    found: list[psutil.Process] = []
    for started in node.all_processes.values():
        for information in started:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(information.process.pid)
                found += [process, *process.children(recursive=True)]
    return found


def _title(process: psutil.Process) -> str:
    with suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
        return " ".join(process.cmdline())
    return ""


@contextmanager
def served_double(folder: Path) -> Iterator[dict[str, str]]:
    """The double of a server in a process of its own; yields the settings of a worker with it."""
    double = subprocess.Popen(
        [sys.executable, "-m", "tests.sink.serve_double", str(folder)],
        cwd=ROOT,
        env={**os.environ, **ENVIRONMENT},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert double.stdin is not None
    assert double.stdout is not None
    try:
        port = double.stdout.readline().strip()
        yield {"QDRANT_URL": f"http://127.0.0.1:{port}", "QDRANT_GRPC_PORT": port}
    finally:
        double.stdin.close()
        try:
            double.wait(10)
        except subprocess.TimeoutExpired:
            double.kill()
            double.wait()
        double.stdout.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = 300.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
