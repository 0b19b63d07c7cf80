"""The store's tests run against a real server where one is named, and say so where none is."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_without_a_server_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    """At once, before anything is installed, and as a failure: nobody takes it for a pass."""
    environment = {name: value for name, value in os.environ.items() if name != "QDRANT_URL"}
    command = ["make", "test-server", f"VENV={tmp_path / 'none'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "QDRANT_URL is not set" in done.stdout
    assert "docker compose up --detach --wait qdrant" in done.stdout
    assert not (tmp_path / "none").exists()
