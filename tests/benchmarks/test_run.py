"""The benchmark command runs end to end on a tiny checkpoint."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import read
from training.random_checkpoint import build

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory in which the benchmark has run this engine on a tiny model."""
    path = tmp_path_factory.mktemp("bench")
    checkpoint = build(path / "checkpoint", hidden=32, layers=1, heads=2, intermediate=64, positions=66)
    command = [sys.executable, "-m", "benchmarks", "--quick", "--scale", "0.03", "--only", "packed"]
    command += ["--checkpoint", str(checkpoint), "--out", str(path), "--report", str(path / "report.md")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return path


def test_one_command_measures_this_engine(finished: Path) -> None:
    """Every workload that the model allows has figures, and the others have a reason."""
    run, results = read(finished / "quick")
    packed = results["packed"]
    assert (packed.status, packed.reason, run.quick) == ("ok", "", True)
    states = {name: outcome.status for name, outcome in packed.outcomes.items()}
    assert {name for name, state in states.items() if state == "not run"} == {"passages-8192", "beside-8192"}
    assert "failed" not in states.values()
    assert len(states) == 10


def test_start_up_counts_from_the_start_of_the_process(finished: Path) -> None:
    """Start-up times are in order and include the interpreter and imports."""
    packed = read(finished / "quick")[1]["packed"]
    assert list(packed.startup) == ["imported", "loaded", "answered"]
    assert 0 < packed.startup["imported"] < packed.startup["loaded"] < packed.startup["answered"]


def test_memory_is_that_of_the_process(finished: Path) -> None:
    """Peak memory never decreases and covers the resident memory at readiness."""
    memory = read(finished / "quick")[1]["packed"].memory
    assert 0 < memory["ready uss"] <= memory["ready rss"] <= memory["peak when ready"]
    assert memory["peak when ready"] <= memory["peak after query"] <= memory["peak after growth"]


def test_the_report_stands_where_it_was_asked_for(finished: Path) -> None:
    """`--report` names the file, and docs/benchmarks.md is not changed."""
    assert "this engine, defaults" in (finished / "report.md").read_text(encoding="utf-8")
