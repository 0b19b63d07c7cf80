"""The checkpoint that is measured: random weights, since speed does not depend on their values."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks import tokenizer
from benchmarks.shape import FULL_SIZE, QUICK_SIZE
from embedder.checkpoint import MINI

ROOT = Path(__file__).parents[1]


def made(path: Path, *, quick: bool) -> Path:
    """Random weights at this path, of the size of BGE-M3 or small, in its published format; made once."""
    if path.is_dir():
        return path
    print(f"making a checkpoint with random weights: {path}", flush=True)
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    sizes = [f"--{name}={size}" for name, size in (QUICK_SIZE if quick else FULL_SIZE).items()]
    source = MINI if quick else tokenizer.made(path.with_name("tokenizer"))
    # In a process of its own: this one stays small, and so does what it starts.
    command = [sys.executable, "-m", "training.random_checkpoint", str(part), "--format=bin", *sizes]
    command.append(f"--tokenizer={source.resolve()}")
    subprocess.run(command, cwd=ROOT, check=True)
    return part.rename(path)
