"""The weights are read ahead where that helps, and files that cannot be read are left to their reader."""

from __future__ import annotations

import json
import os
import shutil
import struct
import sys
import threading
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


def table_at(offsets: str) -> bytes:
    """A file whose table of the tokens is said to lie there."""
    header = f'{{"embeddings.word_embeddings.weight": {{"data_offsets": [{offsets}]}}}}'.encode()
    return struct.pack("<Q", len(header)) + header + bytes(8)


@pytest.mark.parametrize("prefix", ["", "roberta."])
def test_a_cpu_reads_all_but_the_table_of_the_tokens(tmp_path: Path, prefix: str) -> None:
    """Of the largest table a CPU needs a few rows: the disk is spared nearly half of the file."""
    path = tmp_path / "model.safetensors"
    start = written(path, {"first": 10, f"{prefix}embeddings.word_embeddings.weight": 1000, "last": 20})
    assert spans_read(path, with_table=False) == [(start, start + 40), (start + 4040, start + 4120)]
    assert spans_read(path, with_table=True) == [(start, start + 4120)]


def bytes_read(checkpoint: Path, monkeypatch: pytest.MonkeyPatch, *, with_table: bool) -> int:
    """Bytes that the system had read when the thread ended; it raises nothing."""
    sent: list[int] = []
    raised: list[threading.ExceptHookArgs] = []
    sendfile = os.sendfile

    def counting(to: int, of: int, offset: int, count: int) -> int:
        sent.append(sendfile(to, of, offset, count))
        return sent[-1]

    monkeypatch.setattr(os, "sendfile", counting)
    monkeypatch.setattr(threading, "excepthook", raised.append)
    thread = read_ahead(checkpoint, with_table=with_table)
    assert thread is not None
    thread.join(30)
    assert not thread.is_alive()
    assert not raised
    return sum(sent)


def test_the_whole_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends, and has read the weights of a checkpoint, all of them where the table is needed."""
    path = MINI / "model.safetensors"
    (span,) = spans_read(path, with_table=True)
    assert bytes_read(MINI, monkeypatch, with_table=True) == span[1] - span[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 4) + b"[1]\n",
        struct.pack("<Q", 2) + b"{",
        struct.pack("<Q", 100_000) + b"[" * 100_000,
        struct.pack("<Q", 45) + b'{"embeddings.word_embeddings.weight": [1, 2]}',
        table_at("1e999, 1e999"),
        table_at("NaN, 2"),
        table_at("0, -9"),
        table_at("-99999, 5"),
        table_at("0, -1e30"),
        table_at("1e30, 2e30"),
    ],
)
def test_a_damaged_file_is_left_to_its_reader(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is raised here, so that the error that a user sees is that of the reader, with its message."""
    (tmp_path / "model.safetensors").write_bytes(content)
    assert bytes_read(tmp_path, monkeypatch, with_table=False) <= len(content)


def test_a_start_needs_no_thread_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system gives no further thread, the weights are not read ahead, and the start goes on."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert read_ahead(tmp_path, with_table=True) is None


def test_a_bin_is_read_as_its_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a `pytorch_model.bin` the copy in the user's cache is read; before there is one, nothing is."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checkpoint = tmp_path / "checkpoint"
    checkpoint.mkdir()
    (checkpoint / "pytorch_model.bin").write_bytes(b"weights")
    assert bytes_read(checkpoint, monkeypatch, with_table=True) == 0
    copy = copy_path(checkpoint / "pytorch_model.bin")
    copy.parent.mkdir(parents=True)
    shutil.copy(MINI / "model.safetensors", copy)
    assert bytes_read(checkpoint, monkeypatch, with_table=True) > 0
