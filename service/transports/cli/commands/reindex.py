"""`bge-m3-qdrant reindex`: a collection copied into a new one with another schema."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from service.transports.cli.options import CONTEXT, KINDS, configure_logs, examples, json_option, kinds_option


def _names(_ctx: click.Context, _param: click.Parameter, value: Sequence[str]) -> Mapping[str, str]:
    """The names of vectors by kind."""
    result: dict[str, str] = {}
    for word in value:
        kind, equals, name = word.partition("=")
        if kind not in KINDS or not equals:
            raise click.BadParameter(f"{word!r} must be KIND=NAME with one of {', '.join(KINDS)}")
        if kind in result:
            raise click.BadParameter(f"{kind} is named twice")
        result[kind] = name
    return result


@click.command(
    "reindex",
    context_settings=CONTEXT,
    epilog=examples(
        """bge-m3-qdrant reindex notes notes-v2 --config '{"dense": {"quantization": "int8"}}'""",
        "bge-m3-qdrant reindex notes-v1 notes-v2 --embed dense,sparse,colbert --alias notes",
        "bge-m3-qdrant reindex notes-v1 notes-v2 --alias notes --back",
        "bge-m3-qdrant reindex notes-v1 notes-v2 --drop-old",
    ),
)
@click.argument("collection", metavar="FROM")
@click.argument("into", metavar="TO")
@click.option(
    "--config",
    metavar="JSON|FILE",
    help="Collection config of TO. Fields that it leaves out are those of FROM.  [default: QDRANT_COLLECTION_CONFIG]",
)
@kinds_option("--kinds", default="those of FROM and of --embed", help="Kinds of vectors of TO")
@kinds_option("--embed", default="none; all are copied", help="Kinds to embed anew from the stored texts")
@click.option(
    "--vector",
    "vectors",
    metavar="KIND=NAME",
    multiple=True,
    callback=_names,
    help="Name of a vector of FROM to copy, where several could be meant.",
)
@click.option("--alias", metavar="NAME", help="Alias to move to TO when it is complete.  [default: FROM, if an alias]")
@click.option("--text-key", metavar="KEY", help="Payload key of the text.  [default: that of FROM]")
@click.option(
    "--colbert-pooling",
    type=click.Choice(["none", "mean"]),
    default="none",
    show_default=True,
    help="What to do with more ColBERT rows than Qdrant takes.",
)
@click.option("--allow-rejected", is_flag=True, help="Move the alias even if points could not be copied.")
@click.option("--allow-empty", is_flag=True, help="Move the alias even from points to a collection without any.")
@click.option("--prune", is_flag=True, help="Delete points from TO that FROM does not have any more.")
@click.option("--again", is_flag=True, help="Copy what TO lacks although the alias leads there already.")
@click.option(
    "--from-path",
    metavar="DIR",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="FROM is in the embedded store of this directory.  [default: the store of the settings]",
)
@click.option("--workers", type=click.IntRange(1, 64), default=4, show_default=True, help="Threads that copy.")
@click.option("--back", is_flag=True, help="Move the alias from TO back to FROM, and do nothing else.")
@click.option("--drop-old", is_flag=True, help="Delete FROM, and do nothing else.")
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Copy the points of FROM into the new collection TO, with their ids, payloads and stored vectors.

    TO has the schema of the collection config. A kind in --embed is embedded anew from the text of each point, for
    another model or because FROM lacks it; only then the model is loaded. FROM stays as it is.

    When TO has all points, its graph is built, and the alias moves once. Stop other writers before that: points that
    are added during the copy are copied too, later changes of copied points are not. After an interruption run the
    same command again; points that TO has are not copied again.

    Exit status: 0 if TO has exactly the points of FROM, 1 if points are missing, surplus or without a text, 2 if the
    copy could not be finished.
    """
    if options["back"] and options["drop_old"]:
        raise click.UsageError("--back and --drop-old exclude each other")
    if options["back"] and not options["alias"]:
        raise click.UsageError("--back needs --alias, the name that is to lead to FROM again")
    configure_logs()
    from service.transports.cli.reindex import ReindexOptions, run

    return run(ReindexOptions(as_json=as_json, **options), build)
