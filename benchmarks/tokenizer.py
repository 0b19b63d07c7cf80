"""The tokenizer of the benchmarks: XLM-RoBERTa's own, which BGE-M3 has."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from embedder.checkpoint import MINI

_PACKAGE = "semantra_multilingual"
"""A package that carries XLM-RoBERTa's tokenizer.json, 250 002 entries."""


def made(path: Path) -> Path:
    """A directory with XLM-RoBERTa's tokenizer at this path, or the miniature's where no package has it."""
    spec = find_spec(_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return MINI
    files = sorted(Path(spec.submodule_search_locations[0]).rglob("tokenizer.json"))
    if not files:
        return MINI
    path.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(files[0], path / "tokenizer.json")
    shutil.copyfile(MINI / "tokenizer_config.json", path / "tokenizer_config.json")
    return path


def name_of(checkpoint: Path) -> str:
    """The origin of a checkpoint's tokenizer, for a person."""
    is_miniature = (checkpoint / "tokenizer.json").stat().st_size == (MINI / "tokenizer.json").stat().st_size
    return "the miniature's" if is_miniature else "XLM-RoBERTa's"
