"""A re-index from the command line: signals, progress and the summary."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import click

from embedder import ConfigurationError, Kind, WorkerError
from qdrant_sink import open_edge
from service.operations import (
    Operations,
    PreviousCollection,
    Reindex,
    ReindexProgress,
    ReindexReport,
    ReindexRequest,
)
from service.operations.store_access import check_contact
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.messages import say
from service.transports.cli.options import Failure
from service.transports.cli.progress_lines import ProgressLines
from service.transports.cli.signals import end_on_signals, interrupt_on_signals
from service.transports.cli.unfinished import in_json, print_points, waiting


@dataclass(frozen=True, slots=True, kw_only=True)
class ReindexOptions:
    """What to copy, and how.

    Attributes:
        collection: name of the collection, or of an alias, to copy.
        into: name of the new collection.
        config: collection config of the new collection; None for that of the settings.
        kinds: kinds of vectors of the new collection.
        embed: kinds that are embedded anew.
        vectors: names of the vectors to copy, by kind.
        alias: alias to move; None for `collection`, if that is an alias.
        text_key: payload key of the text; None for that of the collection.
        colbert_pooling: `none` or `mean`.
        allow_rejected: whether the alias is moved even if points could not be copied.
        allow_empty: whether the alias is moved to a collection without points from one that has some.
        prune: whether points are deleted from the new collection that the old one has not.
        again: whether points are copied although the alias leads to the new collection.
        from_path: directory of the embedded store of the old collection; None for the store of the settings.
        workers: number of threads that copy.
        back: move the alias back, and nothing else.
        drop_old: delete the old collection, and nothing else.
        as_json: whether the summary is printed as JSON.
    """

    collection: str
    into: str
    config: str | None = None
    kinds: Sequence[Kind] = ()
    embed: Sequence[Kind] = ()
    vectors: Mapping[Kind, str] = field(default_factory=dict)
    alias: str | None = None
    text_key: str | None = None
    colbert_pooling: str = "none"
    allow_rejected: bool = False
    allow_empty: bool = False
    prune: bool = False
    again: bool = False
    from_path: Path | None = None
    workers: int = 4
    back: bool = False
    drop_old: bool = False
    as_json: bool = False

    def request(self) -> ReindexRequest:
        """The request of the operation."""
        return ReindexRequest(
            self.collection,
            self.into,
            kinds=self.kinds,
            embed=self.embed,
            vectors=self.vectors,
            alias=self.alias,
            text_key=self.text_key,
            pool_colbert=self.colbert_pooling == "mean",
            allow_rejected=self.allow_rejected,
            allow_empty=self.allow_empty,
            prune=self.prune,
            again=self.again,
            workers=self.workers,
        )


def run(options: ReindexOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Run a re-index; returns the exit status.

    Args:
        options: what to copy.
        build: loads the model, which only `embed` needs; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings are invalid, or the directory of `from_path` cannot be used.
        Failure: the old collection cannot be reached again or deleted.
    """
    variables = dict(os.environ)
    if options.config is not None:
        variables["QDRANT_COLLECTION_CONFIG"] = options.config
    with ExitStack() as stack:
        end_on_signals()
        try:
            settings = Settings.from_environment(variables)
        except ConfigurationError as error:
            if options.config is None:
                raise
            raise ConfigurationError(str(error).replace("QDRANT_COLLECTION_CONFIG", "--config")) from None
        check_contact(settings)
        if options.embed:
            core = (build or Operations.build)(settings)
            stack.callback(core.close)
            reindex = core.reindex
        else:
            reindex = Reindex.without_model(settings)
            stack.callback(reindex.close)
        if options.from_path is not None:
            reindex = reindex.reading(open_edge(options.from_path))
            stack.callback(reindex.close)
        if options.back or options.drop_old:
            return _previous(reindex, options)
        return copy(reindex, options)


def copy(reindex: Reindex, options: ReindexOptions) -> int:
    """Copy a collection, and print the summary; returns the exit status."""
    stopping = Event()

    def interrupt() -> None:
        stopping.set()
        say("stopping after the points that are being written; a second signal stops immediately")

    interrupt_on_signals(interrupt)
    started, lines = time.monotonic(), ProgressLines(say)

    def show(progress: ReindexProgress) -> None:
        lines.show(progress.stage, partial(progress_line, progress))

    try:
        report = asyncio.run(reindex(options.request(), progress=show, stopping=stopping, say=say))
    except WorkerError as error:
        report = ReindexReport(options.collection, options.into, failure=ARGUMENTS["reindex"].error(error))
    summary = _summary(report, time.monotonic() - started)
    if options.as_json:
        click.echo(json.dumps({**summary, "unfinished": in_json(report.unfinished)}, ensure_ascii=False))
    else:
        print_points(report.unfinished, say)
        for loss in report.losses:
            say(loss)
        for line in _advice(report, options):
            say(line)
        click.echo(described(summary))
    return _status(report)


def described(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    name = summary["collection"]
    shown = name if name.isprintable() else repr(name)
    if "error" in summary and not (summary["copied"] or summary["already"]):
        return f"{shown}: nothing was copied: {summary['error']}"
    if summary["finished"]:
        return f"{shown}: the alias {summary['alias']!r} leads here already; nothing was copied"
    text = f"{shown}: {summary['copied']} points copied ({summary['already']} were there before)"
    counts = {
        "rejected": "rejected",
        "without_text": "without a text",
        "pruned": "deleted, because they were deleted before",
        "truncated": "embedded from a text that was cut",
    }
    text += "".join(f"; {summary[key]} {words}" for key, words in counts.items() if summary[key])
    if summary["points"] is not None:
        text += f"; {summary['stored']} points of {summary['points']}"
    text += f", in {summary['seconds']} s"
    text += f"; the alias {summary['alias']!r} moved" if summary["alias"] else "; no alias moved"
    return f"{text}; {summary['error']}" if "error" in summary else text


def progress_line(progress: ReindexProgress, seconds: float) -> str:
    """The progress in words.

    Args:
        progress: the progress.
        seconds: time since the first point.
    """
    if progress.stage == "index":
        return f"copied: {progress.copied}; building the index"
    if progress.stage == "check":
        return f"checked: {progress.met} of {progress.points}, copied: {progress.copied}"
    rate = progress.copied / seconds
    return f"points: {progress.met} of {progress.points}, copied: {progress.copied}, per second: {rate:.0f}"


def _previous(reindex: Reindex, options: ReindexOptions) -> int:
    """Move the alias back, or delete the old collection."""
    names = options.collection, options.into
    try:
        if options.back:
            state = asyncio.run(reindex.previous.back(*names, str(options.alias), allow_empty=options.allow_empty))
            text = f"the alias {options.alias!r} leads to {state.source!r} again, which has {state.points} points"
        else:
            state = asyncio.run(reindex.previous.drop(*names))
            text = f"{state.source!r} is deleted with {state.points} points"
    except WorkerError as error:
        raise Failure(ARGUMENTS["reindex"].error(error).message) from None
    if options.as_json:
        click.echo(json.dumps(_previous_summary(state, options), ensure_ascii=False))
    else:
        click.echo(f"{text}; {state.collection!r} has {state.stored}")
    return 0


def _previous_summary(state: PreviousCollection, options: ReindexOptions) -> dict[str, Any]:
    return {
        "from": state.source,
        "points": state.points,
        "collection": state.collection,
        "stored": state.stored,
        "alias": options.alias if options.back else None,
        "deleted": options.drop_old,
    }


def _summary(report: ReindexReport, seconds: float) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "from": report.source,
        "collection": report.collection,
        "points": report.points,
        "stored": report.stored,
        "copied": report.copied,
        "already": report.already,
        "rejected": report.rejected,
        "without_text": report.without_text,
        "pruned": report.pruned,
        "truncated": report.truncated,
        "late": report.late,
        "finished": report.is_finished,
        "alias": report.alias,
        "previous": report.previous,
        "losses": list(report.losses),
        "seconds": round(seconds, 1),
    }
    return summary if report.failure is None else {**summary, "error": report.failure.message}


def _advice(report: ReindexReport, options: ReindexOptions) -> list[str]:
    """What is left to do, in commands."""
    program = f"bge-m3-qdrant reindex {shlex.quote(report.source)} {shlex.quote(report.collection)}"
    lines: list[str] = []
    if report.failure is not None or report.is_finished:
        return lines
    if report.difference > 0:
        lines.append(
            f"{report.difference} points of {report.collection!r} are not in {report.source!r}: they were deleted "
            "there during the copy, or another load has stored them here; run the command again with --prune to delete "
            "them here"
        )
    if report.difference < 0:
        lines.append(
            f"{-report.difference} points were added to {report.source!r} during the last pass; stop what writes "
            "there, and run the command again"
        )
    lines.extend(waiting(load) for load in report.waits_for)
    if report.late:
        lines.append(
            f"{report.late} points were added to {report.source!r} while the alias moved; copy them with --again"
        )
    if report.alias_kept:
        lines.append("with --allow-empty the alias moves nevertheless")
    if report.rejected and report.stored and not options.allow_rejected:
        lines.append("with --allow-rejected the alias moves without the points that were rejected")
    if report.alias is not None and report.previous == report.source:
        alias = shlex.quote(report.alias)
        lines.append(f"the old collection stays; the way back is: {program} --alias {alias} --back")
        lines.append(f"to delete it: {program} --drop-old")
    return lines


def _status(report: ReindexReport) -> int:
    if report.failure is not None:
        return 2
    return 0 if report.is_complete else 1
