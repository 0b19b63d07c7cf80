"""The tensors of a weights file, mapped a slice at a time, so that the file never fills the memory."""

from __future__ import annotations

import errno
import pickle
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedder.checkpoint.damage import HEADER_MAX_BYTES, damaged, readable
from embedder.checkpoint.state_pickle import check_pickle
from embedder.errors import ConfigurationError

ARCHIVE_GROWTH_MAX_BYTES = 64_000_000
"""Maximum bytes by which the files in an archive may exceed the archive. `torch.save` does not compress them, so that a
published archive is larger than its files; a compressed one of a few kilobytes can hold gigabytes."""
SLICE_MAX_ELEMENTS = 2**24
"""Most elements of a slice, and most that are mapped at once: 64 MiB of float32."""
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The types in which a weight is a number of its own, as safetensors calls them."""

_PICKLE_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    OverflowError,
    AssertionError,
    struct.error,
)
"""Exceptions of `torch.load` for a file that was cut off or altered, beside RuntimeError (see `_reports_damage`)."""
_NOT_DAMAGE = ("allocate", "out of memory", "unable to mmap", "unable to open", "CUDA", "HIP")
"""Parts of the messages of RuntimeErrors that are not about the content of a file."""


class TensorFile:
    """A safetensors file, or what `torch.save` wrote. One thread at a time reads it.

    Pages of a mapping count as memory of the process from the first touch until the mapping goes. So the file
    is mapped anew whenever `slice_elements` have been touched. That takes a millisecond (safetensors) or 60
    (`.bin`) for the 390 tensors of BGE-M3: mapping it for each tensor would cost 0.4 s, or 20 s.

    A `.bin` of before PyTorch 1.6 is no archive and cannot be mapped: it is in memory while this object lives.

    Args:
        path: the file; its suffix says the format.
        slice_elements: most elements of a slice; a single row may be more.

    Attributes:
        shapes: shape of each tensor of the encoder, by its name in the file; of a `.bin`, those of `CODES` only.

    Raises:
        ConfigurationError: the file is damaged, or holds more than tensors: no code in it is run.
    """

    def __init__(self, path: Path, *, slice_elements: int = SLICE_MAX_ELEMENTS) -> None:
        self.path = path
        self._limit = slice_elements
        with readable(path.name):
            self._version = _version(path)
            self._mappable = _is_archive(path) or path.suffix == ".safetensors"
        self._tensors = self._open()
        self.shapes = {
            name: tuple(tensor.shape if isinstance(tensor, Tensor) else tensor.get_shape())
            for name, tensor in self._tensors.items()
        }
        self._touched = 0

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor in the file."""
        return self._slice(name, 0, 0).dtype

    def code(self, name: str) -> str:
        """The type of a tensor in the file, as safetensors calls it."""
        tensor = self._tensors[name]
        return CODES.get(tensor.dtype, str(tensor.dtype)) if isinstance(tensor, Tensor) else str(tensor.get_dtype())

    def slices(self, name: str) -> Iterator[tuple[int, Tensor]]:
        """The rows of a tensor as (number of the first, [n, ...] in the type of the file), in order.

        A scalar is a row. A slice is a view of the mapping: copy it, and keep it no longer than one step.

        Raises:
            ConfigurationError: the file changed since it was opened.
        """
        rows, *width = self.shapes[name] or (1,)
        step = max(1, self._limit // max(1, torch.Size(width).numel()))
        for start in range(0, rows, step):
            yield start, self._slice(name, start, min(start + step, rows))

    def view(self, name: str) -> Tensor:
        """A whole tensor, in the type of the file, on a mapping of its own that lives as long as the tensor."""
        return _part_of(self.path, self._open()[name], ...)

    def _slice(self, name: str, start: int, end: int) -> Tensor:
        elements = (end - start) * torch.Size(self.shapes[name][1:]).numel()
        if self._mappable and self._touched + elements > self._limit:
            self._remap()
        self._touched += elements
        tensor = self._tensors[name]
        if not self.shapes[name]:
            return _part_of(self.path, tensor, ...).reshape(1)
        return _part_of(self.path, tensor, slice(start, end))

    def _remap(self) -> None:
        self._tensors = {}
        self._touched = 0
        self._tensors = self._open()
        with readable(self.path.name):
            version = _version(self.path)
        if version != self._version:
            raise ConfigurationError(f"MODEL_ID: {self.path.name} changed while it was read; start again")

    def _open(self) -> dict[str, Any]:
        """Tensors by name; slicing one gives a view of the file."""
        if self.path.suffix == ".safetensors":
            from safetensors import SafetensorError, safe_open

            _check_header(self.path)
            with readable(self.path.name, SafetensorError), safe_open(self.path, framework="pt") as file:
                return {name: file.get_slice(name) for name in file.keys() if _is_used(name)}  # noqa: SIM118 - no mapping
        state = load_state(self.path, mapped=self._mappable)
        return {name: tensor for name, tensor in state.items() if _is_used(name) and tensor.dtype in CODES}


def load_state(path: Path, *, mapped: bool = False) -> dict[str, Tensor]:
    """The state dict that `torch.save` wrote, on the CPU. No code in the file is run.

    Args:
        path: the file.
        mapped: whether the tensors are views of the file, which must then be an archive.

    Raises:
        ConfigurationError: the file is damaged, holds something else than tensors by name, or cannot be read.
    """
    _check_archive(path)
    with readable(path.name, *_PICKLE_DAMAGE, zipfile.BadZipFile, is_damage=_reports_damage):
        check_pickle(path, is_archive=_is_archive(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    if not isinstance(state, dict):
        raise damaged(path.name, "not a state dict")
    for name, tensor in state.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise damaged(path.name, "not only tensors by name")
        if tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():  # a few numbers, repeated
            raise damaged(path.name, "a tensor is larger than its content")
    return state


def _check_archive(path: Path) -> None:
    """Check the sizes that an archive declares, before anything in it is read.

    Raises:
        ConfigurationError: the files in it are much larger than the archive, or it cannot be read.
    """
    with readable(path.name, zipfile.BadZipFile, NotImplementedError, ValueError):
        if not _is_archive(path):
            return
        with zipfile.ZipFile(path) as archive:
            declared = sum(member.file_size for member in archive.infolist())
        limit = path.stat().st_size + ARCHIVE_GROWTH_MAX_BYTES
    if declared > limit:
        raise damaged(path.name, f"compressed from {declared // 10**6} MB, limit {limit // 10**6} MB")


def _check_header(path: Path) -> None:
    """Check the size that a safetensors file declares for its header, before the header is read.

    Raises:
        ConfigurationError: it is too large, or the file cannot be read.
    """
    with readable(path.name), path.open("rb") as file:
        declared = int.from_bytes(file.read(8), "little")
    if declared > HEADER_MAX_BYTES:
        raise damaged(path.name, f"a header of {declared // 10**6} MB, limit {HEADER_MAX_BYTES // 10**6} MB")


def _reports_damage(error: Exception) -> bool:
    """Whether another exception of `torch.load` is about the content of the file.

    torch has no type for it: a RuntimeError itself, not of a subclass, says so in two dozen wordings, and in a few
    others that memory or a mapping was refused.
    """
    if isinstance(error, OSError):
        return error.errno == errno.EINVAL  # sought beyond the ends of a file that was cut off
    return type(error) is RuntimeError and not any(phrase in str(error) for phrase in _NOT_DAMAGE)


def _part_of(path: Path, tensor: Any, rows: Any) -> Tensor:
    """A view of a tensor of the file, which may have been cut off since it was opened."""
    from safetensors import SafetensorError

    with readable(path.name, SafetensorError):
        part: Tensor = tensor[rows]
        return part


def _is_used(name: str) -> bool:
    return "pooler" not in name and "position_ids" not in name and "lm_head" not in name


def _is_archive(path: Path) -> bool:
    """Whether the file is a zip archive. Opened here first: safetensors calls any refusal "no such file"."""
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _version(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns
