"""The host benchmark measures this tree beside another one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("case", ["tokens, dense + sparse", "tokens, all outputs, launched"])
def test_two_trees_are_measured_in_turn(case: str) -> None:
    """A case is measured on both sides, with and without the host's half of a GPU, and the table gives their ratio."""
    command = [sys.executable, "-m", "benchmarks.host", "--rounds", "1", "--baseline", str(ROOT), case]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    [row] = [line for line in done.stdout.splitlines() if line.startswith(f"| {case} |")]
    old, new, ratio = (float(cell.replace(",", "")) for cell in row.strip("| ").split(" | ")[2:5])
    assert old > 0
    assert new > 0
    assert 0.1 < ratio < 10


@pytest.mark.slow
def test_a_page_keeps_its_notes_and_judges_the_goals(tmp_path: Path) -> None:
    """A page that is made anew has new figures beside the notes of the old one, and says whether the goal is met."""
    report = tmp_path / "page.md"
    report.write_text("<!-- notes -->\nKept.\n<!-- /notes -->\n", encoding="utf-8")
    command = [sys.executable, "-m", "benchmarks.host", "--rounds", "1", "--report", str(report), "stream, all outputs"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    page = report.read_text(encoding="utf-8")
    assert "\nKept.\n" in page
    [row] = [line for line in page.splitlines() if line.startswith("| stream, all outputs |")]
    assert row.split(" | ")[-1].removesuffix(" |") in {"met", "missed"}
    assert str(tmp_path) not in page
