"""A load from the command line: files, signals, the file of rejected lines, and the summary."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import click

from embedder import InvalidRequest
from service.bulk.load import INTERRUPTED, BulkLoad, LoadOptions
from service.bulk.raw_lines import LongLine, raw_lines
from service.bulk.report import LoadReport
from service.operations import IngestRequest, Operations
from service.settings import Settings
from service.shutdown import end_process
from service.transports.cli.options import Failure
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions:
    """What to load, and where.

    Attributes:
        files: JSON Lines; none, or `-`, is the standard input.
        collection: by name.
        alias: moved to the collection when it is complete and indexed.
        allow_rejected: move the alias even if lines were rejected.
        insert_only: leave points that exist unchanged.
        chunk_tokens: maximum tokens of a chunk; 0 for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one.
        colbert_pooling: `none` or `mean`.
        vectors: kinds of vectors to store; empty for those of the collection.
        text_key: where the payload keeps the text; None for that of the collection.
        defer_index: build the graph at the end even if the collection is in use.
        rejects: a file for every rejected line.
        as_json: whether the summary is printed as JSON.
    """

    files: Sequence[Path] = ()
    collection: str
    alias: str | None = None
    allow_rejected: bool = False
    insert_only: bool = False
    chunk_tokens: int = 0
    chunk_overlap: int | None = None
    colbert_pooling: str = "none"
    vectors: Sequence[str] = ()
    text_key: str | None = None
    defer_index: bool = False
    rejects: Path | None = None
    as_json: bool = False


def load_options(options: BulkOptions, limits: Limits) -> LoadOptions:
    """The load that the options describe, checked as the worker checks a request.

    Args:
        options: of the command line.
        limits: of the model.

    Raises:
        InvalidRequest: an option is out of its limits.
    """
    return LoadOptions(
        request=_request(options, limits),
        collection=options.collection,
        alias=options.alias,
        allow_rejected=options.allow_rejected,
        defer_index=options.defer_index,
    )


def _request(options: BulkOptions, limits: Limits) -> IngestRequest:
    qdrant: dict[str, Any] = {
        "collection": options.collection,
        "mode": "insertOnly" if options.insert_only else "upsert",
        "textKey": options.text_key,
        "colbertPooling": options.colbert_pooling,
    }
    if options.alias is not None:
        qdrant["idScope"] = options.alias
    if options.chunk_tokens:
        qdrant["chunk"] = {"maxTokens": options.chunk_tokens}
        if options.chunk_overlap is not None:
            qdrant["chunk"]["overlap"] = options.chunk_overlap
    raw = {"texts": [""], "isPassage": True, "vectors": list(options.vectors) or None, "qdrant": qdrant}
    match parse(raw, limits):
        case EmbedRequest(qdrant=QdrantTarget() as target) as request:
            return request.ingest_value(target)
    raise TypeError("an embed request with a qdrant block was expected")


def _raw_lines(files: Sequence[Path]) -> Iterator[bytes | LongLine]:
    for path in files or [Path("-")]:
        if str(path) == "-":
            # Its own file object: Python aborts at exit if a thread waits inside sys.stdin.
            with os.fdopen(os.dup(sys.stdin.fileno()), "rb") as file:
                yield from raw_lines(file)
        else:
            with path.open("rb") as file:
                yield from raw_lines(file)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _close(rejects: TextIO) -> None:
    with suppress(OSError):  # each line was flushed when it was written, and failed then
        rejects.close()


def _interrupted_early(_number: int, _frame: object) -> None:
    _say(INTERRUPTED)
    end_process(2)


def _print(report: LoadReport, options: BulkOptions) -> None:
    summary = report.summary(options.collection)
    click.echo(json.dumps(summary) if options.as_json else described(summary))


def described(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    name = summary["collection"]
    text = (
        f"{name if name.isprintable() else repr(name)}: {summary['stored']} of {summary['submitted']} points stored"
        f" ({summary['skipped']} were there before), {summary['rejected']} rejected, in {summary['seconds']} s"
    )
    if "alias" in summary:
        text += "; the alias moved" if summary["alias"] else "; the alias did not move"
    return f"{text}; {summary['error']}" if "error" in summary else text


def run(options: BulkOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Run a load; returns the exit status.

    Args:
        options: what to load.
        build: loads the model, and is called once the command line is known to be sound; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings are invalid.
        Failure: the file of rejected lines cannot be written.
    """
    with ExitStack() as stack:
        rejects = None
        if options.rejects is not None:
            try:
                rejects = options.rejects.open("w", encoding="utf-8")
            except OSError as error:
                raise Failure(f"--rejects cannot be written ({error.strerror}): {options.rejects}") from None
            stack.callback(_close, rejects)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupted_early)
        core = (build or Operations.build)(Settings.from_environment())
        stack.callback(core.close)
        return load(core, options, rejects)


def load(core: Operations, options: BulkOptions, rejects: TextIO | None) -> int:
    """Run a load over loaded operations, and print its summary; returns the exit status."""
    limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
    try:
        checked = load_options(options, limits)
    except InvalidRequest as error:
        report = LoadReport(failure=error.message, alias=None if options.alias is None else False)
        _print(report, options)
        return report.status
    bulk = BulkLoad(core, checked, rejects, _say)

    def stop(number: int, _frame: object) -> None:
        bulk.interrupt()
        signal.signal(number, signal.SIG_DFL)  # the second signal ends the process

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    report = bulk.run(_raw_lines(options.files))
    _print(report, options)
    return report.status
