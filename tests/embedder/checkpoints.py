"""What tests do to the files of a checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def as_bin(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Turn the weights of a checkpoint into `pytorch_model.bin`; returns them."""
    weights = load_file(checkpoint / "model.safetensors")
    (checkpoint / "model.safetensors").unlink()
    torch.save(weights, checkpoint / "pytorch_model.bin")
    return weights


def without(checkpoint: Path, name: str) -> None:
    """Remove a weight from a checkpoint."""
    weights = load_file(checkpoint / "model.safetensors")
    del weights[name]
    save_file(weights, checkpoint / "model.safetensors")


def edit(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file in place."""
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")


def cached(cache: Path, model: str, revision: str, checkpoint: Path) -> Path:
    """Put a checkpoint into a cache as the hub client lays it out."""
    snapshot = cache / f"models--{model.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(checkpoint, snapshot)
    return snapshot
