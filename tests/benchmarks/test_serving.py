"""The serving benchmark runs completely and reports what was measured."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.bursts import Bursts
from benchmarks.cold_start import ColdStart, phases
from benchmarks.http_load import Load
from benchmarks.results import Outcome
from benchmarks.serving import Findings, render

ROOT = Path(__file__).parents[2]


def findings(*, lost: int = 0, ours: float = 0.2) -> Findings:
    """Return figures of a run."""
    alone, beside = Outcome.of([0.010, 0.020], seconds=1.0), Outcome.of([0.030, 0.040, 0.050], seconds=1.0)
    return Findings(
        date="2026-01-02T03:04:05+00:00",
        quick=False,
        model="mini (auto, cpu)",
        starts=[
            ColdStart("queue", [3.0, 9.0, 4.0], {"torch": 1.5, "SDK": 0.4}),
            ColdStart("HTTP", [3.0], {"torch": 1.25}),
        ],
        loads=[Load("/embed", alone, beside, 12.0, lost)],
        bursts=[Bursts("this worker", [ours], [ours], [ours]), Bursts("bare", [0.12], [0.12], [0.12])],
        machine={"CPU": "a CPU", "cores": "2"},
    )


def test_the_report_says_what_a_query_waits_and_what_was_lost() -> None:
    """Each route has figures alone and beside bulk jobs, and every request is counted."""
    text = render(findings(lost=2), notes="")
    assert "| /embed | beside bulk jobs | 3 | 40 | 50 | 12 |" in text
    assert "Requests: 7; not answered with 200: 2." in text


def test_the_report_says_how_long_each_transport_takes_to_start() -> None:
    """Each transport has a start time and phases; a phase that it lacks is empty."""
    text = render(findings(), notes="")
    assert "| transport | ready after | torch | SDK |" in text
    assert "| queue | 4.0 | 1.50 | 0.40 |" in text
    assert "| HTTP | 3.0 | 1.25 |  |" in text


def test_the_phases_are_those_of_the_log() -> None:
    """Exactly the log lines that end in seconds are read as phases."""
    log = "12:00 INFO x: model ready: 2048 tokens; seconds: torch 1.50, warm-up 0.01\nretry after 3.00 s\n"
    assert phases(log + "12:01 INFO y: SDK ready; seconds: SDK 0.40\n") == {"torch": 1.5, "warm-up": 0.01, "SDK": 0.4}


@pytest.mark.parametrize(("ours", "verdict"), [(0.2, "60 % | met"), (0.21, "57 % | missed")])
def test_a_burst_is_judged_by_its_goal(ours: float, verdict: str) -> None:
    """A burst meets its goal at 60 % of the SDK's rate and misses it below."""
    assert verdict in render(findings(ours=ours), notes="")


@pytest.mark.slow
def test_the_command_measures_everything(tmp_path: Path) -> None:
    """One command yields every figure, and no request is lost."""
    command = [sys.executable, "-m", "benchmarks.serving", "--quick", "--dtype", "float32"]
    done = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "benchmarks-serving.md").read_text(encoding="utf-8")
    assert "| queue | " in text
    assert "| HTTP | " in text
    assert "not answered with 200: 0." in text
    assert "| 640 jobs |" in text
