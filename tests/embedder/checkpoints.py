"""Functions that change the files of a checkpoint for a test."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def as_bin(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Convert the weights of a checkpoint to `pytorch_model.bin` and return them."""
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
    """Copy a checkpoint into a cache in the layout of the hub client."""
    snapshot = cache / f"models--{model.replace('/', '--')}" / "snapshots" / revision
    shutil.copytree(checkpoint, snapshot)
    return snapshot
