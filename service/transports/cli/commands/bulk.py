"""`bge-m3-qdrant bulk`: files into a collection."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option

_FILE = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)


@click.command(
    "bulk",
    context_settings=CONTEXT,
    epilog=examples(
        """echo '{"text": "rsync copies files"}' | MODEL_ID=mini bge-m3-qdrant bulk --collection notes""",
        "bge-m3-qdrant bulk --collection notes passages.jsonl --vectors dense,sparse",
        "zcat dump.jsonl.gz | bge-m3-qdrant bulk --collection notes-v2 --alias notes --chunk-tokens 512",
    ),
)
@click.argument("files", nargs=-1, type=_FILE, metavar="[FILE...]")
@click.option("--collection", required=True, metavar="NAME", help="Collection to fill; created if it does not exist.")
@click.option("--alias", metavar="NAME", help="Alias to move to the collection when it is complete and indexed.")
@click.option("--allow-rejected", is_flag=True, help="Move the alias even if lines were rejected.")
@click.option("--insert-only", is_flag=True, help="Leave points that exist unchanged, and do not embed them.")
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
    "--rejects",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write every rejected line to FILE: number, code, message.",
)
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Load JSON Lines from each FILE into a collection; without a FILE, or with -, from the standard input.

    Each line is `{"text": "...", "id": 7, "payload": {...}}` in UTF-8; `id` and `payload` are optional. The HNSW
    graph of a new collection is built once, at the end. The alias is moved only then, and only if no line was
    rejected; derived ids belong to the alias, so they are the same in the next collection.

    After an interruption run the same command again; if the collection was new, --insert-only embeds only what is
    missing.

    Exit status: 0 if every point is stored, 1 if some were rejected or the alias did not move, 2 if the load could not
    be finished.
    """
    if options["chunk_overlap"] is not None and not options["chunk_tokens"]:
        raise click.UsageError("--chunk-overlap needs --chunk-tokens")
    configure_logs()
    from service.transports.cli.bulk import BulkOptions, run

    return run(BulkOptions(as_json=as_json, **options), build)
