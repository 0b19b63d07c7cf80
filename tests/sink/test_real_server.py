"""`make test-server` runs the tests against a real server, and fails without QDRANT_URL."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_without_a_server_the_command_says_how_to_get_one(tmp_path: Path) -> None:
    """Without QDRANT_URL the command fails immediately, before it installs anything, and says what to do."""
    environment = {name: value for name, value in os.environ.items() if name != "QDRANT_URL"}
    command = ["make", "test-server", f"VENV={tmp_path / 'none'}"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0
    assert "QDRANT_URL is not set" in done.stdout
    assert "docker compose up --detach --wait qdrant" in done.stdout
    assert not (tmp_path / "none").exists()
