"""The weights of a checkpoint, by name and shape, read straight into the type and device in which they are used."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from embedder.checkpoint.convert import converted
from embedder.checkpoint.damage import damaged
from embedder.checkpoint.tensorfile import CODES, SLICE_MAX_ELEMENTS, TensorFile, load_state
from embedder.errors import ConfigurationError

log = logging.getLogger(__name__)


class Weights:
    """The encoder's tensors in a checkpoint folder. One thread at a time reads them.

    While it lives, at most 64 MiB of the file (in float32) are mapped, beside what was read.

    Attributes:
        names: published names without a leading `roberta.`, of the tensors that an encoder uses.
    """

    def __init__(self, file: TensorFile) -> None:
        self._file = file
        self._keys = {key.removeprefix("roberta."): key for key in file.shapes}
        self.names = frozenset(self._keys)

    @classmethod
    def open(cls, checkpoint: Path, *, cache: Path | None = None, slice_elements: int = SLICE_MAX_ELEMENTS) -> Weights:
        """Open `model.safetensors`, or the safetensors copy of `pytorch_model.bin`.

        The copy is made once (`embedder/checkpoint/convert.py`); where it cannot be written, a warning says why and the
        `.bin` itself is read.

        Args:
            checkpoint: a folder with one of these files.
            cache: where copies are kept; None is the user's cache.
            slice_elements: most elements that are mapped at once.

        Raises:
            ConfigurationError: the file is damaged, or holds more than tensors.
        """
        path = checkpoint / "model.safetensors"
        if not path.is_file():
            path = checkpoint / "pytorch_model.bin"
            try:
                path = converted(path, cache)
            except OSError as error:
                log.warning(
                    "no safetensors copy of %s can be kept (%s); reading it as it is",
                    path.name,
                    error.strerror or error,
                )
        return cls(TensorFile(path, slice_elements=slice_elements))

    def read(self, name: str, *shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """One weight, in memory of its own.

        Args:
            name: one of `names`.
            shape: what config.json implies.
            dtype: of the result, whatever the file has.
            device: of the result.

        Raises:
            ConfigurationError: the weight is missing, has another shape, or is not a floating-point number.
        """
        return self.read_rows([name], *shape, dtype=dtype, device=device)

    def read_rows(self, names: Sequence[str], *shape: int, dtype: torch.dtype, device: str = "cpu") -> Tensor:
        """Several weights of one shape [N, ...] below each other: [names x N, ...]. Else as `read`."""
        for name in names:
            self._require(name, shape)
        out = torch.empty(len(names) * shape[0], *shape[1:], dtype=dtype, device=device)
        first = 0
        for name in names:
            for start, part in self._file.slices(self._keys[name]):
                out[first + start : first + start + len(part)].copy_(part)
            first += shape[0]
        return out

    def mapped(self, name: str, *shape: int) -> Tensor:
        """One weight as the file has it, in the type of the file: its pages come into memory as they are touched.

        Else as `read`. The file must not be overwritten in place while the tensor lives; replacing it is harmless.
        """
        self._require(name, shape)
        return self._file.view(self._keys[name])

    def _require(self, name: str, shape: tuple[int, ...]) -> None:
        if name not in self._keys:
            raise ConfigurationError(f"MODEL_ID: the checkpoint lacks the weight {name}")
        _require_shape(name, self._file.shapes[self._keys[name]], shape)
        code = self._file.code(self._keys[name])
        if code not in CODES.values():  # a quantised weight: without its scale, which is elsewhere, it means nothing
            raise ConfigurationError(
                f"MODEL_ID: the weight {name} is stored as {code}, supported are {', '.join(CODES.values())}; "
                "use the checkpoint that was quantised (DTYPE=int8 quantises it at start)"
            )


def read_head(checkpoint: Path, name: str) -> tuple[Tensor, Tensor]:
    """Weight [N, H] and bias [N] of `sparse_linear` or `colbert_linear`, float32, on the CPU.

    Raises:
        ConfigurationError: the file is damaged, cannot be read, or is not that of a linear layer.
    """
    state = load_state(checkpoint / f"{name}.pt")
    for part in ("weight", "bias"):
        if part not in state:
            raise damaged(f"{name}.pt", f"without {part}")
        if not state[part].is_floating_point() or state[part].dtype.itemsize == 1:
            raise damaged(f"{name}.pt", "quantised, and its scale is elsewhere")
    return state["weight"].float(), state["bias"].float()


def check_files(checkpoint: Path) -> None:
    """Open the weights of the encoder and of both heads, so that a damaged file is known by its name.

    Raises:
        ConfigurationError: a file is damaged, cannot be read, or holds more than tensors.
    """
    path = checkpoint / "model.safetensors"
    TensorFile(path if path.is_file() else checkpoint / "pytorch_model.bin")
    for head in ("sparse_linear", "colbert_linear"):
        read_head(checkpoint, head)


def shaped(weight: Tensor, name: str, *shape: int) -> Tensor:
    """The weight, if it has the shape that config.json implies.

    Raises:
        ConfigurationError: the weight has another shape.
    """
    _require_shape(name, weight.shape, shape)
    return weight


def _require_shape(name: str, shape: tuple[int, ...], implied: tuple[int, ...]) -> None:
    if shape != implied:
        raise ConfigurationError(
            f"MODEL_ID: the weight {name} has shape {list(shape)}, config.json implies {list(implied)}"
        )
