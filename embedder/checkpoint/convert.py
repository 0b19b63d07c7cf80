"""A safetensors copy of a `pytorch_model.bin`, made once and kept in the user's cache (see `copy_path`)."""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import time
import uuid
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from embedder.checkpoint.copy_path import copy_path
from embedder.checkpoint.damage import readable
from embedder.checkpoint.tensorfile import CODES, TensorFile

log = logging.getLogger(__name__)

_ENDS_BYTES = 2**20
"""Size of the source's beginning and of its end, which identify it: an archive ends with checksums of its parts."""


def converted(source: Path, cache: Path | None = None) -> Path:
    """The safetensors copy of a `.bin`; made now unless an intact copy of this very file exists.

    The copy replaces that of an earlier file in the same folder. Processes that want it concurrently wait for the
    first of them, and a copy appears under its name only when it is complete.

    Args:
        source: what `torch.save` wrote. If it is an archive, some 100 MB of memory are needed, else its size.
        cache: a folder, made if absent; None is `bge-m3-qdrant` in the user's cache.

    Raises:
        OSError: the copy cannot be written.
        ConfigurationError: the source is damaged, cannot be read, or holds more than tensors.
    """
    copy = copy_path(source, cache)
    with readable(source.name):
        identity = _identity(source)
    if _is_copy(copy, identity):
        return copy
    copy.parent.mkdir(parents=True, exist_ok=True)
    with copy.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _is_copy(copy, identity):
            for abandoned in copy.parent.glob(f"{copy.stem}.*.part"):  # its writer is gone: we have the lock
                abandoned.unlink(missing_ok=True)
            _convert(source, copy, identity)
    return copy


def _convert(source: Path, copy: Path, identity: str) -> None:
    log.info("converting %s to safetensors, once", source.name)
    began = time.perf_counter()
    part = copy.with_suffix(f".{uuid.uuid4().hex}.part")
    try:
        tensors = TensorFile(source)
        with part.open("xb") as file:
            _write(tensors, file, identity)
            file.flush()
            os.fsync(file.fileno())  # else a machine that stops may leave zeros of the right size
        part.replace(copy)
    finally:
        part.unlink(missing_ok=True)
    log.info("converted %s in %.1f s", source.name, time.perf_counter() - began)


def _write(tensors: TensorFile, file: BinaryIO, identity: str) -> None:
    """Write a file in the layout of safetensors slice by slice; the library needs all tensors in memory."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", "source": identity}}
    dtypes = {name: tensors.dtype(name) for name in tensors.shapes}
    ordered = sorted(dtypes, key=lambda name: -dtypes[name].itemsize)  # wide types first, so that all are aligned
    end = 0
    for name in ordered:
        shape = tensors.shapes[name]
        begin, end = end, end + torch.Size(shape).numel() * dtypes[name].itemsize
        header[name] = {"dtype": CODES[dtypes[name]], "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    file.write(len(encoded).to_bytes(8, "little"))
    file.write(encoded)
    for name in ordered:
        file.writelines(_bytes(part) for _, part in tensors.slices(name))


def _bytes(part: Tensor) -> memoryview:
    return part.reshape(-1).view(torch.uint8).numpy().data


def _is_copy(copy: Path, identity: str) -> bool:
    """Whether it is whole, and of that source: opening checks the header and that the size agrees with it."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(copy, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            return metadata.get("source") == identity
    except (OSError, SafetensorError):
        return False


def _identity(source: Path) -> str:
    """Size, time of change, and a digest of both ends."""
    status = source.stat()
    with source.open("rb") as file:
        digest = hashlib.sha256(file.read(_ENDS_BYTES))
        file.seek(max(0, status.st_size - _ENDS_BYTES))
        digest.update(file.read(_ENDS_BYTES))
    return f"{status.st_size} {status.st_mtime_ns} {digest.hexdigest()}"
