"""A load from the command line: files, signals, the file of rejected lines, and the summary."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Final, cast

import click

from embedder import InvalidRequest, Kind, WorkerError
from qdrant_sink import ModelIdentity
from qdrant_sink.loading import Shard
from service.bulk.dry_run import DryRun
from service.bulk.formats import suffix_format
from service.bulk.line import STANDARD_INPUT, BadLine, InputError, Line
from service.bulk.line_batches import BATCH_MAX_TEXTS
from service.bulk.load import STANDARD_INPUT_ID, BulkLoad, LoadOptions
from service.bulk.reading import ReadProgress
from service.bulk.report import LoadReport
from service.bulk.sources import sources_of
from service.bulk.vector_files.vector_reading import VectorReader
from service.operations import IngestRequest, Operations, VectorOperations
from service.operations.finish import Finish
from service.operations.store_access import check_contact
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.finish import finished
from service.transports.cli.input_files import InputOptions, check_rejects, lines_of, opened, operations_without_store
from service.transports.cli.messages import say
from service.transports.cli.options import Failure
from service.transports.cli.plan_report import amount, duration
from service.transports.cli.progress_line import ProgressLine
from service.transports.cli.signals import end_on_signals, interrupt_on_signals
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget

if TYPE_CHECKING:
    from service.bulk.endpoint import Endpoint

PASSAGE_MAX_TOKENS: Final = 8192
"""Maximum tokens of a chunk where this process has no model that says it: of files with vectors, and on an endpoint,
whose workers may allow fewer."""

NO_COMMON_STORE: Final = (
    "--shard needs a store for all parts, and none is named; set QDRANT_URL to a Qdrant server, or QDRANT_PATH "
    "to a folder if all parts are loaded on this machine"
)
"""Message of a shard that would go into the default folder of its machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkOptions(InputOptions):
    """What to load, and where.

    Attributes:
        collection: by name.
        alias: moved to the collection when it is complete and indexed.
        allow_rejected: move the alias even if lines were rejected.
        insert_only: leave points that exist unchanged.
        replace: let later lines of a point replace earlier ones.
        allow_differing: with `insert_only`, let points that exist differ from their lines.
        chunk_tokens: maximum tokens of a chunk; None for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one.
        colbert_pooling: `none` or `mean`.
        vectors: kinds of vectors to store; empty for those of the collection.
        text_key: where the payload keeps the text; None for that of the collection.
        defer_index: build the graph at the end even if the collection is in use.
        vectors_in: whether the files have vectors, so that no model is needed.
        vectors_model: model of vectors of which the files name none.
        load_id: id of the load; None for that of its files.
        finish: finish what other loads have stored, and load nothing.
        allow_empty: with `finish`, move the alias to a collection without points from one that has some.
        shard: the part of the input to load; None for the whole.
        endpoint: id of a serverless endpoint that embeds and stores; None for this process.
        key: key of the endpoint.
        jobs: maximum number of jobs of the endpoint in flight.
        drop_load: ids of loads whose missing lines are given up.
        dry_run: say what a load would do.
        tokens_per_s: rate of the model for a dry run; None to measure it.
        as_json: whether the summary is printed as JSON.
    """

    collection: str
    alias: str | None = None
    allow_rejected: bool = False
    insert_only: bool = False
    replace: bool = False
    allow_differing: bool = False
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    colbert_pooling: str = "none"
    vectors: Sequence[str] = ()
    text_key: str | None = None
    defer_index: bool = False
    vectors_in: bool = False
    vectors_model: str | None = None
    load_id: str | None = None
    finish: bool = False
    allow_empty: bool = False
    shard: Shard | None = None
    endpoint: str | None = None
    key: str | None = None
    jobs: int = 8
    drop_load: Sequence[str] = ()
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
    name = options.load_id or load_id_of(options.files)
    return LoadOptions(
        request=_request(options, limits),
        collection=options.collection,
        alias=options.alias,
        allow_rejected=options.allow_rejected,
        allow_lost=options.replace or options.allow_differing,
        defer_index=options.defer_index,
        load_id=name if options.shard is None else options.shard.load_of(name),
        shard=options.shard,
        read_by={**options.read_by, "vectors-in": "yes" if options.vectors_in else None},
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
    if options.chunk_tokens is not None:
        qdrant["chunk"] = {"maxTokens": options.chunk_tokens}
        if options.chunk_overlap is not None:
            qdrant["chunk"]["overlap"] = options.chunk_overlap
    raw = {"texts": [""], "isPassage": True, "vectors": list(options.vectors) or None, "qdrant": qdrant}
    match parse(raw, limits):
        case EmbedRequest(qdrant=QdrantTarget() as target) as request:
            compare = options.insert_only and not options.allow_differing
            return replace(request.ingest_value(target), compare_kept=compare)
    raise TypeError("an embed request with a qdrant block was expected")


def _print(summary: Mapping[str, Any], options: BulkOptions) -> None:
    if "error" in summary:
        summary = {**summary, "error": _in_options(summary["error"])}
    in_words = finish_described if options.finish else described
    click.echo(json.dumps(summary) if options.as_json else in_words(summary))


def described(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    if "dry_run" in summary:
        return _forecast(summary)
    name = summary["collection"]
    name = name if name.isprintable() else repr(name)
    if "error" in summary and not summary["lines"]:
        return f"{name}: nothing was loaded: {summary['error']}"
    text = (
        f"{name}: {summary['stored']} of {summary['submitted']} points stored"
        f" ({summary['skipped']} were there before), {summary['rejected']} rejected, in {summary['seconds']} s"
    )
    text += _fates(summary, "are in the collection")
    if "shard" in summary:
        text += f"; shard {summary['shard']} has {summary['lines']} of {summary['read']} lines"
    if "alias" in summary:
        text += "; the alias moved" if summary["alias"] else "; the alias did not move"
    return f"{text}; {summary['error']}" if "error" in summary else text


def finish_described(summary: Mapping[str, Any]) -> str:
    """The summary of a finish for a person, on one line."""
    name = summary["collection"]
    name = name if name.isprintable() else repr(name)
    if "error" in summary:
        return f"{name}: not finished: {summary['error']}"
    text = f"{name}: finished in {summary['seconds']} s"
    if "alias" in summary:
        text += "; the alias moved" if summary["alias"] else "; the alias did not move"
    return text


def _forecast(summary: Mapping[str, Any]) -> str:
    """What a load would do, on one line."""
    tokens = f" of {summary['tokens']} tokens" if summary["tokens"] else ""  # files with vectors are not tokenized
    text = (
        f"dry run, nothing is stored: {summary['lines']} lines would be {summary['stored']} points"
        f"{tokens}, {summary['rejected']} rejected"
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
        Failure: a file of rejected lines cannot be written, an input file is wrong as a whole, or a shard would go into
            the default folder of this machine.
    """
    end_on_signals()
    if options.finish:
        report = _finished(options)
        _print(report.summary(options.collection), options)
        return report.status
    if options.shard is not None and options.endpoint is None and not Settings.from_environment().names_store:
        raise Failure(NO_COMMON_STORE)
    with ExitStack() as stack:
        given = None
        if options.vectors_in:
            lines, read, given = _vector_lines(options)
        else:
            lines, read = lines_of(options)
        rejects = opened(stack, options.rejects, "--rejects")
        rejected_lines = opened(stack, options.rejected_lines, "--rejected-lines")
        if options.endpoint is not None:
            with closing(_endpoint(options, options.endpoint)) as remote:
                return load_over(remote, options, lines, rejects=rejects, rejected_lines=rejected_lines, read=read)
        settings = Settings.from_environment()
        if not options.dry_run:
            check_contact(settings)
        chosen = operations_without_store if options.dry_run else Operations.build
        core = given or (build or chosen)(settings)
        stack.callback(core.close)
        if not options.dry_run:
            _name_store(settings)
        return load(core, options, lines, rejects=rejects, rejected_lines=rejected_lines, read=read)


def _finished(options: BulkOptions) -> LoadReport:
    """Finish the collection, over the endpoint if there is one.

    Raises:
        ConfigurationError: the settings are invalid.
        Failure: the id or the key of the endpoint cannot be sent.
    """
    if options.endpoint is not None:
        with closing(_endpoint(options, options.endpoint)) as remote:
            return finished(remote.finish, options.collection, options.alias, options.drop_load)
    settings = Settings.from_environment()
    check_contact(settings)
    _name_store(settings)
    with closing(Finish(settings)) as finish:
        operation = partial(finish, allow_empty=options.allow_empty)
        return finished(operation, options.collection, options.alias, options.drop_load)


def _name_store(settings: Settings) -> None:
    """Say where points are stored if nobody has chosen it."""
    if not settings.names_store:
        say(f"QDRANT_URL is not set: points are stored in {settings.qdrant_path}, by Qdrant Edge in this process")


def _vector_lines(options: BulkOptions) -> tuple[Iterable[Line | BadLine], ReadProgress, VectorOperations]:
    """The lines of vector files, how far they are read, and the operations that store them.

    Raises:
        Failure: a file is wrong as a whole.
    """
    model = None if options.vectors_model is None else ModelIdentity(options.vectors_model)
    reader = VectorReader(options.fields, cast("Sequence[Kind]", options.vectors), model, say)
    try:
        found = sources_of(options.files, any_format=False, say=say)
        sources = [source for source in found if suffix_format(source.name) in (None, "parquet")]
        if found and not sources:
            raise Failure("--vectors-in needs the Parquet files that `embed` writes, and no FILE is one")
        vectors = reader.check(sources)
    except InputError as error:
        raise Failure(str(error)) from None
    check_rejects(options, sources)
    return reader.lines(sources), reader.progress, VectorOperations(Settings.from_environment(), vectors)


def load(
    core: Operations | VectorOperations,
    options: BulkOptions,
    lines: Iterable[Line | BadLine],
    *,
    rejects: BinaryIO | None = None,
    rejected_lines: BinaryIO | None = None,
    read: ReadProgress | None = None,
) -> int:
    """Run a load over loaded operations, or try it, and print its summary; returns the exit status."""
    max_length = core.max_length if isinstance(core, Operations) else PASSAGE_MAX_TOKENS
    limits = Limits(max_texts=core.settings.max_texts, max_length=max_length)
    try:
        checked = load_options(options, limits)
    except InvalidRequest as error:
        alias = None if options.alias is None or options.shard is not None else False
        report = LoadReport(failure=error.message, alias=alias)
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
            interrupt_on_signals(bulk.interrupt)
            report = bulk.run(lines)
            summary = report.summary(options.collection)
    _print(summary, options)
    return report.status


def _endpoint(options: BulkOptions, endpoint: str) -> Endpoint:
    """The endpoint that the options name.

    Raises:
        Failure: the id or the key cannot be sent.
    """
    from bge_m3_qdrant_client import AsyncClient, InvalidOption

    from service.bulk.endpoint import Endpoint, client_of

    try:
        return Endpoint(client_of(partial(AsyncClient.runpod, endpoint, api_key=options.key or "")))
    except InvalidOption as error:
        raise Failure(error.message.replace("api_key", "--key")) from None


def load_over(
    remote: Endpoint,
    options: BulkOptions,
    lines: Iterable[Line | BadLine],
    *,
    rejects: BinaryIO | None = None,
    rejected_lines: BinaryIO | None = None,
    read: ReadProgress | None = None,
) -> int:
    """Run a load over an endpoint, and print its summary; returns the exit status.

    Raises:
        Failure: an option is out of range.
    """
    try:
        checked = load_options(options, Limits(max_texts=BATCH_MAX_TEXTS, max_length=PASSAGE_MAX_TOKENS))
    except InvalidRequest as error:
        raise Failure(_in_options(error.message)) from None
    with closing(ProgressLine(read or ReadProgress(), sys.stderr)) as progress:
        bulk = BulkLoad(
            remote,
            checked,
            rejects,
            progress.say,
            rejected_lines=rejected_lines,
            progress=progress.show,
            concurrent_batches=options.jobs,
        )
        interrupt_on_signals(bulk.interrupt, remote.cancel)
        report = bulk.run(lines)
    _print(report.summary(options.collection), options)
    return report.status


def _give_up(core: Operations | VectorOperations, options: BulkOptions) -> None:
    """Give up the missing lines of the loads that the options name."""
    for name in options.drop_load:
        try:
            asyncio.run(core.loads.forget(options.collection, name, say))
        except WorkerError as error:
            raise Failure(_in_options(error.message)) from None


def _in_options(message: str) -> str:
    """A message of an error in terms of the options."""
    return ARGUMENTS["bulk"].message(message)
