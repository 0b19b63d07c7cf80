"""`bge-m3-qdrant bulk`: files into a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import click

from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option

_FORMATS: Final = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "markdown", "html", "pdf")
"""`service.bulk.formats.FORMATS`, whose import would make `--help` wait for numpy."""


def _encoding(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    from service.bulk.text_encoding import is_text_encoding

    if value is not None and not is_text_encoding(value):
        raise click.BadParameter(f"{value!r} is unknown; name an encoding of Python, such as latin-1 or utf-16")
    return value


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


@click.command(
    "bulk",
    context_settings=CONTEXT,
    epilog=examples(
        """echo '{"text": "rsync copies files"}' | MODEL_ID=mini bge-m3-qdrant bulk --collection notes""",
        "bge-m3-qdrant bulk --collection notes passages.jsonl --vectors dense,sparse",
        "bge-m3-qdrant bulk --collection notes-v2 --alias notes --chunk-tokens 512 dump.jsonl.gz",
        "bge-m3-qdrant bulk --collection notes --text-field title --text-field body --id-field key articles.csv",
    ),
)
@click.argument("files", nargs=-1, metavar="[FILE...]")
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
@click.option(
    "--chunk-tokens", type=int, default=0, metavar="N", help="Cut texts into chunks of at most N tokens.  [default: no]"
)
@click.option("--chunk-overlap", type=int, metavar="N", help="Tokens that a chunk repeats of the previous one.")
@click.option(
    "--colbert-pooling",
    type=click.Choice(["none", "mean"]),
    default="none",
    show_default=True,
    help="What to do with more ColBERT rows than Qdrant takes.",
)
@kinds_option("--vectors", default="those of the collection", help="Kinds of vectors to store")
@click.option("--text-key", metavar="KEY", help="Payload key of the text.  [default: that of the collection]")
@click.option("--defer-index", is_flag=True, help="Build the graph at the end even if the collection is in use.")
@click.option(
    "--load-id",
    metavar="NAME",
    help="Name of this load among others into the collection.  [default: that of its files]",
)
@click.option("--finish", is_flag=True, help="Load nothing: build the graph and move the alias for loads that ended.")
@click.option(
    "--drop-load", multiple=True, metavar="NAME", help="Give up the missing lines of an earlier load, so that it ends."
)
@click.option(
    "--rejects",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write to FILE why each line was rejected: file, number, code, message.",
)
@click.option(
    "--rejected-lines",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the rejected lines to FILE as JSON Lines, to correct and to load again.",
)
@click.option(
    "--format",
    type=click.Choice(_FORMATS),
    help="Format of all files.  [default: that of each name, or of the first bytes]",
)
@click.option(
    "--encoding",
    callback=_encoding,
    metavar="NAME",
    help="Encoding of text.  [default: that of a byte order mark, or UTF-8]",
)
@click.option("--id-field", metavar="FIELD", help="Field of the id.  [default: id]")
@click.option(
    "--text-field",
    "text_fields",
    multiple=True,
    metavar="FIELD",
    help="Field of the text; several are joined by line breaks.  [default: text]",
)
@click.option(
    "--payload-fields",
    callback=_names,
    metavar="FIELD,...",
    help="Fields of the payload.  [default: all others]",
)
@click.option(
    "--columns",
    callback=_names,
    metavar="NAME,...",
    help="Names of the columns of CSV and TSV files whose first line is a row already.",
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

    After an interruption run the same command again; if the collection was new, --insert-only embeds only what is
    missing.

    Exit status: 0 if every line is in the collection as it was given, 1 if some were rejected or replaced by later
    lines, differ from points that were kept, or the alias did not move, 2 if the load could not be finished.
    """
    if options["chunk_overlap"] is not None and not options["chunk_tokens"]:
        raise click.UsageError("--chunk-overlap needs --chunk-tokens")
    if options["replace"] and options["insert_only"]:
        raise click.UsageError("--replace stores the last line of a point and --insert-only the first: leave out one")
    if options["tokens_per_s"] is not None and not options["dry_run"]:
        raise click.UsageError("--tokens-per-s needs --dry-run")
    if options["allow_differing"] and not options["insert_only"]:
        raise click.UsageError("--allow-differing needs --insert-only")
    if options["finish"] and options["files"]:
        raise click.UsageError("--finish loads nothing; leave the FILEs out")
    configure_logs()
    from service.transports.cli.bulk import BulkOptions, run

    return run(BulkOptions(as_json=as_json, **options), build)
