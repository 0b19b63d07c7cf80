"""The benchmark of answers runs completely, and its report judges the new side by the pairs of its rounds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.answers import CASES, Comparison, Findings, render
from benchmarks.answers_side import Measured

ROOT = Path(__file__).parents[2]


def measured(ms: float, *, peak_bytes: int = 200_000_000) -> Measured:
    """Return figures of one side, with all times equal."""
    names = ("total", "cpu", "returned", "returned cpu", "parse", "embed", "render", "write", "values", "check", "sent")
    return Measured(dict.fromkeys(names, ms), 100_000_000, peak_bytes, 50_000_000, "")


def report(old: list[float], new: list[float], *, peak_bytes: int = 150_000_000) -> str:
    """Return the report of some rounds."""
    sides = [measured(ms) for ms in old], [measured(ms, peak_bytes=peak_bytes) for ms in new]
    comparisons = [Comparison(case, case.texts, *sides) for case in CASES]
    return render(
        Findings(
            date="2026-01-02T03:04:05+00:00",
            quick=False,
            baseline="abc",
            tokenizer="XLM-RoBERTa's",
            comparisons=comparisons,
            machine={"CPU": "a CPU"},
        ),
        notes="",
    )


@pytest.mark.parametrize(
    ("old", "new", "verdict"),
    [([60.0, 30.0, 31.0], [20.0, 10.0, 11.0], "3.00 x | 3 x | met"), ([29.0], [10.0], "2.90 x | 3 x | missed")],
)
def test_a_goal_is_judged_by_the_pairs_of_a_round(old: list[float], new: list[float], verdict: str) -> None:
    """The ratio is the median of the rounds' ratios, so that one noisy round decides nothing."""
    assert verdict in report(old, new)


@pytest.mark.parametrize(
    ("peak_bytes", "verdict"), [(150_000_000, "150 | 1.33 x | met"), (250_000_000, "250 | 0.80 x | missed")]
)
def test_more_memory_than_before_misses_the_goal(peak_bytes: int, verdict: str) -> None:
    """An answer that is faster must not take more memory."""
    assert verdict in report([30.0], [10.0], peak_bytes=peak_bytes)


@pytest.mark.slow
def test_the_command_runs_whole(tmp_path: Path) -> None:
    """Both sides give the same answers, and the report of a quick run says that it was quick."""
    command = [sys.executable, "-m", "benchmarks.answers", "--quick", "--baseline", "HEAD", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmarks-answers.md").read_text(encoding="utf-8")
    assert "A quick run" in text
    assert all(case.name in text for case in CASES)
