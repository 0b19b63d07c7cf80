"""`bge-m3-qdrant demo` ingests and searches the bundled corpus, as a new user runs it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

import corpus
from qdrant_sink.edge import EdgeStore
from tests.command_line import PROGRAM

ROOT = Path(__file__).parents[1]


def run(path: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the demo in a fresh process with its store at `path`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("QDRANT_", "MODEL_"))}
    settings = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "QDRANT_PATH": str(path), "TOKEN_BUDGET": "4096"}
    settings["COLUMNS"] = "100"  # width of the terminal
    return subprocess.run(
        [*PROGRAM, "demo", *arguments],
        cwd=ROOT,
        env={**clean, **settings, **variables},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.slow
def test_the_demo_finds_right_answers_and_can_be_repeated(tmp_path: Path) -> None:
    """The demo shows its model, hits and times, mostly finds the right passage, and adds no point twice."""
    store = tmp_path / "store"
    for _ in range(2):
        done = run(store)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    shown = done.stdout
    assert re.search(r"Model +mini \(packed, ", shown)
    assert re.search(r"Store +Qdrant Edge", shown)
    match = re.search(r"Right answer first: (\d+) of (\d+) questions", shown)
    assert match is not None
    assert int(match[2]) == len(corpus.questions())
    assert int(match[1]) > len(corpus.questions()) / 2
    for step in ("load the model", "ingest", "answer"):
        assert re.search(rf"{step}.* \d+\.\d\d", shown)
    reopened_store = EdgeStore(store)
    assert reopened_store.count("demo") == len(corpus.passages()) == 179
    reopened_store.close()


def test_the_demo_says_what_is_wrong(tmp_path: Path) -> None:
    """Invalid settings end the demo with one line, not with a traceback."""
    done = run(tmp_path / "store", MAX_MODELS="0")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    assert "MAX_MODELS" in done.stderr
    assert not done.stdout
