"""Reads the weights of a checkpoint into the page cache while torch is imported, which does not use the disk."""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from itertools import pairwise
from pathlib import Path
from typing import Final

from embedder.checkpoint.copy_path import copy_path
from embedder.checkpoint.damage import HEADER_MAX_BYTES

log = logging.getLogger(__name__)

_TABLE: Final = "embeddings.word_embeddings.weight"
"""The tensor of which a CPU reads only the rows of a text's tokens: nearly half of the file."""


def read_ahead(checkpoint: Path, *, with_table: bool) -> threading.Thread | None:
    """Start a thread that has the system read the weights, and return it; None where it cannot.

    The pages go from the disk to the page cache and take none of the process's memory. Whatever is wrong with the files
    is left to their reader, which reports it.

    Args:
        checkpoint: a folder in the published layout.
        with_table: whether the embeddings of the tokens are read as well.
    """
    if not sys.platform.startswith("linux"):  # elsewhere `sendfile` writes to sockets alone
        return None
    thread = threading.Thread(target=_read, args=(checkpoint, with_table), name="readahead", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # no more threads
        log.debug("the weights are not read ahead: no thread")
        return None
    return thread


def _weights(checkpoint: Path) -> Path:
    """The safetensors file that `Weights.open` is going to read if it exists."""
    path = checkpoint / "model.safetensors"
    return path if path.is_file() else copy_path(checkpoint / "pytorch_model.bin")


def spans_read(path: Path, *, with_table: bool) -> list[tuple[int, int]]:
    """First byte and end of each part of a safetensors file that is read.

    Raises:
        ValueError, KeyError, OSError: the header is larger than its limit or damaged, or the file cannot be read.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > HEADER_MAX_BYTES:
            raise ValueError("the header is too large")
        header = json.loads(file.read(size))
    start, end = 8 + size, path.stat().st_size
    if with_table:
        return [(start, end)]
    tables = sorted(header[name]["data_offsets"] for name in header if name.removeprefix("roberta.") == _TABLE)
    edges = [start, *(start + int(offset) for table in tables for offset in table), end]
    return [(first, last) for first, last in list(pairwise(edges))[::2] if first < last]


def _read(checkpoint: Path, with_table: bool) -> None:  # noqa: FBT001 - as in `read_ahead`
    try:
        path = _weights(checkpoint)
        with path.open("rb") as file, Path(os.devnull).open("wb") as nowhere:
            for start, end in spans_read(path, with_table=with_table):
                read, sent = start, 1
                while read < end and sent:  # nothing is copied, and other threads run Python meanwhile
                    sent = os.sendfile(nowhere.fileno(), file.fileno(), read, end - read)
                    read += sent
    except Exception as error:  # noqa: BLE001 - a file that is damaged in any way is its reader's to report
        log.debug("the weights are not read ahead (%s)", type(error).__name__)
