"""Errors of pyarrow, and of the file that it reads, as errors of the input."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from service.bulk.line import InputError, WrongFileError

T = TypeVar("T")


@contextmanager
def as_wrong_file(file: str, kind: str) -> Iterator[None]:
    """Turn whatever pyarrow raises while it reads a file into an error of the file.

    Args:
        file: name of the file.
        kind: its format.

    Raises:
        WrongFileError: the file cannot be read, is of another format, or is damaged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # noqa: BLE001 - pyarrow has errors of its own, and raises many of Python's
        if isinstance(error, OSError) and error.errno is not None:
            raise WrongFileError(file, f"it cannot be read ({error.strerror})") from None
        raise WrongFileError(file, f"it is not valid {kind}, or damaged ({type(error).__name__})") from None


def guarded(values: Iterator[T], file: str, kind: str) -> Iterator[T]:
    """The values of an iterator that reads a file with pyarrow.

    Raises:
        WrongFileError: as in `as_wrong_file`.
    """
    while True:
        with as_wrong_file(file, kind):
            try:
                value = next(values)
            except StopIteration:
                return
        yield value
