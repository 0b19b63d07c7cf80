"""The tensors of a weights file, mapped a slice at a time, so that the file never fills the memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from embedder.checkpoint import readable
from embedder.errors import ConfigurationError

SLICE = 2**24
"""Most elements of a slice, and most that are mapped at once: 64 MiB of float32."""
CODES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
"""The types in which a weight is a number of its own, as safetensors calls them."""


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

    def __init__(self, path: Path, *, slice_elements: int = SLICE) -> None:
        self.path = path
        self._limit = slice_elements
        with readable(path.name):
            self._version = _version(path)
            self._mappable = path.suffix == ".safetensors" or _is_archive(path)
            self._tensors = self._open()
            self.shapes = {
                name: tuple(one.shape if isinstance(one, Tensor) else one.get_shape())
                for name, one in self._tensors.items()
            }
        self._touched = 0

    def dtype(self, name: str) -> torch.dtype:
        """The type of a tensor in the file."""
        return self._slice(name, 0, 0).dtype

    def code(self, name: str) -> str:
        """The type of a tensor in the file, as safetensors calls it."""
        one = self._tensors[name]
        return CODES.get(one.dtype, str(one.dtype)) if isinstance(one, Tensor) else str(one.get_dtype())

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
        with readable(self.path.name):
            view: Tensor = self._open()[name][...]
            return view

    def _slice(self, name: str, start: int, end: int) -> Tensor:
        elements = (end - start) * torch.Size(self.shapes[name][1:]).numel()
        if self._mappable and self._touched + elements > self._limit:
            self._remap()
        self._touched += elements
        with readable(self.path.name):
            tensor = self._tensors[name]
            part: Tensor = tensor[start:end] if self.shapes[name] else tensor[...].reshape(1)
            return part

    def _remap(self) -> None:
        self._tensors = {}
        self._touched = 0
        with readable(self.path.name):
            self._tensors = self._open()
            version = _version(self.path)
        if version != self._version:
            raise ConfigurationError(f"MODEL_ID: {self.path.name} changed while it was read; start again")

    def _open(self) -> dict[str, Any]:
        """By name, what yields a view of the file when it is sliced."""
        if self.path.suffix == ".safetensors":
            from safetensors import safe_open

            with safe_open(self.path, framework="pt") as file:
                return {name: file.get_slice(name) for name in file.keys() if _is_used(name)}  # noqa: SIM118 - no mapping
        state = torch.load(self.path, map_location="cpu", weights_only=True, mmap=self._mappable)
        return {name: one for name, one in state.items() if _is_used(name) and one.dtype in CODES}


def _is_used(name: str) -> bool:
    return "pooler" not in name and "position_ids" not in name and "lm_head" not in name


def _is_archive(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _version(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns
