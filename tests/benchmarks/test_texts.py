"""The benchmark's texts have the lengths that the report states."""

from __future__ import annotations

from pathlib import Path
from statistics import mean

import pytest
from tokenizers import Tokenizer

from benchmarks.shape import FULL_SIZE, Shape
from benchmarks.texts import Texts, mixed_lengths
from embedder.checkpoint import MINI
from training.random_checkpoint import build


@pytest.fixture(scope="module")
def texts() -> Texts:
    """Texts for the miniature model's tokenizer, up to 8192 tokens."""
    return Texts.make(MINI, 8192)


@pytest.mark.parametrize("kind", ["queries", "mixed", "passages", "longs", "shorts"])
def test_every_text_has_the_tokens_it_claims(texts: Texts, kind: str) -> None:
    """The stated lengths equal the counts of the checkpoint's tokenizer."""
    tokenizer = Tokenizer.from_file(str(MINI / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    assert [len(encoding.ids) for encoding in tokenizer.encode_batch(getattr(texts, kind))] == texts.lengths[kind]


def test_queries_are_short_questions(texts: Texts) -> None:
    """Queries have 5 to 12 tokens, 9 on average."""
    lengths = texts.lengths["queries"]
    assert (min(lengths), max(lengths), mean(lengths)) == (5, 12, 9)


def test_mixed_passages_are_mostly_short_and_mostly_in_long_texts() -> None:
    """Mixed passages have 8 to 512 tokens, about 2 500 in total, as in real corpora."""
    lengths = sorted(mixed_lengths())
    assert lengths[0] >= 8
    assert lengths[-1] == 512
    assert 2000 <= sum(lengths) <= 3000
    assert sum(lengths[-4:]) > sum(lengths[:-4])


def test_every_contender_gets_the_same_texts(texts: Texts, tmp_path: Path) -> None:
    """Texts are generated from a seed and passed to each contender in a file."""
    texts.write(tmp_path / "texts.json")
    assert Texts.read(tmp_path / "texts.json") == texts == Texts.make(MINI, 8192)


def test_a_model_of_fewer_positions_gets_shorter_texts() -> None:
    """The miniature model's limit is 512 tokens, so no 8192-token text is generated."""
    assert Texts.make(MINI, 300).longs == []
    assert max(Texts.make(MINI, 300).lengths["mixed"]) == 300


def test_the_arithmetic_counts_the_weights_that_are_multiplied(tmp_path: Path) -> None:
    """302 M of BGE-M3's 568 M parameters are in linear layers, counted from config.json."""
    from safetensors import safe_open

    path = build(tmp_path / "checkpoint", hidden=16, layers=2, heads=2, intermediate=24, positions=66)
    with safe_open(path / "model.safetensors", "pt") as file:
        stored = sum(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118 - it is no mapping
    heads = 16 * 16 + 16 + 16 + 1
    assert Shape.read(path).parameters == stored + heads
    sizes = {name: FULL_SIZE[name] for name in ("hidden", "layers", "heads", "intermediate", "positions")}
    full = Shape(vocabulary=FULL_SIZE["vocab"], **sizes)
    assert (round(full.linear / 1e6), round(full.parameters / 1e6), full.max_length) == (302, 569, 8192)
