"""`bge-m3-qdrant embed`: files into vectors in Parquet files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from service.transports.cli.file_options import (
    check_chunks,
    chunk_options,
    files_argument,
    pooling_option,
    reading_options,
    rejection_options,
)
from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option


@click.command(
    "embed",
    context_settings=CONTEXT,
    epilog=examples(
        "MODEL_ID=mini bge-m3-qdrant embed passages.jsonl --out vectors",
        "bge-m3-qdrant embed dumps/ --out vectors --vectors dense,sparse --chunk-tokens 512 --dtype float16",
    ),
)
@files_argument
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    metavar="DIR",
    help="Folder of the parts, part-00000.parquet and so on; created if it does not exist.",
)
@kinds_option("--vectors", default="dense,sparse,colbert", help="Kinds of vectors to compute")
@click.option(
    "--dtype",
    type=click.Choice(["float16", "float32"]),
    default="float32",
    show_default=True,
    help="Type of the numbers of dense and ColBERT vectors.",
)
@click.option(
    "--part-mb",
    type=click.FloatRange(min=0, min_open=True, max=100_000),
    default=256.0,
    show_default=True,
    metavar="N",
    help="Size of a part in megabytes, beyond which the next line begins another one.",
)
@chunk_options
@pooling_option
@rejection_options
@reading_options
@json_option
@click.pass_obj
def command(build: Any, /, as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Embed each FILE into Parquet files in DIR; without a FILE, or with -, the standard input.

    FILEs, their formats and fields are those of `bulk`. Each row of the parts has the id, the text, the payload and the
    vectors of a text or of a chunk. `bulk --vectors-in DIR` loads them without a model.

    After an interruption run the same command again: it goes on after the last part that is whole. An input or options
    that have changed since then are refused.

    Exit status: 0 if every line is embedded, 1 if some were rejected, 2 if the run could not be finished.
    """
    check_chunks(options)
    configure_logs()
    from service.transports.cli.embed import EmbedOptions, run

    return run(EmbedOptions(as_json=as_json, **options), build)
