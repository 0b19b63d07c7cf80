"""Helpers that run `bge-m3-qdrant` in this process and return the values that a subcommand parses."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from typing import Any

from service.operations import Operations
from service.settings import Settings
from service.transports.cli.ask import AskOptions
from service.transports.cli.bulk import BulkOptions
from service.transports.cli.embed import EmbedOptions
from service.transports.cli.main import cli

PROGRAM = (sys.executable, "-m", "service")
"""The arguments that run the command in a fresh process, from the root of the project."""


@dataclass(frozen=True)
class Ended:
    """The exit status and output of a command."""

    status: int
    out: str
    err: str


def invoke(*arguments: str, build: Callable[[Settings], Operations] | None = None) -> Ended:
    """Run the command in this process with its environment; the tests' logging configuration is kept.

    Args:
        arguments: the subcommand and its own arguments.
        build: loads the model.
    """
    out, err = io.StringIO(), io.StringIO()
    status = 0
    with redirect_stdout(out), redirect_stderr(err), _logging_kept():
        try:
            cli.main(list(arguments), obj=build)
        except SystemExit as end:
            status = int(end.code or 0)
    return Ended(status, out.getvalue(), err.getvalue())


def ask_options(*arguments: str) -> AskOptions:
    """Return the options that `ask` parses from these arguments."""
    return AskOptions(**_values("ask", arguments))


def bulk_options(*arguments: str) -> BulkOptions:
    """Return the options that `bulk` parses from these arguments."""
    return BulkOptions(**_values("bulk", arguments))


def embed_options(*arguments: str) -> EmbedOptions:
    """Return the options that `embed` parses from these arguments."""
    return EmbedOptions(**_values("embed", arguments))


def _values(name: str, arguments: tuple[str, ...]) -> dict[str, Any]:
    with cli.make_context("bge-m3-qdrant", [name]) as context:
        command = cli.get_command(context, name)
        assert command is not None
        return command.make_context(name, list(arguments)).params


@contextmanager
def _logging_kept() -> Iterator[None]:
    root = logging.getLogger()
    loggers = [root, *map(logging.getLogger, ("embedder", "precision", "qdrant_sink", "service"))]
    levels, handlers = [logger.level for logger in loggers], root.handlers[:]
    root.handlers.clear()
    try:
        yield
    finally:
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
