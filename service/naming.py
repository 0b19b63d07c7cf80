"""Errors that name the field of a request, in their words and for programs to read (OpenAI's `param`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from embedder.errors import InvalidRequest, WorkerError


def at(field: str, kind: type[WorkerError], message: str) -> WorkerError:
    """An error about this field; the message names it too."""
    return kind(message, details={"errors": [{"field": field, "message": message}]})


@contextmanager
def named(field: str) -> Iterator[None]:
    """Put the field in front of what the model's side refuses in the block, where fields have no names."""
    try:
        yield
    except InvalidRequest as error:
        raise at(field, InvalidRequest, f"{field}: {error.message}") from None
