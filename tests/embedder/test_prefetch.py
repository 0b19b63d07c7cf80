"""`bge-m3-qdrant prefetch` stores weights once in the hub's cache or an image, ready to load offline."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from embedder.checkpoint import DEFAULT_MODEL, DEFAULT_REVISION
from tests.command_line import PROGRAM, invoke
from tests.embedder.checkpoints import as_bin, cached

ROOT = Path(__file__).parents[2]


def prefetched(home: Path) -> subprocess.CompletedProcess[str]:
    """Run the command on the default model, offline, with the hub's cache under `home`."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    return subprocess.run(
        [*PROGRAM, "prefetch", DEFAULT_MODEL, "--json"],
        cwd=ROOT,
        env={**environment, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.slow
def test_prefetched_weights_load_offline_and_are_there_once(tmp_path: Path, small_checkpoint: Path) -> None:
    """A `.bin` of the hub is replaced by safetensors: no start converts weights, and no copy remains."""
    as_bin(small_checkpoint)
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    blob = snapshot.parents[1] / "blobs" / "weights"
    blob.parent.mkdir()
    (snapshot / "pytorch_model.bin").rename(blob)
    (snapshot / "pytorch_model.bin").symlink_to(blob)
    done = prefetched(tmp_path)
    assert done.returncode == 0, done.stderr
    assert not blob.exists()
    assert sorted(path.name for path in snapshot.glob("*model*")) == ["model.safetensors"]
    again = prefetched(tmp_path)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == {"model": DEFAULT_MODEL, "path": str(snapshot)}


@pytest.mark.slow
def test_a_directory_of_the_callers_is_never_changed(small_checkpoint: Path) -> None:
    """Weights that are not links into the hub's cache are never changed."""
    as_bin(small_checkpoint)
    before = sorted(path.name for path in small_checkpoint.iterdir())
    ended = invoke("prefetch", str(small_checkpoint))
    assert (ended.status, ended.out) == (0, f"{small_checkpoint}\n")
    assert sorted(path.name for path in small_checkpoint.iterdir()) == before


def test_a_model_that_does_not_exist_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the argument, or the setting if the command read the model from it."""
    monkeypatch.setenv("MODEL_ID", "no such model")
    for arguments, name in ((["no such model"], "MODEL"), ([], "MODEL_ID")):
        ended = invoke("prefetch", *arguments)
        assert (ended.status, ended.out) == (2, "")
        assert ended.err.startswith(f"bge-m3-qdrant prefetch: {name}: must be `mini`, ")
        assert ended.err.count("\n") == 1
