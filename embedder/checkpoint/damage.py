"""Errors of reading a checkpoint's files: a damaged file, a file that cannot be opened, and everything else.

A reader names the exceptions by which its library reports damage. Only those become "damaged, fetch it again": a
worker that lacks memory, file handles or permissions, a device that fails and a defect are not cured by another
download, so their errors keep their type or say what they are.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from embedder.errors import ConfigurationError

JSON_MAX_BYTES = 10_000_000
"""Maximum size of config.json and tokenizer_config.json in bytes; those of BGE-M3 have some 1000."""
HEADER_MAX_BYTES = 10_000_000
"""Maximum size of the header of a safetensors file in bytes; that of BGE-M3 has 45 000."""
TOKENIZER_MAX_BYTES = 200_000_000
"""Maximum size of tokenizer.json in bytes; that of BGE-M3 has 17 MB."""


@contextmanager
def readable(
    name: str, *damage: type[Exception], is_damage: Callable[[Exception], bool] = lambda _error: False
) -> Iterator[None]:
    """Translate what a reader inside raises about one file of the checkpoint.

    Args:
        name: the file as the message calls it, without its folder.
        damage: exceptions by which the reader reports a damaged file.
        is_damage: whether another exception reports a damaged file, for a library without a type for it.

    Raises:
        ConfigurationError: the file is damaged, or the operating system refuses it (then with its reason, such as
            "Permission denied" or "Too many open files"). Everything else, `MemoryError` included, passes.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, damage) or is_damage(error):
            raise damaged(name, type(error).__name__) from error
        if isinstance(error, OSError):
            raise ConfigurationError(f"MODEL_ID: {name} cannot be read: {reason_of(error)}") from error
        raise


def damaged(name: str, reason: str) -> ConfigurationError:
    """The error of a damaged file: its name without the folder, and what is wrong in a few words."""
    return ConfigurationError(f"MODEL_ID: {name} is damaged or not in the published format ({reason}); fetch it again")


def reason_of(error: OSError) -> str:
    """The operating system's reason without the path: `Permission denied (EACCES)`."""
    if error.errno is None:
        return type(error).__name__
    return f"{os.strerror(error.errno)} ({errno.errorcode.get(error.errno, error.errno)})"


def read_bytes(path: Path, max_bytes: int) -> bytes:
    """The content of a file, whose size is checked before it is read.

    Raises:
        ConfigurationError: the file is larger than `max_bytes`, or cannot be read.
    """
    with readable(path.name):
        size = path.stat().st_size
        if size <= max_bytes:
            return path.read_bytes()
    raise damaged(path.name, f"{size // 10**6} MB, limit {max_bytes // 10**6} MB")


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        ConfigurationError: the file is damaged, too large, holds something else than an object, or cannot be read.
    """
    raw = read_bytes(path, JSON_MAX_BYTES)
    with readable(path.name, ValueError, RecursionError):  # ValueError: of JSON and of UTF-8
        content = json.loads(raw.decode())
    if not isinstance(content, dict):
        raise damaged(path.name, "not a JSON object")
    return content
