"""The pickle in a file that `torch.save` wrote, looked at before torch runs it.

`torch.load` with `weights_only` runs no code of the file, but calls what its pickle names, such as `bytearray`: a file
of a kilobyte had 3 GB of memory taken. A state dict needs few names, is small, and has no number beyond the size of
its file.
"""

from __future__ import annotations

import pickletools
import re
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Final

from embedder.checkpoint.damage import damaged

PICKLE_MAX_BYTES: Final = 1_000_000
"""Maximum pickle of a state dict. That of BGE-M3 has 0.06 MB; the objects of a pickle take up to 50 times its bytes."""

_NAMES: Final = re.compile(
    r"collections OrderedDict|torch\._utils _rebuild_(tensor(_v[23])?|parameter)"
    r"|torch(\.storage)? \w+Storage|torch (Size|[a-z]+\d\w*)"
)
"""What the pickle of a state dict calls."""

_LEGACY_PICKLES: Final = 5
"""Pickles at the beginning of a file without an archive: a mark, a version, the system, the tensors, their keys."""

_LEGACY_HEAD_PICKLES: Final = 3
"""Those before the tensors, one of which is a number that torch compares."""


def check_pickle(path: Path, *, is_archive: bool) -> None:
    """Check the pickle of a file.

    Args:
        path: the file.
        is_archive: whether it is a zip archive, as PyTorch writes since 1.6.

    Raises:
        ConfigurationError: the pickle is too large, calls what a state dict does not need, or has a number beyond the
            size of the file.
        ValueError: it is not a pickle.
    """
    if is_archive:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                # torch finds its pickle in any case, and by the name that a path in Unicode replaces.
                if any(name.lower().endswith(".pkl") for name in (member.filename, member.orig_filename)):
                    with archive.open(member) as file:
                        _check(path, BytesIO(_limited(path, file.read(PICKLE_MAX_BYTES + 1))))
        return
    with path.open("rb") as file:
        head = BytesIO(file.read(PICKLE_MAX_BYTES))
    for number in range(_LEGACY_PICKLES):
        _check(path, head, numbers=number >= _LEGACY_HEAD_PICKLES)


def _limited(path: Path, content: bytes) -> bytes:
    if len(content) > PICKLE_MAX_BYTES:
        raise damaged(path.name, f"a pickle of more than {PICKLE_MAX_BYTES // 10**6} MB")
    return content


def _check(path: Path, pickle: BytesIO, *, numbers: bool = True) -> None:
    """Check one pickle from its first operation to its last."""
    most = path.stat().st_size
    for operation, argument, _ in pickletools.genops(pickle):
        if operation.name == "STACK_GLOBAL" or (operation.name == "GLOBAL" and not _NAMES.fullmatch(str(argument))):
            raise damaged(path.name, "not only tensors by name")
        if numbers and isinstance(argument, int) and argument > most and operation.name != "PROTO":
            raise damaged(path.name, "a tensor is larger than its content")
