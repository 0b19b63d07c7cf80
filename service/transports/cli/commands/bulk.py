"""`bge-m3-qdrant bulk`: files into a collection."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Final

import click

from service.transports.cli.file_options import (
    check_chunks,
    chunk_options,
    files_argument,
    pooling_option,
    reading_options,
    rejection_options,
)
from service.transports.cli.options import CONTEXT, Failure, configure_logs, examples, json_option, kinds_option

_WITHOUT_VECTORS: Final = ("chunk_tokens", "chunk_overlap", "format", "encoding", "columns")
"""Options that have no effect on files that have vectors."""


def _shard(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Any:
    from qdrant_sink.loading import Shard

    try:
        return None if value is None else Shard.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command(
    "bulk",
    context_settings=CONTEXT,
    epilog=examples(
        """echo '{"text": "rsync copies files"}' | MODEL_ID=mini bge-m3-qdrant bulk --collection notes""",
        "bge-m3-qdrant bulk --collection notes passages.jsonl --vectors dense,sparse",
        "bge-m3-qdrant bulk --collection notes-v2 --alias notes --chunk-tokens 512 dump.jsonl.gz",
        "bge-m3-qdrant bulk --vectors-in vectors/ --collection notes",
        "bge-m3-qdrant bulk --collection notes --text-field title --text-field body --id-field key articles.csv",
    ),
)
@files_argument
@click.option("--collection", required=True, metavar="NAME", help="Collection to fill; created if it does not exist.")
@click.option("--alias", metavar="NAME", help="Alias to move to the collection when it is complete and indexed.")
@click.option("--allow-rejected", is_flag=True, help="Move the alias even if lines were rejected.")
@click.option("--insert-only", is_flag=True, help="Leave points that exist unchanged, and do not embed them.")
@click.option("--replace", is_flag=True, help="Let a later line replace an earlier one of the same id or text.")
@click.option(
    "--allow-differing",
    is_flag=True,
    help="With --insert-only: do not compare points that exist with their lines; they may differ.",
)
@chunk_options
@pooling_option
@kinds_option("--vectors", default="those of the collection", help="Kinds of vectors to store")
@click.option("--text-key", metavar="KEY", help="Payload key of the text.  [default: that of the collection]")
@click.option("--defer-index", is_flag=True, help="Build the graph at the end even if the collection is in use.")
@click.option(
    "--load-id",
    metavar="NAME",
    help="Name of this load among others into the collection.  [default: that of its files]",
)
@click.option(
    "--shard",
    callback=_shard,
    metavar="I/N",
    help="Load only part I of N of the same input; after all parts, --finish finishes the collection.",
)
@click.option("--endpoint", metavar="ID", help="Embed and store on this endpoint of RunPod, with no model here.")
@click.option(
    "--key",
    envvar="WORKER_API_KEY",
    metavar="KEY",
    help="RunPod's key for --endpoint. In the environment no other user of this machine sees it.  "
    "[env: WORKER_API_KEY]",
)
@click.option(
    "--jobs",
    type=click.IntRange(1, 256),
    default=8,
    show_default=True,
    metavar="N",
    help="Maximum jobs of --endpoint in flight.",
)
@click.option("--finish", is_flag=True, help="Load nothing: build the graph and move the alias for loads that ended.")
@click.option(
    "--allow-empty", is_flag=True, help="With --finish: move the alias even from points to a collection without any."
)
@click.option(
    "--drop-load", multiple=True, metavar="NAME", help="Give up the missing lines of an earlier load, so that it ends."
)
@click.option(
    "--vectors-in",
    is_flag=True,
    help="The FILEs are those of `embed` and have vectors, so no model is loaded.",
)
@click.option(
    "--vectors-model", metavar="NAME", help="Model of the vectors of files that do not name it, with --vectors-in."
)
@click.option(
    "--dry-run",
    is_flag=True,
    help="Store nothing: say what a load would do, how long it would take, and how large the collection would be.",
)
@click.option(
    "--tokens-per-s",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="Rate of the model for --dry-run.  [default: measured]",
)
@rejection_options
@reading_options
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Load each FILE into a collection; without a FILE, or with -, the standard input.

    A FILE is a path, a pattern, a folder or a URL (s3://, gs://, hf://). Its format is that of its name: JSON Lines, a
    JSON array, CSV, TSV, Parquet, Arrow, text, Markdown, HTML or PDF, also compressed (.gz, .zst, .bz2). Each line of
    JSON Lines is `{"text": "...", "id": 7, "payload": {...}}`; `id` and `payload` are optional. --text-field,
    --id-field and --payload-fields name other fields.

    The HNSW graph of a new collection is built once, at the end. The alias is moved only then, and only if no line was
    rejected; derived ids belong to the alias, so they are the same in the next collection.

    Several loads into one collection may run at the same time; the last to end builds the graph and moves the alias.
    With --shard I/N the same command loads one input on N machines, or N times one after the other. --finish then
    compares what all parts have counted, builds the graph and moves the alias.

    After an interruption run the same command again; if the collection was new, --insert-only embeds only what is
    missing.

    Exit status: 0 if every line is in the collection as it was given, 1 if some were rejected or replaced by later
    lines, differ from points that were kept, or the alias did not move, 2 if the load could not be finished.
    """
    check_chunks(options)
    if options["replace"] and options["insert_only"]:
        raise click.UsageError("--replace stores the last line of a point and --insert-only the first: leave out one")
    if options["tokens_per_s"] is not None and not options["dry_run"]:
        raise click.UsageError("--tokens-per-s needs --dry-run")
    if options["allow_differing"] and not options["insert_only"]:
        raise click.UsageError("--allow-differing needs --insert-only")
    if options["allow_empty"] and not options["finish"]:
        raise click.UsageError("--allow-empty needs --finish; a load without points moves no alias")
    if options["vectors_in"]:
        _check_vectors_in(options)
    elif options["vectors_model"] is not None:
        raise click.UsageError("--vectors-model needs --vectors-in")
    if options["endpoint"] is not None:
        _check_endpoint(options)
    if options["shard"] is not None and options["finish"]:
        raise click.UsageError("--finish is for all shards; leave --shard out")
    if options["shard"] is not None and options["dry_run"]:
        raise click.UsageError("--dry-run tries the whole input; leave --shard out")
    if options["finish"] and (options["files"] or options["vectors_in"]):
        raise click.UsageError(
            f"--finish loads nothing; leave {'the FILEs' if options['files'] else '--vectors-in'} out"
        )
    configure_logs()
    from service.transports.cli.bulk import BulkOptions, run

    return run(BulkOptions(as_json=as_json, **options), build)


def _check_vectors_in(options: dict[str, Any]) -> None:
    """Check that no option is for files without vectors."""
    useless = next((name for name in _WITHOUT_VECTORS if options[name] not in (None, ())), None)
    if useless is not None:
        raise click.UsageError(f"--{useless.replace('_', '-')} has no effect with --vectors-in; give it to embed")
    if len(options["text_fields"]) > 1:
        raise click.UsageError("--text-field can be given once with --vectors-in")
    if options["tokens_per_s"] is not None:
        raise click.UsageError("--tokens-per-s has no effect with --vectors-in, which needs no model")


def _check_endpoint(options: dict[str, Any]) -> None:
    """Check what --endpoint needs, and what is not possible with it."""
    if options["key"] is None:
        raise click.UsageError("--endpoint needs the key of RunPod, in WORKER_API_KEY or --key")
    if options["vectors_in"]:
        raise click.UsageError("--endpoint embeds texts, and --vectors-in has vectors already: leave out one")
    if options["dry_run"]:
        raise click.UsageError("--dry-run tokenizes with the model of this process; leave --endpoint out")
    for option in ("drop_load", "allow_empty"):
        if options[option]:
            raise click.UsageError(f"--{option.replace('_', '-')} needs the store; leave --endpoint out")
    if find_spec("bge_m3_qdrant_client") is None:
        raise Failure("--endpoint needs the client: pip install ./clients/python")
