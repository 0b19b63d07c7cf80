"""The weights are read ahead where that helps, and files that cannot be read are left to their reader."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest

from embedder.checkpoint import MINI
from embedder.checkpoint.copy_path import copy_path
from embedder.checkpoint.readahead import read_ahead, spans_read

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no such call elsewhere")


def written(path: Path, sizes: dict[str, int]) -> int:
    """Write a safetensors file of float32 tensors of so many numbers; return the first byte behind the header."""
    header, end = {}, 0
    for name, size in sizes.items():
        header[name] = {"dtype": "F32", "shape": [size], "data_offsets": [end, end + 4 * size]}
        end += 4 * size
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + bytes(end))
    return 8 + len(encoded)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_a_cpu_reads_all_but_the_table_of_the_tokens(tmp_path: Path, prefix: str) -> None:
    """Of the largest table a CPU needs a few rows: the disk is spared nearly half of the file."""
    path = tmp_path / "model.safetensors"
    start = written(path, {"first": 10, f"{prefix}embeddings.word_embeddings.weight": 1000, "last": 20})
    assert spans_read(path, with_table=False) == [(start, start + 40), (start + 4040, start + 4120)]
    assert spans_read(path, with_table=True) == [(start, start + 4120)]


def test_the_whole_file_is_read() -> None:
    """The thread ends, and has read the weights of a checkpoint."""
    thread = read_ahead(MINI, with_table=True)
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 4) + b"[1]\n",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 44) + b'{"embeddings.word_embeddings.weight": [1, 2]}',
    ],
)
def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path, content: bytes) -> None:
    """Nothing is raised here, so that the error that a user sees is that of the reader, with its message."""
    (tmp_path / "model.safetensors").write_bytes(content)
    assert read_ahead(tmp_path, with_table=False) is None


def test_a_bin_is_read_as_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a `pytorch_model.bin` the copy in the user's cache is read; before there is one, nothing is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "pytorch_model.bin").write_bytes(b"weights")
    assert read_ahead(checkpoint, with_table=True) is None
    copy = copy_path(checkpoint / "pytorch_model.bin")
    copy.parent.mkdir(parents=True)
    shutil.copy(MINI / "model.safetensors", copy)
    thread = read_ahead(checkpoint, with_table=True)
    assert thread is not None
    thread.join(30)
