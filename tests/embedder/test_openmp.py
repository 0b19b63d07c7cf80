"""OpenMP is told how many threads the container allows before torch loads it, and a user's own number wins."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.errors import ConfigurationError
from embedder.openmp import configure, require_whole_teams
from tests.loopback import free_port

ROOT = Path(__file__).parents[2]
LOAD = 'from embedder import Embedder, ModelOptions; Embedder.load(ModelOptions("mini", device="cpu"))'
ENTRY_POINTS = {
    "library": ["-c", LOAD],
    "a module of the library": ["-c", "import embedder.model.model"],
    "handler.py": ["handler.py", "--test_input", '{"input": {"texts": ["a"]}}'],
    "serve": ["-m", "service", "serve"],
    "queue": ["-m", "service", "queue", "--test_input", '{"input": {"texts": ["a"]}}'],
    "ask": ["-m", "service", "ask", "a question"],
    "precision": ["-m", "service", "precision", "--model", "mini", "--device", "cpu"],
}
TORCH = """
import json, os, sys
names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS")
found = {name: os.environ[name] for name in names if name in os.environ}
print("torch", json.dumps(found), file=sys.stderr, flush=True)
os._exit(0)
"""
"""A torch that tells what the real one would find in the environment, and ends the process."""

QUOTA = """
import sys, types
quota = sys.modules["embedder.cpu_quota"] = types.ModuleType("embedder.cpu_quota")
quota.cpu_quota = lambda: 1.0
quota.present_processors = lambda: 4
quota.usable_processors = lambda present, quota: min(present, int(quota))
"""
"""Run by Python before anything else: four processors, of whose time the container may use a quarter."""


def environment(folder: Path, **variables: str) -> dict[str, str]:
    """The environment of a worker with the miniature, without variables of OpenMP but for these."""
    own = {
        name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_", "QDRANT_", "PORT"))
    }
    return own | {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "QDRANT_PATH": str(folder / "store")} | variables


def found_by_torch(folder: Path, arguments: list[str], **variables: str) -> dict[str, str]:
    """The variables of OpenMP at the moment at which a process imports torch."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text(TORCH)
    path = os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=environment(folder, PYTHONPATH=path, **variables),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("torch ")]
    assert lines, done.stderr
    found: dict[str, str] = json.loads(lines[0].removeprefix("torch "))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", ENTRY_POINTS)
def test_every_entry_point_sets_the_number_before_torch_loads(tmp_path: Path, name: str) -> None:
    """In a container with a quota no more threads compute than it allows, however the worker is started."""
    (tmp_path / "sitecustomize.py").write_text(QUOTA)
    port = {"PORT": str(free_port())} if name == "serve" else {}
    assert found_by_torch(tmp_path, ENTRY_POINTS[name], **port)["OMP_NUM_THREADS"] == "1"


def test_the_variables_of_a_user_reach_torch_unchanged(tmp_path: Path) -> None:
    """What a user sets for OpenMP stays, and nothing is added that would override it."""
    chosen = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "3"}
    assert found_by_torch(tmp_path, ENTRY_POINTS["library"], **chosen) == chosen


@pytest.mark.parametrize(
    ("quota", "threads"), [(0.5, "1"), (1.0, "1"), (1.5, "2"), (2.4, "2"), (7.5, None), (8.0, None), (100.0, None)]
)
def test_there_are_no_more_threads_than_the_quota_allows(quota: float, threads: str | None) -> None:
    """On 8 processors of which a container may use fewer, the threads are as many as its quota, rounded."""
    variables: dict[str, str] = {}
    configure(variables, quota=quota, processors=8)
    assert variables.get("OMP_NUM_THREADS") == threads


def test_a_user_decides_how_many_threads_there_are() -> None:
    """`OMP_NUM_THREADS` of a user stays, also above the quota."""
    variables = {"OMP_NUM_THREADS": "8"}
    configure(variables, quota=2.0, processors=8)
    assert variables["OMP_NUM_THREADS"] == "8"


SMALLER_TEAMS = [
    ({"OMP_DYNAMIC": "true"}, {}),
    ({"OMP_DYNAMIC": " TRUE "}, {}),
    ({"OMP_DYNAMIC": "false"}, {"OMP_DYNAMIC": "false"}),
    ({"OMP_THREAD_LIMIT": "1"}, {"OMP_NUM_THREADS": "1"}),
    ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "6,2"}, {"OMP_NUM_THREADS": "3"}),
    ({"OMP_THREAD_LIMIT": "6", "OMP_NUM_THREADS": "3"}, {"OMP_NUM_THREADS": "3"}),
    ({"OMP_THREAD_LIMIT": "3", "OMP_NUM_THREADS": "many"}, {"OMP_NUM_THREADS": "3"}),
    ({"OMP_THREAD_LIMIT": "many"}, {}),
    ({"OMP_THREAD_LIMIT": "64"}, {}),
    ({"OMP_MAX_ACTIVE_LEVELS": "0", "OMP_NUM_THREADS": "4"}, {"OMP_NUM_THREADS": "1"}),
    ({"OMP_MAX_ACTIVE_LEVELS": "2"}, {}),
]
"""Variables with which OpenMP may give fewer threads than it says, and what is left of them on 8 processors."""


@pytest.mark.parametrize(("variables", "left"), SMALLER_TEAMS)
def test_limits_of_a_team_become_a_number_of_threads(variables: dict[str, str], left: dict[str, str]) -> None:
    """What would have OpenMP give a product fewer threads than it says is turned into a number, which it keeps."""
    variables = dict(variables)
    configure(variables, quota=8.0, processors=8)
    assert variables == left
    require_whole_teams(variables)


VECTORS = """
import numpy as np
from embedder.checkpoint import MINI
from embedder.engines.packed import PackedEngine
from embedder.engines.calibration import batch_of
from embedder.vectors import Outputs
engine = PackedEngine.load(MINI, device="cpu", dtype="float32", dropped_ids=frozenset())
dense = engine.encode(batch_of([9, 40, 200]), Outputs()).dense
print(np.abs(dense).max(axis=1).tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux")
def test_vectors_are_right_whatever_limits_a_team(tmp_path: Path) -> None:
    """Products that OpenMP computes with fewer threads than it says return memory as it was; a user gets none of it."""

    def largest(**variables: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", VECTORS],
            cwd=ROOT,
            env=environment(tmp_path, **variables),
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        return done.stdout.splitlines()[-1]

    expected = largest()
    for variables in ({"OMP_DYNAMIC": "true"}, {"OMP_THREAD_LIMIT": "1"}, {"OMP_MAX_ACTIVE_LEVELS": "0"}):
        assert largest(**variables) == expected


def test_wrong_vectors_are_refused_where_torch_came_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that imported torch with such a limit is told so when it loads a model, instead of wrong vectors."""
    from embedder.checkpoint import MINI
    from embedder.engines.packed import PackedEngine

    monkeypatch.setenv("OMP_THREAD_LIMIT", "1")
    with pytest.raises(ConfigurationError, match="OMP_THREAD_LIMIT"):
        PackedEngine.load(MINI, device="cpu", dtype="float32", dropped_ids=frozenset())


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="torch brings libgomp on Linux")
def test_the_library_of_torch_takes_the_settings(tmp_path: Path) -> None:
    """The OpenMP that torch brings has the number of threads that was set for it."""
    script = (
        "import os, embedder\nembedder.openmp.configure(os.environ, quota=1.0, processors=2)\nimport torch\n"
        "print(torch.get_num_threads())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "1"
