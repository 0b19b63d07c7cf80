"""The checkpoint of the GPU benchmark: random float16 weights that the GPU draws, and a tokenizer of full size."""

from __future__ import annotations

import shutil
from pathlib import Path

from benchmarks import tokenizer
from benchmarks.shape import FULL_SIZE, QUICK_SIZE
from embedder.checkpoint import MINI
from training.random_checkpoint import build


def made(path: Path, *, quick: bool, device: str) -> Path:
    """A checkpoint of the size of BGE-M3, or a small one, at this path; made once."""
    if path.is_dir():
        return path
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    sizes = QUICK_SIZE if quick else FULL_SIZE
    source = MINI if quick else tokenizer.made(path.with_name("tokenizer"))
    build(part, **sizes, weight_format="safetensors", dtype="float16", tokenizer=source, device=device)
    return part.rename(path)
