"""Ctrl-C ends the interactive commands without output."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.command_line import PROGRAM

ROOT = Path(__file__).parents[1]
WAIT_MAX_S = 60.0
"""Timeout in seconds for a hanging command. No measurement depends on it."""


def started(path: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a command with its store at `path`."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("QDRANT_", "MODEL_"))}
    settings = {"MODEL_ID": "mini", "GPU_DEVICE": "cpu", "DTYPE": "float32", "QDRANT_PATH": str(path)}
    return subprocess.Popen(
        [*PROGRAM, *arguments],
        cwd=ROOT,
        env={**clean, **settings},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupted(process: subprocess.Popen[str]) -> None:
    """Assert that Ctrl-C ends the command with the shell's status and prints nothing."""
    process.send_signal(signal.SIGINT)
    _, output = process.communicate(timeout=WAIT_MAX_S)
    assert (process.returncode, output) == (130, "")


@pytest.mark.slow
@pytest.mark.parametrize("command", [["ask", "files", "--collection", "notes"], ["demo"]])
def test_a_command_that_loads_its_model_ends_quietly(tmp_path: Path, command: list[str]) -> None:
    """Ctrl-C while the model loads causes neither a traceback nor an abort in a library."""
    store = tmp_path / "store"
    with started(store, *command) as process:
        deadline = time.monotonic() + WAIT_MAX_S
        while not store.exists() and time.monotonic() < deadline:  # the store opens before the model loads
            time.sleep(0.005)
        time.sleep(0.2)
        interrupted(process)


@pytest.mark.slow
def test_a_comparison_ends_quietly(tmp_path: Path) -> None:
    """Ctrl-C while `precision` waits for its texts causes no traceback."""
    passages = tmp_path / "passages"
    os.mkfifo(passages)
    with (
        started(tmp_path, "precision", "--model", "mini", "--passages", str(passages)) as process,
        passages.open("w"),  # blocks until the command opens the pipe
    ):
        interrupted(process)
