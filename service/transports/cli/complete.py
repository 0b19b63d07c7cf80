"""A completion from the command line: signals, progress and the summary."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from threading import Event
from typing import Any

import click

from embedder import Kind, WorkerError
from qdrant_sink.completing import CompletionReport
from service.operations import CompletionProgress, CompletionRequest, Operations
from service.operations.store_access import check_contact
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.messages import say
from service.transports.cli.progress_lines import ProgressLines
from service.transports.cli.signals import end_on_signals, interrupt_on_signals
from service.transports.cli.unfinished import in_json, print_points, waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class CompleteOptions:
    """What to complete.

    Attributes:
        collection: name of the collection or of an alias.
        kinds: kinds of vectors that every point is to have.
        into: new collection to copy into; None to add the vectors in place where that is possible.
        alias: alias to move to the copy; None for the collection, if that is an alias.
        text_key: payload key of the text; None for that of the collection.
        colbert_pooling: `none` or `mean`.
        as_json: whether the summary is printed as JSON.
    """

    collection: str
    kinds: Sequence[Kind]
    into: str | None = None
    alias: str | None = None
    text_key: str | None = None
    colbert_pooling: str = "none"
    as_json: bool = False

    def request(self) -> CompletionRequest:
        """The request of the operation."""
        return CompletionRequest(
            self.kinds,
            self.collection,
            into=self.into,
            alias=self.alias,
            text_key=self.text_key,
            pool_colbert=self.colbert_pooling == "mean",
        )


def run(options: CompleteOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Run a completion; returns the exit status.

    Args:
        options: what to complete.
        build: loads the model; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings are invalid.
    """
    with ExitStack() as stack:
        end_on_signals()
        settings = Settings.from_environment()
        check_contact(settings)
        core = (build or Operations.build)(settings)
        stack.callback(core.close)
        return complete(core, options)


def complete(core: Operations, options: CompleteOptions) -> int:
    """Run a completion over loaded operations, and print its summary; returns the exit status."""
    stopping = Event()

    def interrupt() -> None:
        stopping.set()
        say("stopping after the texts that are being embedded; a second signal stops immediately")

    interrupt_on_signals(interrupt)
    started, lines = time.monotonic(), ProgressLines(say)

    def show(progress: CompletionProgress) -> None:
        lines.show("complete", partial(progress_line, progress))

    try:
        report = asyncio.run(core.completion(options.request(), progress=show, stopping=stopping, say=say))
    except WorkerError as error:
        report = CompletionReport(options.collection, failure=ARGUMENTS["complete"].error(error))
    if options.alias is not None and report.copied is None and report.failure is None:
        say("the vectors were added in place, so --alias did not apply")
    summary = _summary(report, time.monotonic() - started)
    if options.as_json:
        click.echo(json.dumps({**summary, "unfinished": in_json(report.unfinished)}, ensure_ascii=False))
    else:
        print_points(report.unfinished, say)
        for load in report.waits_for:
            say(waiting(load))
        click.echo(described(summary))
    return _status(report)


def progress_line(progress: CompletionProgress, seconds: float) -> str:
    """The progress in words.

    Args:
        progress: the progress.
        seconds: time since the first point.
    """
    copied = "" if progress.copied is None else f"copied: {progress.copied}, "
    return f"{copied}points: {progress.done} of {progress.points}, per second: {progress.done / seconds:.0f}"


def described(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    name = summary["collection"]
    name = name if name.isprintable() else repr(name)
    if "error" in summary and not (summary["completed"] or summary["already"] or summary.get("copied")):
        return f"{name}: nothing was completed: {summary['error']}"
    text = (
        f"{name}: {summary['completed']} of {summary['points']} points completed"
        f" ({summary['already']} were complete before), in {summary['seconds']} s"
    )
    counts = {
        "without_text": "without a text",
        "without_weights": "with a text without lexical weights",
        "rejected": "rejected",
        "vanished": "deleted meanwhile",
        "pending": "written meanwhile and not completed",
        "truncated": "completed from a text that was cut",
        "uncopied": "not copied",
    }
    text += "".join(f"; {summary[key]} {words}" for key, words in counts.items() if summary.get(key))
    if "copied" in summary:
        text += f"; {summary['copied']} copied"
        text += f"; the alias {summary['alias']!r} moved" if summary["alias"] else "; the alias did not move"
    return f"{text}; {summary['error']}" if "error" in summary else text


def _summary(report: CompletionReport, seconds: float) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "collection": report.collection,
        "points": report.points,
        "completed": report.completed,
        "already": report.already,
        "without_text": report.without_text,
        "without_weights": report.without_weights,
        "rejected": report.rejected,
        "vanished": report.vanished,
        "pending": report.pending,
        "truncated": report.truncated,
        "seconds": round(seconds, 1),
    }
    if report.copied is not None:
        summary |= {"copied": report.copied, "uncopied": report.uncopied, "alias": report.alias}
    return summary if report.failure is None else {**summary, "error": report.failure.message}


def _status(report: CompletionReport) -> int:
    if report.failure is not None:
        return 2
    return 0 if report.is_complete else 1
