"""The command `embed`: files in, parts of vectors out, signals, the files of rejections, and the summary."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click

from embedder import KINDS, InvalidRequest
from service.bulk.extras import library
from service.bulk.line import BadLine, InputError, Line
from service.bulk.reading import ReadProgress
from service.bulk.report import LoadReport
from service.bulk.vector_files.description import Description
from service.bulk.vector_files.embed_run import EmbedRun
from service.bulk.vector_files.parts import PartFolder
from service.operations import IngestRequest, Operations
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.input_files import InputOptions, lines_of, opened, operations_without_store
from service.transports.cli.options import Failure
from service.transports.cli.plan_report import count, counted
from service.transports.cli.progress_line import ProgressLine
from service.transports.cli.signals import end_on_signals, interrupt_on_signals
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedOptions(InputOptions):
    """What to embed, and where to.

    Attributes:
        out: folder of the parts.
        vectors: kinds of vectors to compute; empty for all.
        dtype: type of the numbers of dense and ColBERT vectors.
        part_mb: size of a part in megabytes, beyond which the next line begins another one.
        chunk_tokens: maximum tokens of a chunk; None for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one.
        colbert_pooling: `none` or `mean`.
        as_json: whether the summary is printed as JSON.
    """

    out: Path
    vectors: Sequence[str] = ()
    dtype: str = "float32"
    part_mb: float = 256.0
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    colbert_pooling: str = "none"
    as_json: bool = False


def run(options: EmbedOptions, build: Callable[[Settings], Operations] | None = None) -> int:
    """Embed files; returns the exit status.

    Args:
        options: what to embed.
        build: loads the model, and is called once the command line is known to be sound; None for a model without a
            store.

    Raises:
        ConfigurationError: the settings are invalid.
        Failure: a file of rejected lines cannot be written, or an input file is wrong as a whole.
    """
    end_on_signals()
    try:
        library("pyarrow.parquet", "embed")
    except InputError as error:
        raise Failure(str(error)) from None
    lines, read = lines_of(options)
    with ExitStack() as stack:
        rejects = opened(stack, options.rejects, "--rejects")
        rejected_lines = opened(stack, options.rejected_lines, "--rejected-lines")
        core = (build or operations_without_store)(Settings.from_environment())
        stack.callback(core.close)
        return embed(core, options, lines, rejects=rejects, rejected_lines=rejected_lines, read=read)


def embed(
    core: Operations,
    options: EmbedOptions,
    lines: Iterable[Line | BadLine],
    *,
    rejects: BinaryIO | None = None,
    rejected_lines: BinaryIO | None = None,
    read: ReadProgress | None = None,
) -> int:
    """Embed lines over loaded operations, and print the summary; returns the exit status.

    Raises:
        Failure: the folder cannot be used, or its parts have other vectors.
    """
    try:
        description = _described(core, options)
    except InvalidRequest as error:
        raise Failure(ARGUMENTS["embed"].message(error.message)) from None
    try:
        folder = PartFolder(options.out, description, part_max_bytes=int(options.part_mb * 1_000_000))
    except InputError as error:
        raise Failure(str(error)) from None
    with closing(ProgressLine(read or ReadProgress(), sys.stderr)) as progress:
        embedding = EmbedRun(
            core,
            description,
            folder,
            rejects,
            progress.say,
            rejected_lines=rejected_lines,
            progress=progress.show,
        )
        interrupt_on_signals(embedding.interrupt)
        report = embedding.run(lines)
    summary = _summary(report, options, folder)
    click.echo(json.dumps(summary) if options.as_json else _in_words(summary))
    return report.status


def _described(core: Operations, options: EmbedOptions) -> Description:
    """What the vectors are going to be.

    Raises:
        InvalidRequest: an option is out of its limits.
    """
    request = _request(options, Limits(max_texts=core.settings.max_texts, max_length=core.max_length))
    chunk = request.chunk
    return Description.of_model(
        core.model_identity,
        core.vocabulary,
        model_dtype=core.model_dtype,
        kinds=tuple(kind for kind in KINDS if not request.vectors or kind in request.vectors),
        dtype=options.dtype,
        dense_size=core.hidden_size,
        colbert_size=core.colbert_size,
        max_length=core.piece_vectors.max_length,
        chunk_tokens=0 if chunk is None else chunk.max_tokens,
        chunk_overlap=0 if chunk is None else chunk.overlap,
        colbert_pooling=options.colbert_pooling,
    )


def _request(options: EmbedOptions, limits: Limits) -> IngestRequest:
    """The options as those of an ingest, checked as the worker checks a request."""
    qdrant: dict[str, Any] = {"colbertPooling": options.colbert_pooling}
    if options.chunk_tokens is not None:
        qdrant["chunk"] = {"maxTokens": options.chunk_tokens}
        if options.chunk_overlap is not None:
            qdrant["chunk"]["overlap"] = options.chunk_overlap
    raw = {"texts": [""], "isPassage": True, "vectors": list(options.vectors) or None, "qdrant": qdrant}
    match parse(raw, limits):
        case EmbedRequest(qdrant=QdrantTarget() as target) as request:
            return request.ingest_value(target)
    raise TypeError("an embed request with a qdrant block was expected")


def _summary(report: LoadReport, options: EmbedOptions, folder: PartFolder) -> dict[str, Any]:
    """The summary as JSON values."""
    summary: dict[str, Any] = {
        "out": str(options.out),
        "lines": report.lines,
        "parts": folder.parts,
        "rows": folder.rows,
        "skipped": folder.rows_before,
        "rejected": report.rejected,
        "tokens": report.tokens,
        "seconds": round(report.seconds, 1),
    }
    return summary if report.failure is None else {**summary, "error": report.failure}


def _in_words(summary: Mapping[str, Any]) -> str:
    """The summary for a person, on one line."""
    rows = f"{counted(summary['rows'], 'row')} ({count(summary['skipped'])} of them from earlier runs)"
    if not summary["rows"]:
        rows = "no rows" if "error" in summary else "no rows, as the input has no valid document,"
    text = (
        f"{summary['out']}: {rows} in {counted(summary['parts'], 'part')}, {summary['rejected']} rejected, "
        f"{counted(summary['tokens'], 'token')} in {summary['seconds']} s"
    )
    return f"{text}; {summary['error']}" if "error" in summary else text
