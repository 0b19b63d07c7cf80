"""The checkpoint of the GPU benchmark: random float16 weights that the GPU draws, and a tokenizer of full size."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from benchmarks.shape import FULL_SIZE, QUICK_SIZE
from embedder.checkpoint import MINI
from training.random_checkpoint import build

_REAL_TOKENIZER = "semantra_multilingual"
"""A package that carries XLM-RoBERTa's tokenizer.json, 250 002 entries."""


def made(path: Path, *, quick: bool, device: str) -> Path:
    """A checkpoint of the size of BGE-M3, or a small one, at this path; made once."""
    if path.is_dir():
        return path
    part = path.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    sizes = QUICK_SIZE if quick else FULL_SIZE
    tokenizer = MINI if quick else _real_tokenizer(path.with_name("tokenizer"))
    build(part, **sizes, weight_format="safetensors", dtype="float16", tokenizer=tokenizer, device=device)
    return part.rename(path)


def tokenizer_name(checkpoint: Path) -> str:
    """The origin of the checkpoint's tokenizer, for a person."""
    is_miniature = (checkpoint / "tokenizer.json").stat().st_size == (MINI / "tokenizer.json").stat().st_size
    return "the miniature's" if is_miniature else "XLM-RoBERTa's"


def _real_tokenizer(path: Path) -> Path:
    """A directory with XLM-RoBERTa's tokenizer, or the miniature where no package has it."""
    spec = find_spec(_REAL_TOKENIZER)
    if spec is None or not spec.submodule_search_locations:
        return MINI
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("tokenizer.json"))
    if not files:
        return MINI
    path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[0], path / "tokenizer.json")
    shutil.copyfile(MINI / "tokenizer_config.json", path / "tokenizer_config.json")
    return path
