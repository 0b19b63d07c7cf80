"""The benchmark of shared cores reports what busy processes cost each request."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cold_start import ORIGINAL, ColdStart, starts_table
from benchmarks.shared_cores import percentile, rendered
from embedder.checkpoint import MINI

ROOT = Path(__file__).parents[2]


def test_each_row_compares_with_the_idle_machine() -> None:
    """A row has median and 95th percentile of each request, and how many times the idle median that is."""
    figures = {"0": {"a query": [0.01, 0.02, 0.09]}, "1": {"a query": [0.03, 0.03, 0.04]}}
    assert rendered("this engine", "int8", figures) == [
        ["this engine (int8)", "0", "20 / 90"],
        ["this engine (int8)", "1", "30 / 40 (1.5 x)"],
    ]


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """The 95th of 100 values is exceeded by five of them."""
    assert percentile([float(value) for value in range(100, 0, -1)], 0.95) == 95.0
    assert percentile([7.0], 0.95) == 7.0


def test_a_start_is_compared_with_that_of_the_original_design() -> None:
    """The table says how many times faster each transport is ready; without the original design it says nothing."""
    ours = ColdStart("queue", [3.0, 9.0, 4.0], {"torch": 1.5})
    both = starts_table([ours, ColdStart(ORIGINAL, [12.0], {"loaded": 5.0})])
    assert "| queue | 4.0 | 3.0 x | 1.50 |  |" in both
    assert " x |" not in starts_table([ours])


@pytest.mark.slow
def test_the_command_measures_a_side() -> None:
    """One side is measured beside each number of busy processes, for every request."""
    command = [sys.executable, "-m", "benchmarks.shared_cores", "--side", "packed", "--checkpoint", str(MINI)]
    done = subprocess.run(
        [*command, "--seconds", "0.1", "--busy", "0", "1", "--dtype", "float32"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["dtype"] == "float32"
    assert [sorted(map(bool, taken.values())) for taken in answer["figures"].values()] == [[True] * 3] * 2
