"""The plan of a collection from the command line: options, settings and files to a plan."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from embedder import DEFAULT_MODEL, InvalidRequest
from embedder.checkpoint import EncoderConfig, find_tokenizer
from embedder.tokenizer import Tokenizer
from embedder.vectors import Kind
from service.bulk.field_mapping import FieldOptions
from service.bulk.file_sample import FileSample, SampleOptions, sample_files
from service.bulk.line import InputError
from service.bulk.reading import ReadOptions
from service.bulk.sources import sources_of
from service.operations import Chunking
from service.planning import Passages, Resources, StoredVectors, plan
from service.planning.stored_vectors import SIZE, QuantizedType, StorageType
from service.settings import Settings
from service.transports.cli.arguments import ARGUMENTS
from service.transports.cli.messages import say
from service.transports.cli.options import Failure
from service.transports.cli.plan_report import as_json, show
from service.wire.fields import Limits
from service.wire.parsing import parse
from service.wire.requests import EmbedRequest, QdrantTarget

GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """What to plan.

    Attributes:
        files: paths, patterns, folders and URLs of files to sample; empty for none.
        passages: number of passages; None for that of the files.
        tokens: mean tokens of a passage; None for those of the files.
        text_bytes: mean bytes of a text; None for those of the files, or an estimate.
        payload_bytes: mean bytes of the rest of a payload; None for those of the files, or none.
        vectors: kinds of vectors; empty for those of the collection config.
        datatype: storage type of dense vectors; None for that of the collection config.
        quantization: quantized copy of dense vectors; None for that of the collection config.
        on_disk: whether dense vectors are on disk; None as in the collection config.
        colbert_datatype: storage type of ColBERT rows; None for that of the collection config.
        colbert_quantization: quantized copy of ColBERT rows; None for that of the collection config.
        colbert_pooling: rows that are averaged into one.
        gpus: number of GPUs.
        tokens_per_s: tokens/s of one GPU; None for a measured rate.
        node_ram_gb: RAM of a node.
        node_disk_gb: disk of a node.
        gpu_hour_price: price of one GPU hour.
        ram_gb_month_price: price of 1 GB of RAM for a month.
        disk_gb_month_price: price of 1 GB of disk for a month.
        chunk_tokens: maximum tokens of a chunk of a file's text; None for no chunks.
        chunk_overlap: tokens that a chunk repeats of the previous one; None for an eighth of its maximum.
        sample_mb: megabytes that are read of files.
        format: format of all files; None for that of each.
        encoding: encoding of text; None for that of a byte order mark, or UTF-8.
        columns: names of the columns of CSV and TSV without a header.
        id_field: field of the id; None for that of the layout.
        text_fields: fields of the text, which are joined.
        payload_fields: fields of the payload; empty for all others.
        as_json: whether the plan is printed as JSON.
    """

    files: Sequence[str] = ()
    passages: int | None = None
    tokens: float | None = None
    text_bytes: float | None = None
    payload_bytes: float | None = None
    vectors: Sequence[Kind] = ()
    datatype: StorageType | None = None
    quantization: QuantizedType | None = None
    on_disk: bool | None = None
    colbert_datatype: StorageType | None = None
    colbert_quantization: QuantizedType | None = None
    colbert_pooling: int = 1
    gpus: int = 1
    tokens_per_s: float | None = None
    node_ram_gb: float = 64.0
    node_disk_gb: float = 2000.0
    gpu_hour_price: float | None = None
    ram_gb_month_price: float | None = None
    disk_gb_month_price: float | None = None
    chunk_tokens: int | None = None
    chunk_overlap: int | None = None
    sample_mb: int = 64
    format: str | None = None
    encoding: str | None = None
    columns: Sequence[str] = ()
    id_field: str | None = None
    text_fields: Sequence[str] = ()
    payload_fields: Sequence[str] = ()
    as_json: bool = False


def run(options: PlanOptions) -> int:
    """Plan with the settings of the environment, and print the plan; returns the exit status.

    Raises:
        ConfigurationError: the settings are invalid, or the model's tokenizer cannot be found.
        Failure: a file is wrong, or options contradict each other.
    """
    settings = Settings.from_environment()
    stored = stored_vectors(options, settings)
    sample = _sampled(options, settings) if options.files else None
    result = plan(stored, _passages(options, sample), _resources(options))
    if options.as_json:
        click.echo(json.dumps(as_json(result, sample)))
    else:
        show(result, sample, Console(highlight=False, soft_wrap=True))
    return 0


def stored_vectors(options: PlanOptions, settings: Settings) -> StoredVectors:
    """What the collection config stores, changed by the options.

    Raises:
        ConfigurationError: the checkpoint's config.json is invalid.
        Failure: an option is about a kind that is not stored.
    """
    size = _vector_size(settings.model_id)
    stored = StoredVectors.of(settings.qdrant_collection_config.schema_for(size, size))
    if options.vectors:
        stored = stored.only(tuple(options.vectors), size)
    dense: dict[str, Any] = {
        "datatype": options.datatype,
        "quantization": options.quantization,
        "on_disk": options.on_disk,
    }
    colbert: dict[str, Any] = {
        "datatype": options.colbert_datatype,
        "quantization": options.colbert_quantization,
        "pooling": None if options.colbert_pooling == 1 else options.colbert_pooling,
    }
    dense, colbert = ({k: v for k, v in changes.items() if v is not None} for changes in (dense, colbert))
    for changes, vector, kind in ((dense, stored.dense, "dense"), (colbert, stored.colbert, "colbert")):
        if changes and vector is None:
            names = ", ".join(_option(kind, field) for field in changes)
            raise Failure(f"{names}: no {kind} vectors are stored; name {kind} in --vectors")
    return replace(
        stored,
        dense=None if stored.dense is None else replace(stored.dense, **dense),
        colbert=None if stored.colbert is None else replace(stored.colbert, **colbert),
    )


def _option(kind: str, field: str) -> str:
    name = field.replace("_", "-")
    if kind == "colbert":
        return f"--colbert-{name}"
    return "--on-disk/--in-ram" if field == "on_disk" else f"--{name}"


def _vector_size(model_id: str) -> int:
    """The components of a vector of the model; of a model that is not on this machine those of BGE-M3."""
    if model_id == "mini" or Path(model_id).is_dir():
        return EncoderConfig.read(find_tokenizer(model_id)).hidden
    return SIZE


def _sampled(options: PlanOptions, settings: Settings) -> FileSample:
    try:
        sources = sources_of(options.files, any_format=options.format is not None, say=say)
        checkpoint = find_tokenizer(settings.model_id or DEFAULT_MODEL, settings.model_revision)
        max_length = EncoderConfig.read(checkpoint).max_length
        return sample_files(
            sources,
            Tokenizer(checkpoint),
            SampleOptions(
                read=ReadOptions(
                    format=options.format,
                    encoding=options.encoding,
                    columns=options.columns,
                    fields=FieldOptions(options.id_field, options.text_fields, options.payload_fields),
                ),
                sample_bytes=options.sample_mb * 10**6,
                max_length=max_length,
                chunk=_chunking(options, max_length),
            ),
            say,
        )
    except InputError as error:
        raise Failure(str(error)) from None


def _chunking(options: PlanOptions, max_length: int) -> Chunking | None:
    """The limits of chunks, checked as the worker checks a request.

    Raises:
        Failure: one is out of range.
    """
    if options.chunk_tokens is None:
        return None
    chunk = {"maxTokens": options.chunk_tokens}
    if options.chunk_overlap is not None:
        chunk["overlap"] = options.chunk_overlap
    raw = {"texts": [""], "isPassage": True, "qdrant": {"chunk": chunk}}
    try:
        request = parse(raw, Limits(max_texts=1, max_length=max_length))
    except InvalidRequest as error:
        raise Failure(ARGUMENTS["embed"].message(error.message)) from None
    match request:
        case EmbedRequest(qdrant=QdrantTarget(chunk=limits)) if limits is not None:
            return limits.value()
    raise TypeError("an embed request with chunks was expected")


def _passages(options: PlanOptions, sample: FileSample | None) -> Passages:
    """The passages of the options, and of the sample where the options leave them open."""
    if sample is None:
        if options.passages is None or options.tokens is None:
            raise Failure("give --passages and --tokens, or files to sample")
        return Passages.of_tokens(
            options.passages, options.tokens, text_bytes=options.text_bytes, payload_bytes=options.payload_bytes or 0.0
        )
    passages = sample.passages
    if options.tokens is not None:
        passages = replace(Passages.of_tokens(passages.count, options.tokens), payload_bytes=passages.payload_bytes)
    given: dict[str, Any] = {
        "count": options.passages,
        "text_bytes": options.text_bytes,
        "payload_bytes": options.payload_bytes,
    }
    return replace(passages, **{field: value for field, value in given.items() if value is not None})


def _resources(options: PlanOptions) -> Resources:
    return Resources(
        gpus=options.gpus,
        tokens_per_s=options.tokens_per_s,
        node_ram_bytes=round(options.node_ram_gb * GB),
        node_disk_bytes=round(options.node_disk_gb * GB),
        gpu_hour_price=options.gpu_hour_price,
        ram_gb_month_price=options.ram_gb_month_price,
        disk_gb_month_price=options.disk_gb_month_price,
    )
