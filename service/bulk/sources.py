"""The files of a load: paths, patterns, folders, URLs, the standard input."""

from __future__ import annotations

import glob
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from service.bulk.formats import suffix_format
from service.bulk.line import STANDARD_INPUT, InputError, WrongFileError
from service.bulk.remote import RemoteFolder
from service.bulk.stream_head import BUFFER_BYTES

_SUFFIXES_NAMED_MAX = 10
"""Maximum suffixes of files that are left out in a message."""


@dataclass(frozen=True, slots=True)
class Source:
    """A file that is not open yet.

    Attributes:
        name: its name in messages and payloads.
        open: opens it for bytes.
        path: its path; None if it is not on this machine, or a pipe.
        size: its size in bytes; None if it is unknown.
    """

    name: str
    open: Callable[[], BinaryIO]
    path: Path | None = None
    size: int | None = None


def sources_of(arguments: Iterable[str], *, any_format: bool, say: Callable[[str], None]) -> list[Source]:
    """The files that are meant, those of a pattern or a folder in the order of their names.

    Args:
        arguments: paths, patterns, folders and URLs of them; `-` or none is the standard input.
        any_format: take all files of a folder, also those whose name says no format.
        say: prints a message.

    Raises:
        InputError: a path does not exist, or a pattern or folder has no files.
    """
    return [
        source for argument in list(arguments) or [STANDARD_INPUT] for source in _sources(argument, say, any_format)
    ]


def _sources(argument: str, say: Callable[[str], None], any_format: bool) -> Iterable[Source]:  # noqa: FBT001
    if argument == STANDARD_INPUT:
        return [Source(STANDARD_INPUT, _standard_input)]
    if "://" in argument:
        return _of_url(argument, say, any_format=any_format)
    path = Path(argument)
    if path.is_dir():
        return _of_folder(path, say, any_format=any_format)
    if path.exists():
        return [_local(path, os.path.normpath(argument))]
    if not glob.has_magic(argument):
        raise InputError(f"{argument}: there is no such file")
    paths = sorted(found for found in glob.iglob(argument, recursive=True) if not Path(found).is_dir())  # noqa: PTH207
    if not paths:
        raise InputError(f"{argument}: no file has a name of this pattern")
    return [_local(Path(found), os.path.normpath(found)) for found in paths]


def _of_url(url: str, say: Callable[[str], None], *, any_format: bool) -> list[Source]:
    folder = RemoteFolder(url)
    names, is_folder = folder.names()
    left_out: Counter[str] = Counter()
    if is_folder and not any_format:
        names = [name for name in names if _has_format(name.rpartition("/")[2], left_out)]
    say_left_out(url, left_out, say)
    if not names:
        raise InputError(f"{url}: the folder has no file of a known format; name one with --format")
    return [Source(name, partial(folder.open, name)) for name in names]


def _of_folder(folder: Path, say: Callable[[str], None], *, any_format: bool) -> list[Source]:
    left_out: Counter[str] = Counter()
    sources = [
        _local(path, str(path.relative_to(folder)))
        for path in _files(folder)
        if any_format or _has_format(path.name, left_out)
    ]
    say_left_out(str(folder), left_out, say)
    if not sources:
        raise InputError(f"{folder}: the folder has no file of a known format; name one with --format")
    return sources


def _files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            path = Path(parent) / name
            if not name.startswith(".") and path.is_file():
                yield path


def _has_format(name: str, left_out: Counter[str]) -> bool:
    if suffix_format(name) is not None:
        return True
    left_out[Path(name).suffix or "without a suffix"] += 1
    return False


def say_left_out(folder: str, left_out: Counter[str], say: Callable[[str], None]) -> None:
    """Say which files of a folder are not read."""
    if left_out:
        named = ", ".join(f"{suffix}: {count}" for suffix, count in sorted(left_out.items())[:_SUFFIXES_NAMED_MAX])
        say(f"{folder}: files of unknown formats are left out ({named})")


def _local(path: Path, name: str) -> Source:
    def opened() -> BinaryIO:
        try:
            return path.open("rb", buffering=BUFFER_BYTES)
        except OSError as error:
            raise WrongFileError(name, f"it cannot be read ({error.strerror})") from None

    return Source(name, opened, path, path.stat().st_size if path.is_file() else None)


def _standard_input() -> BinaryIO:
    # Its own file object: Python aborts at exit if a thread waits inside sys.stdin.
    return os.fdopen(os.dup(sys.stdin.fileno()), "rb", buffering=BUFFER_BYTES)


def is_checked_early(source: Source) -> bool:
    """Whether a file can be looked at before it is loaded: what is read of a pipe is gone."""
    return source.name != STANDARD_INPUT
