"""A file of a checkpoint that would fill the memory is refused by the sizes that it declares."""

from __future__ import annotations

import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from embedder.checkpoint import tensorfile
from embedder.checkpoint.config import EncoderConfig
from embedder.checkpoint.damage import HEADER_MAX_BYTES, JSON_MAX_BYTES, TOKENIZER_MAX_BYTES
from embedder.checkpoint.find import MINI
from embedder.checkpoint.state_pickle import PICKLE_MAX_BYTES
from embedder.checkpoint.tensorfile import ARCHIVE_GROWTH_MAX_BYTES, TensorFile
from embedder.checkpoint.weights import read_head
from embedder.errors import ConfigurationError
from embedder.tokenizer import Tokenizer

PIECE = bytes(1_000_000)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A copy of the miniature."""
    return Path(shutil.copytree(MINI, tmp_path / "checkpoint"))


@pytest.fixture
def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail if anything in an archive is read."""

    def read(*_values: Any, **_named: Any) -> None:
        pytest.fail("the archive was read")

    monkeypatch.setattr(torch, "load", read)


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("name", ["sparse_linear", "colbert_linear"])
def test_a_head_that_inflates_is_refused_unread(checkpoint: Path, name: str) -> None:
    """A file of a few kilobytes whose content is many megabytes is refused before anything is inflated."""
    path = checkpoint / f"{name}.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("head/data/0", "w") as member:
        for _ in range(ARCHIVE_GROWTH_MAX_BYTES // len(PIECE) + 1):
            member.write(PIECE)
    assert path.stat().st_size < 100_000
    with pytest.raises(ConfigurationError, match=rf"{name}.pt is damaged .*\(compressed from 65 MB, limit 64 MB\)"):
        read_head(checkpoint, name)


@pytest.mark.usefixtures("unread")
def test_weights_that_inflate_are_refused_unread(tmp_path: Path) -> None:
    """The same holds for `pytorch_model.bin`, and for many members that are small by themselves."""
    path = tmp_path / "pytorch_model.bin"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for number in range(ARCHIVE_GROWTH_MAX_BYTES // len(PIECE) + 1):
            archive.writestr(f"model/data/{number}", PIECE)
    with pytest.raises(ConfigurationError, match="compressed from 65 MB, limit 64 MB"):
        TensorFile(path)


def test_a_tensor_that_repeats_one_number_is_refused(checkpoint: Path) -> None:
    """A tensor of 10^12 elements over one stored number is refused before it is copied."""
    path = checkpoint / "sparse_linear.pt"
    state = torch.load(path, weights_only=True)
    torch.save({**state, "weight": torch.zeros(1, dtype=torch.float16).expand(1, 10**12)}, path)
    assert path.stat().st_size < 100_000
    with pytest.raises(ConfigurationError, match="a tensor is larger than its content"):
        read_head(checkpoint, "sparse_linear")


CALLS = {
    "bytearray": b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x5e\xd0\xb2\x00\x85R.",
    "encode": b"\x80\x02c_codecs\nencode\nX\x01\x00\x00\x00aX\x05\x00\x00\x00utf-8\x86R.",
    "named on the stack": b"\x80\x04\x8c\x08builtins\x8c\x09bytearray\x93\x8a\x05\x00\x5e\xd0\xb2\x00\x85R.",
}


@pytest.mark.usefixtures("unread")
@pytest.mark.parametrize("is_archive", [True, False], ids=["archive", "stream"])
@pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))
def test_a_pickle_that_takes_memory_by_a_call_is_refused(checkpoint: Path, call: bytes, is_archive: bool) -> None:
    """A head of a kilobyte whose pickle asks for 3 GB is refused before torch sees it, in both formats of torch."""
    path = checkpoint / "sparse_linear.pt"
    if is_archive:
        replace_pickle(path, call)
    else:
        before: list[object] = [1, 1001, {}]
        path.write_bytes(b"".join(pickle.dumps(part, 2) for part in before) + call + pickle.dumps([], 2))
    with pytest.raises(ConfigurationError, match=r"sparse_linear.pt is damaged .*not only tensors by name"):
        read_head(checkpoint, "sparse_linear")


@pytest.mark.usefixtures("unread")
def test_a_pickle_that_is_too_large_is_refused_unread(checkpoint: Path) -> None:
    """A pickle of lists within lists takes fifty times its bytes as objects, so its bytes are bounded."""
    path = checkpoint / "colbert_linear.pt"
    replace_pickle(path, b"\x80\x02" + b"]" * PICKLE_MAX_BYTES + b"a" * (PICKLE_MAX_BYTES - 1) + b".")
    with pytest.raises(ConfigurationError, match=r"colbert_linear.pt is damaged .*a pickle of more than 1 MB"):
        read_head(checkpoint, "colbert_linear")


@pytest.mark.usefixtures("unread")
def test_a_pickle_is_found_by_any_case_of_its_name(checkpoint: Path) -> None:
    """Torch reads DATA.PKL as well."""
    path = checkpoint / "sparse_linear.pt"
    replace_pickle(path, CALLS["bytearray"], name="DATA.PKL")
    with pytest.raises(ConfigurationError, match="not only tensors by name"):
        read_head(checkpoint, "sparse_linear")


def replace_pickle(path: Path, content: bytes, *, name: str = "data.pkl") -> None:
    """Write an archive anew with another pickle, under this name."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: archive.read(member) for member in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, stored in members.items():
            is_pickle = member.endswith("data.pkl")
            archive.writestr(member.replace("data.pkl", name), content if is_pickle else stored)


def test_a_header_that_is_too_large_is_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The length that a safetensors file declares for its header is checked before the header is parsed."""
    import safetensors

    monkeypatch.setattr(safetensors, "safe_open", lambda *_values, **_named: pytest.fail("the header was read"))
    path = tmp_path / "model.safetensors"
    path.write_bytes((HEADER_MAX_BYTES + 10**6).to_bytes(8, "little"))
    os.truncate(path, HEADER_MAX_BYTES * 2)
    with pytest.raises(ConfigurationError, match="a header of 11 MB, limit 10 MB"):
        TensorFile(path)


def test_json_files_that_are_too_large_are_refused_unread(checkpoint: Path) -> None:
    """config.json, tokenizer.json and tokenizer_config.json are checked by their size on disk."""
    for name, limit in (
        ("tokenizer_config.json", JSON_MAX_BYTES),
        ("tokenizer.json", TOKENIZER_MAX_BYTES),
        ("config.json", JSON_MAX_BYTES),
    ):
        os.truncate(checkpoint / name, limit + 10**6)
        with pytest.raises(ConfigurationError, match=f"{name} .*{limit // 10**6 + 1} MB, limit {limit // 10**6} MB"):
            EncoderConfig.read(checkpoint) if name == "config.json" else Tokenizer(checkpoint)
        shutil.copy(MINI / name, checkpoint / name)


def test_published_files_are_within_the_limits(checkpoint: Path) -> None:
    """An archive of `torch.save` is larger than its content, so that no published file is refused."""
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        with zipfile.ZipFile(checkpoint / name) as archive:
            assert sum(member.file_size for member in archive.infolist()) < (checkpoint / name).stat().st_size
        tensorfile.load_state(checkpoint / name)
    Tokenizer(checkpoint)
    EncoderConfig.read(checkpoint)
