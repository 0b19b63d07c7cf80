"""The benchmark of Qdrant's inference runs and judges what it measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.inference import Round, render

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("seconds", "verdict"), [(1.3, "1.30 x | 1.3 x | met"), (1.4, "1.40 x | 1.3 x | missed")])
def test_the_goal_is_judged_by_the_ratio_of_the_rounds(seconds: float, verdict: str) -> None:
    """The time of the request divided by that of the model decides, round by round."""
    rounds = [Round(1.0, seconds, 0.9, 32_000_000), Round(2.0, 2 * seconds, 1.8, 32_000_000)]
    assert verdict in render("packed, float16, cpu", 256, rounds)


@pytest.mark.slow
def test_the_command_measures_both_sides(tmp_path: Path) -> None:
    """One command yields the table, with an answer of all vectors."""
    command = [sys.executable, "-m", "benchmarks.inference", "--quick", "--dtype", "float32", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| 16 x 40 tokens | " in done.stdout
    assert (tmp_path / "inference.json").exists()
