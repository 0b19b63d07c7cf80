"""A load from the command line: files, signals, the file of rejected lines, and the summary."""

from __future__ import annotations

import asyncio
import hashlib
import json
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import click

from embedder import Embedder, InvalidRequest, WorkerError
from service.bulk.dry_run import DryRun
from service.bulk.field_mapping import FieldOptions
from service.bulk.line import STANDARD_INPUT, BadLine, InputError, Line
from service.bulk.load import INTERRUPTED, STANDARD_INPUT_ID, BulkLoad, LoadOptions
from service.bulk.reading import Reader, ReadOptions, ReadProgress
from service.bulk.report import LoadReport
from service.bulk.sources import sources_of
from service.operations import IngestRequest, Operations
from service.settings import Settings
from service.shutdown import end_process
from service.transports.cli.options import Failure
from service.transports.cli.plan_report import amount, duration
from service.transports.cli.progress_line import ProgressLine
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions:
    """What to load, and where.

    Attributes:
        files: paths, patterns, folders and URLs of them; none, or `-`, is the standard input.
        collection: by name.
        alias: moved to the collection when it is complete and indexed.
        allow_rejected: move the alias even if lines were rejected.
        insert_only: leave points that exist unchanged.
        replace: let later lines of a point replace earlier ones.
        allow_differing: with `insert_only`, let points that exist differ from their lines.
        chunk_tokens: maximum tokens of a chunk; 0 for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one.
        colbert_pooling: `none` or `mean`.
        vectors: kinds of vectors to store; empty for those of the collection.
        text_key: where the payload keeps the text; None for that of the collection.
        defer_index: build the graph at the end even if the collection is in use.
        load_id: id of the load; None for that of its files.
        finish: finish what other loads have stored, and load nothing.
        drop_load: ids of loads whose missing lines are given up.
        rejects: a file for the reasons of all rejected lines.
        rejected_lines: a file for the rejected lines themselves.
        format: format of all files; None for that of each.
        encoding: encoding of text; None for that of a byte order mark, or UTF-8.
        columns: names of the columns of CSV and TSV without a header.
        id_field: field of the id.
        text_fields: fields of the text, which are joined.
        payload_fields: fields of the payload; empty for all others.
        dry_run: say what a load would do.
        tokens_per_s: rate of the model for a dry run; None to measure it.
        as_json: whether the summary is printed as JSON.
    """

    files: Sequence[str] = ()
    collection: str
    alias: str | None = None
    allow_rejected: bool = False
    insert_only: bool = False
    replace: bool = False
    allow_differing: bool = False
    chunk_tokens: int = 0
    chunk_overlap: int | None = None
    colbert_pooling: str = "none"
    vectors: Sequence[str] = ()
    text_key: str | None = None
    defer_index: bool = False
    load_id: str | None = None
    finish: bool = False
    drop_load: Sequence[str] = ()
    rejects: Path | None = None
    rejected_lines: Path | None = None
    format: str | None = None
    encoding: str | None = None
    columns: Sequence[str] = ()
    id_field: str | None = None
    text_fields: Sequence[str] = ()
    payload_fields: Sequence[str] = ()
    dry_run: bool = False
    tokens_per_s: float | None = None
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
        allow_lost=options.replace or options.allow_differing,
        defer_index=options.defer_index,
        load_id=options.load_id or load_id_of(options.files),
        finishes=options.finish,
    )


def load_id_of(files: Sequence[str]) -> str:
    """The id of a load of these files: the same for the same command, and without their names."""
    if not files or list(files) == [STANDARD_INPUT]:
        return STANDARD_INPUT_ID
    names = [file if "://" in file or file == STANDARD_INPUT else str(Path(file).absolute()) for file in files]
    return f"files-{hashlib.sha256(json.dumps(names).encode(errors='surrogateescape')).hexdigest()[:8]}"


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
            compare = options.insert_only and not options.allow_differing
            return replace(request.ingest_value(target), compare_kept=compare)
    raise TypeError("an embed request with a qdrant block was expected")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _lines(options: BulkOptions) -> tuple[Iterator[Line | BadLine], ReadProgress]:
    """The lines of all files, whose beginnings are checked, and how far they are read.

    Raises:
        Failure: a file is wrong as a whole, or would be overwritten.
    """
    fields = FieldOptions(options.id_field, options.text_fields, options.payload_fields)
    reading = ReadOptions(format=options.format, encoding=options.encoding, columns=options.columns, fields=fields)
    reader = Reader(reading, _say)
    try:
        sources = sources_of(options.files, any_format=options.format is not None, say=_say)
        reader.check(sources)
    except InputError as error:
        raise Failure(str(error)) from None
    written = {path.resolve() for path in (options.rejects, options.rejected_lines) if path is not None}
    for source in sources:
        if source.path is not None and source.path.resolve() in written:
            raise Failure(f"{source.name} is read, and cannot take the rejected lines; name another file for them")
    return reader.lines(sources), reader.progress


def _opened(stack: ExitStack, path: Path | None, option: str) -> BinaryIO | None:
    if path is None:
        return None
    try:
        file = path.open("wb")
    except OSError as error:
        raise Failure(f"{option} cannot be written ({error.strerror}): {path}") from None
    stack.callback(_close, file)
    return file


def _close(file: BinaryIO) -> None:
    with suppress(OSError):  # each line was flushed when it was written, and failed then
        file.close()


def _interrupted_early(_number: int, _frame: object) -> None:
    _say(INTERRUPTED)
    end_process(2)


def _print(summary: Mapping[str, Any], options: BulkOptions) -> None:
    click.echo(json.dumps(summary) if options.as_json else described(summary))


def described(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    if "dry_run" in summary:
        return _forecast(summary)
    name = summary["collection"]
    text = (
        f"{name if name.isprintable() else repr(name)}: {summary['stored']} of {summary['submitted']} points stored"
        f" ({summary['skipped']} were there before), {summary['rejected']} rejected, in {summary['seconds']} s"
    )
    text += _fates(summary, "are in the collection")
    if "alias" in summary:
        text += "; the alias moved" if summary["alias"] else "; the alias did not move"
    return f"{text}; {summary['error']}" if "error" in summary else text


def _forecast(summary: Mapping[str, Any]) -> str:
    """What a load would do, on one line."""
    text = (
        f"dry run, nothing is stored: {summary['lines']} lines would be {summary['stored']} points of "
        f"{summary['tokens']} tokens, {summary['rejected']} rejected"
    ) + _fates(summary, "would be in the collection")
    if "load_seconds" in summary:
        took = duration(summary["load_seconds"] / 3600)
        text += f"; the model would take {took} at {summary['tokens_per_s']} tokens/s"
    if "disk_bytes" in summary:
        kinds = ", ".join(f"{kind} {amount(size)}" for kind, size in summary["kinds_bytes"].items())
        text += f"; {amount(summary['disk_bytes'])} on disk ({kinds}) and {amount(summary['ram_bytes'])} in RAM"
    return f"{text}; {summary['error']}" if "error" in summary else text


def _fates(summary: Mapping[str, Any], where: str) -> str:
    """The lines that are not points of their own; empty if there are none."""
    fates = (
        ("repeated", "repeated"),
        ("replaced", "replaced by later ones"),
        ("differing", "other than their kept points"),
    )
    told = [f"{summary[fate]} {words}" for fate, words in fates if summary[fate]]
    return f"; of {summary['lines']} lines, {', '.join(told)}: {summary['points']} points {where}" if told else ""


def run(options: BulkOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Run a load; returns the exit status.

    Args:
        options: what to load.
        build: loads the model, and is called once the command line is known to be sound; None for `Operations.build`.

    Raises:
        ConfigurationError: the settings are invalid.
        Failure: a file of rejected lines cannot be written, or an input file is wrong as a whole.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupted_early)
    lines: Iterable[Line | BadLine] = ()
    read: ReadProgress | None = None
    if not options.finish:
        lines, read = _lines(options)
    with ExitStack() as stack:
        rejects = _opened(stack, options.rejects, "--rejects")
        rejected_lines = _opened(stack, options.rejected_lines, "--rejected-lines")
        chosen = _without_store if options.dry_run else Operations.build
        core = (build or chosen)(Settings.from_environment())
        stack.callback(core.close)
        return load(core, options, lines, rejects=rejects, rejected_lines=rejected_lines, read=read)


def _without_store(settings: Settings) -> Operations:
    """The operations of the loaded model, which open the store when it is needed: in a dry run never."""
    return Operations(settings, Embedder.load(settings.model_options))


def load(
    core: Operations,
    options: BulkOptions,
    lines: Iterable[Line | BadLine],
    *,
    rejects: BinaryIO | None = None,
    rejected_lines: BinaryIO | None = None,
    read: ReadProgress | None = None,
) -> int:
    """Run a load over loaded operations, or try it, and print its summary; returns the exit status."""
    limits = Limits(max_texts=core.settings.max_texts, max_length=core.max_length)
    try:
        checked = load_options(options, limits)
    except InvalidRequest as error:
        report = LoadReport(failure=error.message, alias=None if options.alias is None else False)
        _print(report.summary(options.collection), options)
        return report.status
    with closing(ProgressLine(read or ReadProgress(), sys.stderr)) as progress:
        if options.dry_run:
            forecast = DryRun(
                core,
                checked,
                rejects,
                progress.say,
                rejected_lines=rejected_lines,
                progress=progress.show,
                tokens_per_s=options.tokens_per_s,
            ).run(lines)
            report, summary = forecast.report, forecast.summary(options.collection)
        else:
            _give_up(core, options)
            bulk = BulkLoad(core, checked, rejects, progress.say, rejected_lines=rejected_lines, progress=progress.show)
            _stop_on_signals(bulk)
            report = bulk.run(lines)
            summary = report.summary(options.collection)
    _print(summary, options)
    return report.status


def _give_up(core: Operations, options: BulkOptions) -> None:
    """Give up the missing lines of the loads that the options name."""
    for name in options.drop_load:
        try:
            asyncio.run(core.loads.forget(options.collection, name))
        except WorkerError as error:
            raise Failure(error.message) from None


def _stop_on_signals(bulk: BulkLoad) -> None:
    def stop(number: int, _frame: object) -> None:
        bulk.interrupt()
        signal.signal(number, signal.SIG_DFL)  # the second signal ends the process

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
