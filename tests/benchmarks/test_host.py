"""The host benchmark measures this tree beside another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_two_trees_are_measured_in_turn() -> None:
    """A case is measured on both sides, and the table gives their ratio."""
    case = "tokens, dense + sparse"
    command = [sys.executable, "-m", "benchmarks.host", "--rounds", "1", "--baseline", str(ROOT), case]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [row] = [line for line in done.stdout.splitlines() if line.startswith(f"| {case}")]
    old, new, ratio = (float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[2:])
    assert old > 0
    assert new > 0
    assert 0.1 < ratio < 10
