"""`bge-m3-qdrant complete`: vectors of further kinds for the points of a collection."""

from __future__ import annotations

from typing import Any

import click

from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option


@click.command(
    "complete",
    context_settings=CONTEXT,
    epilog=examples(
        "bge-m3-qdrant complete notes --kinds sparse,colbert",
        "bge-m3-qdrant complete notes --kinds colbert --into notes-v2 --alias current --text-key body",
    ),
)
@click.argument("collection")
@kinds_option("--kinds", default="none; it is required", help="Kinds of vectors that every point is to have")
@click.option(
    "--into",
    metavar="NAME",
    help="Copy the points into this new collection.  [default: add the vectors in place, or, where the Qdrant server "
    "is older than 1.18, copy into COLLECTION-complete]",
)
@click.option(
    "--alias", metavar="NAME", help="Alias to move to the copy when it is complete.  [default: COLLECTION, if an alias]"
)
@click.option("--text-key", metavar="KEY", help="Payload key of the text.  [default: that of the collection]")
@click.option(
    "--colbert-pooling",
    type=click.Choice(["none", "mean"]),
    default="none",
    show_default=True,
    help="What to do with more ColBERT rows than Qdrant takes.",
)
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Add vectors to the points of COLLECTION that lack them, embedded from the texts that the points store.

    Payloads and other vectors stay as they are. A point without a text, or with one that cannot be embedded, is named
    and costs no other. If the dense vectors or those of the given kinds are another model's, nothing is changed.

    After an interruption run the same command again; points that have the vectors are not embedded again.

    Exit status: 0 if every point has the vectors, 1 if some could not get them, 2 if the completion could not be
    finished.
    """
    if not options["kinds"]:
        raise click.UsageError("--kinds is required, such as --kinds sparse,colbert")
    configure_logs()
    from service.transports.cli.complete import CompleteOptions, run

    return run(CompleteOptions(as_json=as_json, **options), build)
