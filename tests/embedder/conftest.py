"""Checkpoints and their engines, built once per session."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from embedder.checkpoint import MINI
from embedder.engines.packed import PackedEngine
from tests.embedder.bench import Bench
from tests.embedder.texts import TEXTS
from training.random_checkpoint import build
from training.tokenizer import save_tokenizer, train_tokenizer


@pytest.fixture(scope="session", autouse=True)
def _few_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def mini() -> Bench:
    """The trained miniature model: 512 tokens, lower-casing tokenizer, mostly English."""
    return Bench(MINI)


@pytest.fixture(scope="session")
def polyglot_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tokenizer trained on the scripts of `TEXTS`, so that few of them are `<unk>`."""
    path = tmp_path_factory.mktemp("tokenizer")
    samples = [sample for name, sample in TEXTS.items() if not name.startswith(("literal", "all literals", "long"))]
    save_tokenizer(train_tokenizer(samples * 3, 300), path, 8192)
    return path


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory, polyglot_tokenizer: Path) -> Bench:
    """A checkpoint with random weights and 8192 tokens, in `.bin` as BAAI/bge-m3 is published."""
    return Bench(
        build(
            tmp_path_factory.mktemp("checkpoints") / "long",
            hidden=64,
            layers=2,
            heads=4,
            intermediate=176,
            positions=8194,
            seed=1,
            weight_format="bin",
            tokenizer=polyglot_tokenizer,
        )
    )


@pytest.fixture(scope="session")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    """A checkpoint with unusual sizes: random float16 safetensors, more embedding rows than tokens."""
    return Bench(
        build(
            tmp_path_factory.mktemp("checkpoints") / "odd",
            hidden=60,
            layers=1,
            heads=3,
            intermediate=37,
            positions=700,
            vocab=11_003,
            seed=2,
            dtype="float16",
        )
    )


@pytest.fixture(scope="session", params=["mini", "long", "odd"])
def bench(request: pytest.FixtureRequest) -> Bench:
    """Each of the three checkpoints in turn."""
    checkpoint: Bench = request.getfixturevalue(request.param)
    return checkpoint


@pytest.fixture(scope="session")
def _small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "small"
    return build(path, hidden=16, layers=1, heads=2, intermediate=24, positions=66)


@pytest.fixture
def small_checkpoint(tmp_path: Path, _small: Path) -> Path:
    """A small random checkpoint that a test may modify."""
    return shutil.copytree(_small, tmp_path / "checkpoint")


@pytest.fixture
def packed_from() -> Callable[[Path], PackedEngine]:
    """Load the packed engine of a checkpoint in float32."""
    return lambda checkpoint: PackedEngine.load(
        checkpoint, device="cpu", dtype="float32", dropped_ids=frozenset({0, 1, 2, 3})
    )
