"""The published checkpoint is loaded; an invalid one is refused by name, and no file runs code."""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from embedder.checkpoint import DEFAULT_MODEL, DEFAULT_REVISION, MINI, EncoderConfig, find_checkpoint, revision_of
from embedder.engines.packed import PackedEngine
from embedder.errors import ConfigurationError
from tests.embedder.checkpoints import as_bin, cached, edit, without
from tests.embedder.oracle import assert_same, embed

Load = Callable[[Path], PackedEngine]


class Marker:
    """A pickle that runs a command, which creates a directory."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self._path),)


def refused(load: Callable[[], object], mentions: str, checkpoint: Path) -> None:
    """Assert that loading is refused with a message that contains `mentions` and hides the path of the files."""
    with pytest.raises(ConfigurationError, match=re.escape(mentions)) as caught:
        load()
    assert str(checkpoint) not in str(caught.value)


# --- finding --------------------------------------------------------------------------------------------------------


def test_the_miniature_is_found_by_its_name() -> None:
    """`MODEL_ID=mini` needs neither network nor files beside the program."""
    assert find_checkpoint("mini") == MINI


def test_a_revision_says_which_weights_they_are(tmp_path: Path, small_checkpoint: Path) -> None:
    """A snapshot has the commit of its model, `mini` a digest of its weights, and another directory no revision."""
    assert revision_of(cached(tmp_path, DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)) == DEFAULT_REVISION
    assert re.fullmatch("[0-9a-f]{16}", revision_of(MINI) or "")
    assert revision_of(small_checkpoint) is None


def test_a_directory_is_used_as_it_is(small_checkpoint: Path) -> None:
    """A local directory in the published layout is loaded as a model."""
    assert find_checkpoint(str(small_checkpoint)) == small_checkpoint


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "sparse_linear.pt", "colbert_linear.pt", "model.safetensors"]
)
def test_a_missing_file_is_named(small_checkpoint: Path, name: str) -> None:
    """A directory that lacks a file is refused, naming the file."""
    (small_checkpoint / name).unlink()
    refused(lambda: find_checkpoint(str(small_checkpoint)), name, small_checkpoint)


def test_all_missing_files_are_named(tmp_path: Path) -> None:
    """The error for an empty directory lists every missing file."""
    names = "config.json, tokenizer.json, sparse_linear.pt, colbert_linear.pt, model.safetensors or pytorch_model.bin"
    refused(lambda: find_checkpoint(str(tmp_path)), names, tmp_path)


@pytest.mark.parametrize("name", ["", "nothing-of-this-name", "./nothing", "a/b/c", "/", "../..x/", "a/ "])
def test_an_invalid_model_name_is_refused(name: str) -> None:
    """A value that is neither a directory nor a hub name is refused immediately, without network access."""
    with pytest.raises(ConfigurationError, match="MODEL_ID"):
        find_checkpoint(name)


def test_the_platform_cache_gives_the_pinned_revision(tmp_path: Path, small_checkpoint: Path) -> None:
    """RunPod's model cache is used if it holds the pinned commit, whatever else it holds."""
    cached(tmp_path / "hub", DEFAULT_MODEL, "1" * 40, small_checkpoint)
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    assert find_checkpoint(DEFAULT_MODEL, platform_cache=tmp_path / "hub") == snapshot


def test_the_platform_cache_with_another_revision_is_used_with_a_warning(
    tmp_path: Path, small_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache with another commit under `main` is used, and a warning names both commits."""
    snapshot = cached(tmp_path / "hub", DEFAULT_MODEL, "1" * 40, small_checkpoint)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("1" * 40 + "\n", encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint(DEFAULT_MODEL, platform_cache=tmp_path / "hub") == snapshot
    assert "1" * 40 in caplog.text
    assert DEFAULT_REVISION in caplog.text


def test_the_platform_cache_of_another_model_needs_no_pin(
    tmp_path: Path, small_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A user's fine-tuned model is loaded from the cache at `main` without a warning."""
    snapshot = cached(tmp_path / "hub", "me/tuned", "2" * 40, small_checkpoint)
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("2" * 40, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        assert find_checkpoint("me/tuned", platform_cache=tmp_path / "hub") == snapshot
    assert not caplog.records


def test_a_cached_model_that_is_incomplete_is_refused(tmp_path: Path, small_checkpoint: Path) -> None:
    """A cached snapshot without weights is refused as incomplete instead of being loaded in part."""
    (small_checkpoint / "model.safetensors").unlink()
    cached(tmp_path / "hub", DEFAULT_MODEL, DEFAULT_REVISION, small_checkpoint)
    refused(lambda: find_checkpoint(DEFAULT_MODEL, platform_cache=tmp_path / "hub"), "pytorch_model.bin", tmp_path)


# --- config.json ----------------------------------------------------------------------------------------------------


def test_the_limit_excludes_the_positions_that_no_text_uses() -> None:
    """514 positions allow 512 tokens, and 8194 allow 8192."""
    assert EncoderConfig.read(MINI).max_length == 512


@pytest.mark.parametrize(
    ("key", "value"),
    [("model_type", "bert"), ("hidden_act", "gelu_new"), ("position_embedding_type", "relative_key")],
)
def test_another_architecture_is_refused(small_checkpoint: Path, key: str, value: str) -> None:
    """An unsupported architecture is refused, naming it and the supported one."""
    edit(small_checkpoint / "config.json", lambda config: config.update({key: value}))
    refused(lambda: EncoderConfig.read(small_checkpoint), f"{key}='{value}'", small_checkpoint)


def test_a_missing_size_is_named(small_checkpoint: Path) -> None:
    """A config.json without a size is refused, naming the key."""
    edit(small_checkpoint / "config.json", lambda config: config.pop("layer_norm_eps"))
    refused(lambda: EncoderConfig.read(small_checkpoint), "layer_norm_eps", small_checkpoint)


SIZES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"]


@pytest.mark.parametrize("value", [0, -1, 2.0, "4", None, True, [1], float("inf")], ids=repr)
@pytest.mark.parametrize("key", [*SIZES, "max_position_embeddings", "pad_token_id"])
def test_an_invalid_size_is_named(small_checkpoint: Path, key: str, value: object) -> None:
    """An invalid size is refused with its key, the rule and the value; `<pad>` may be 0."""
    edit(small_checkpoint / "config.json", lambda config: config.update({key: value}))
    if key == "pad_token_id" and value == 0:
        assert EncoderConfig.read(small_checkpoint).pad_id == 0
        return
    least = 0 if key == "pad_token_id" else 1
    message = f"config.json has {key}={value!r}, which must be a whole number >= {least}"
    refused(lambda: EncoderConfig.read(small_checkpoint), message, small_checkpoint)


@pytest.mark.parametrize("value", [0, 0.0, -1e-5, "1e-5", None, True, float("nan"), float("inf")], ids=repr)
def test_an_invalid_epsilon_is_named(small_checkpoint: Path, value: object) -> None:
    """The epsilon of layer norm must be a number above zero."""
    edit(small_checkpoint / "config.json", lambda config: config.update(layer_norm_eps=value))
    message = f"config.json has layer_norm_eps={value!r}, which must be a number > 0"
    refused(lambda: EncoderConfig.read(small_checkpoint), message, small_checkpoint)


@pytest.mark.parametrize("positions", [1, 2, 4])
def test_a_model_must_take_a_token(small_checkpoint: Path, positions: int) -> None:
    """Positions that leave no room for a single token of a text are refused."""
    edit(small_checkpoint / "config.json", lambda config: config.update(max_position_embeddings=positions))
    refused(
        lambda: EncoderConfig.read(small_checkpoint), f"max_position_embeddings={positions}, which", small_checkpoint
    )


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe"])
def test_a_damaged_config_is_named(small_checkpoint: Path, content: bytes) -> None:
    """A config.json that does not hold a JSON object is refused by name."""
    (small_checkpoint / "config.json").write_bytes(content)
    refused(lambda: EncoderConfig.read(small_checkpoint), "config.json", small_checkpoint)


def test_a_missing_config_is_named(tmp_path: Path) -> None:
    """A checkpoint without config.json is refused, naming the file."""
    refused(lambda: EncoderConfig.read(tmp_path), "config.json", tmp_path)


# --- weights --------------------------------------------------------------------------------------------------------


def test_both_formats_hold_the_same_model(small_checkpoint: Path, packed_from: Load) -> None:
    """`model.safetensors` and `pytorch_model.bin` of one model give the same vectors."""
    from embedder.tokenizer import Tokenizer

    tokenizer = Tokenizer(small_checkpoint)
    texts = ["one library", "of many tools"]
    before = embed(packed_from(small_checkpoint), tokenizer, texts, 64)
    as_bin(small_checkpoint)
    assert_same(embed(packed_from(small_checkpoint), tokenizer, texts, 64), before, tolerance=0)


def test_names_with_a_prefix_are_understood(small_checkpoint: Path, packed_from: Load) -> None:
    """A checkpoint saved from a model with a head on top (`roberta.` before each name) loads."""
    weights = load_file(small_checkpoint / "model.safetensors")
    save_file({f"roberta.{name}": weight for name, weight in weights.items()}, small_checkpoint / "model.safetensors")
    assert packed_from(small_checkpoint).hidden_size == 16


@pytest.mark.parametrize(
    "name",
    ["embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.key.bias", "embeddings.LayerNorm.bias"],
)
def test_a_missing_weight_is_named(small_checkpoint: Path, packed_from: Load, name: str) -> None:
    """A checkpoint that lacks a weight is refused, naming it."""
    without(small_checkpoint, name)
    refused(lambda: packed_from(small_checkpoint), name, small_checkpoint)


@pytest.mark.parametrize(
    ("key", "value", "weight"),
    [
        ("vocab_size", 11_007, "embeddings.word_embeddings.weight"),
        ("max_position_embeddings", 514, "embeddings.position_embeddings.weight"),
        ("hidden_size", 18, "embeddings.word_embeddings.weight"),
        ("intermediate_size", 25, "encoder.layer.0.intermediate.dense.weight"),
        ("num_hidden_layers", 2, "encoder.layer.1.attention.self.query.weight"),
    ],
)
def test_sizes_that_differ_from_the_weights_are_refused(
    small_checkpoint: Path, packed_from: Load, key: str, value: int, weight: str
) -> None:
    """A config.json whose sizes differ from the weights is refused at the start, not at the first long text."""
    edit(small_checkpoint / "config.json", lambda config: config.update({key: value}))
    refused(lambda: packed_from(small_checkpoint), weight, small_checkpoint)


def test_heads_must_divide_the_width(small_checkpoint: Path, packed_from: Load) -> None:
    """Attention heads that do not divide the hidden size are refused, naming both numbers."""
    edit(small_checkpoint / "config.json", lambda config: config.update(num_attention_heads=3))
    refused(lambda: packed_from(small_checkpoint), "num_attention_heads=3", small_checkpoint)


@pytest.mark.parametrize("head", ["sparse_linear", "colbert_linear"])
@pytest.mark.parametrize(
    "state",
    [
        {},
        {"weight": torch.zeros(1, 9), "bias": torch.zeros(1)},
        [1, 2],
        {"weight": 1, "bias": 2},
        {"weight": torch.zeros(1, 16, dtype=torch.int8), "bias": torch.zeros(1)},
        {"weight": torch.zeros(1, 16).to(torch.float8_e4m3fn), "bias": torch.zeros(1)},
    ],
)
def test_a_head_that_does_not_fit_is_named(small_checkpoint: Path, packed_from: Load, head: str, state: object) -> None:
    """A head that is quantised, without weights, or of another width than the model is refused by name."""
    torch.save(state, small_checkpoint / f"{head}.pt")
    refused(lambda: packed_from(small_checkpoint), head, small_checkpoint)


@pytest.mark.parametrize("damage", ["half", "garbage", "empty"])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "sparse_linear.pt", "colbert_linear.pt"])
def test_a_damaged_file_is_named(small_checkpoint: Path, packed_from: Load, name: str, damage: str) -> None:
    """Weights cut off by a broken download, or no weights at all, are refused, naming the file."""
    if name == "pytorch_model.bin":
        as_bin(small_checkpoint)
    path = small_checkpoint / name
    content = path.read_bytes()
    path.write_bytes({"half": content[: len(content) // 2], "garbage": b"<html>not found</html>", "empty": b""}[damage])
    refused(lambda: packed_from(small_checkpoint), name, small_checkpoint)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", ["pytorch_model.bin", "sparse_linear.pt"])
def test_a_file_that_holds_code_is_refused_unrun(
    small_checkpoint: Path, packed_from: Load, tmp_path: Path, name: str, legacy: bool
) -> None:
    """A checkpoint from a stranger cannot run code on the worker: it is refused, and the code never runs."""
    if name == "pytorch_model.bin":
        as_bin(small_checkpoint)
    marker = tmp_path / "executed"
    torch.save({"weight": Marker(marker)}, small_checkpoint / name, _use_new_zipfile_serialization=not legacy)
    refused(lambda: packed_from(small_checkpoint), name, small_checkpoint)
    assert not marker.exists()


def test_a_plain_pickle_is_refused_unrun(small_checkpoint: Path, packed_from: Load, tmp_path: Path) -> None:
    """A raw pickle under the name of the weights is refused as well."""
    as_bin(small_checkpoint)
    marker = tmp_path / "executed"
    (small_checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps(Marker(marker), protocol=2))
    refused(lambda: packed_from(small_checkpoint), "pytorch_model.bin", small_checkpoint)
    assert not marker.exists()


def test_a_colbert_head_may_be_narrower(small_checkpoint: Path, packed_from: Load) -> None:
    """A ColBERT head that projects to fewer dimensions than the model's width gives rows of that width."""
    state: dict[str, Any] = {"weight": torch.eye(5, 16), "bias": torch.zeros(5)}
    torch.save(state, small_checkpoint / "colbert_linear.pt")
    assert packed_from(small_checkpoint).colbert_size == 5


def test_an_unknown_key_is_ignored(small_checkpoint: Path) -> None:
    """Unknown weights do not prevent a checkpoint from loading."""
    edit(small_checkpoint / "config.json", lambda config: config.update(new_key_of_next_year=1))
    assert EncoderConfig.read(small_checkpoint).hidden == 16
