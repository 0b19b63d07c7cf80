"""Weights baked into an image: ready to load offline, and there once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedder.bake import main as bake
from embedder.checkpoint import DEFAULT_MODEL, DEFAULT_REVISION
from tests.embedder.checkpoints import as_bin, cached

ROOT = Path(__file__).parents[2]


def baked(home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command on the default model, offline, with the hub's cache under `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-m", "embedder.bake", DEFAULT_MODEL],
        cwd=ROOT,
        env={**kept, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_baked_weights_load_offline_and_are_there_once(tmp_path: Path, small_checkpoint: Path) -> None:
    """A `.bin` of the hub becomes safetensors in its place: nothing is converted at a start, and nothing kept twice."""
    as_bin(small_checkpoint)
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    blob = snapshot.parents[1] / "blobs" / "weights"
    blob.parent.mkdir()
    (snapshot / "pytorch_model.bin").rename(blob)
    (snapshot / "pytorch_model.bin").symlink_to(blob)
    done = baked(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not blob.exists()
    assert sorted(path.name for path in snapshot.glob("*model*")) == ["model.safetensors"]
    again = baked(tmp_path)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_directory_of_the_callers_is_never_changed(small_checkpoint: Path) -> None:
    """Weights that are no links of the hub's cache stay as they are."""
    as_bin(small_checkpoint)
    before = sorted(path.name for path in small_checkpoint.iterdir())
    assert bake([str(small_checkpoint)]) == 0
    assert sorted(path.name for path in small_checkpoint.iterdir()) == before
    assert bake([]) == 2
