"""The benchmark of the client judges what the client adds to a request."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.client import Round, rendered

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("client_s", "verdict"), [(0.0055, "0.50 | 1 | met"), (0.0065, "1.50 | 1 | missed")])
def test_the_goal_is_judged_by_the_rounds_own_differences(client_s: float, verdict: str) -> None:
    """One slow round of either side decides nothing."""
    rounds = [Round(0.005, client_s), Round(0.105, 0.1 + client_s), Round(0.005, 1.0)]
    assert verdict in rendered(rounds[:1] + rounds[1:2] + rounds[:1] + rounds[2:])


@pytest.mark.slow
def test_the_command_measures_both_sides() -> None:
    """One command starts a worker, measures against it, and yields the table."""
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.client", "--rounds", "5"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'clients' / 'python' / 'src'}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| `Client.embed` | " in done.stdout
