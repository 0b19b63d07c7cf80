"""`bge-m3-qdrant plan`: sizes, servers, GPU hours and costs of a collection that does not exist yet."""

from __future__ import annotations

import math
import re
from typing import Any, Final

import click

from service.transports.cli.file_options import check_chunks, chunk_options, files_argument, reading_options
from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, kinds_option

_STORAGE_TYPES: Final = ("float32", "float16", "uint8", "turbo4")
"""`service.planning.stored_vectors.STORAGE_TYPES`, whose import would make `--help` wait for numpy."""

_QUANTIZED_TYPES: Final = ("none", "int8", "binary", "product-x16", "turbo4", "turbo2", "turbo1")
"""`service.planning.stored_vectors.QUANTIZED_TYPES`."""

_UNITS: Final = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9}

PASSAGES_MAX: Final = 10**12
"""Maximum number of passages."""


class Count(click.ParamType[int]):
    """A number such as 250000, 50M or 1.5B."""

    name = "count"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number, from 1 to `PASSAGES_MAX`."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,9})?)([kmbg]?)", value.strip().lower().replace("_", ""), re.ASCII)
        if match is None:
            self.fail(f"{value!r} is not a number such as 250000, 50M or 1.5B", param, ctx)
        count = round(float(match[1]) * _UNITS[match[2]])
        if not 1 <= count <= PASSAGES_MAX:
            self.fail(f"{value!r} must be from 1 to {PASSAGES_MAX}", param, ctx)
        return count


class FiniteRange(click.FloatRange):
    """A number in a range, which NaN is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value} must be a finite number", param, ctx)
        return number


@click.command(
    "plan",
    context_settings=CONTEXT,
    epilog=examples(
        "bge-m3-qdrant plan --passages 50M --tokens 512",
        "bge-m3-qdrant plan --passages 50M --tokens 512 --vectors dense,sparse --quantization int8 --gpus 4",
        "MODEL_ID=mini bge-m3-qdrant plan passages.jsonl --chunk-tokens 512",
    ),
)
@files_argument
@click.option("--passages", type=Count(), metavar="N", help="Number of passages: 250000, 50M, 1B.  [default: of files]")
@click.option(
    "--tokens",
    type=FiniteRange(2, 8192),
    metavar="N",
    help="Mean tokens of a passage, from 2 to 8192.  [default: of files]",
)
@click.option(
    "--text-bytes",
    type=FiniteRange(0, 10**8),
    metavar="N",
    help="Mean bytes of a text in UTF-8.  [default: of files, or 4.25 per token]",
)
@click.option(
    "--payload-bytes",
    type=FiniteRange(0, 10**8),
    metavar="N",
    help="Mean bytes of the rest of a payload as JSON.  [default: of files, or 0]",
)
@kinds_option("--vectors", default="those of the collection config", help="Kinds of vectors to store")
@click.option(
    "--datatype",
    type=click.Choice(_STORAGE_TYPES),
    help="Storage type of dense vectors.  [default: of the collection config]",
)
@click.option(
    "--quantization",
    type=click.Choice(_QUANTIZED_TYPES),
    help="Quantized copy of dense vectors, in RAM.  [default: of the collection config]",
)
@click.option("--on-disk/--in-ram", "on_disk", default=None, help="Where the dense vectors themselves are.")
@click.option(
    "--colbert-datatype",
    type=click.Choice(_STORAGE_TYPES),
    help="Storage type of ColBERT rows.  [default: of the collection config]",
)
@click.option(
    "--colbert-quantization",
    type=click.Choice(_QUANTIZED_TYPES),
    help="Quantized copy of ColBERT rows, in RAM.  [default: of the collection config]",
)
@click.option(
    "--colbert-pooling",
    type=click.IntRange(1, 1023),
    default=1,
    show_default=True,
    metavar="N",
    help="Neighbouring ColBERT rows that are averaged into one.",
)
@click.option(
    "--gpus", type=click.IntRange(1, 100_000), default=1, show_default=True, metavar="N", help="Number of GPUs."
)
@click.option(
    "--tokens-per-s",
    type=FiniteRange(1, 10**9),
    metavar="N",
    help="Tokens/s of one GPU.  [default: measured on an NVIDIA H200]",
)
@click.option(
    "--node-ram-gb",
    type=FiniteRange(1, 10**6),
    default=64,
    show_default=True,
    metavar="GB",
    help="RAM of a node of the server.",
)
@click.option(
    "--node-disk-gb",
    type=FiniteRange(1, 10**7),
    default=2000,
    show_default=True,
    metavar="GB",
    help="Disk of a node of the server.",
)
@click.option("--gpu-hour-price", type=FiniteRange(0), metavar="PRICE", help="Price of one GPU hour.")
@click.option("--ram-gb-month-price", type=FiniteRange(0), metavar="PRICE", help="Price of 1 GB of RAM for a month.")
@click.option("--disk-gb-month-price", type=FiniteRange(0), metavar="PRICE", help="Price of 1 GB of disk for a month.")
@chunk_options
@click.option(
    "--sample-mb",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    metavar="MB",
    help="Megabytes that are read of files.",
)
@reading_options
@json_option
def command(as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Plan a collection: bytes per passage, RAM and disk of the server, nodes and shards, GPU hours, network, costs.

    --passages and --tokens say what is to be stored, or FILEs do, which are read as `bulk` reads them: the beginning of
    each, of which some documents are tokenized by the tokenizer of MODEL_ID, without the model. The schema is that of
    QDRANT_COLLECTION_CONFIG, or of the options here. Nothing is stored, and no server is asked.

    Figures come from measurements that docs/planning.md shows. Prices are yours: costs are shown for those you give.

    Exit status: 0, or 2 if there is nothing to plan or a file is wrong.
    """
    check_chunks(options)
    if options["chunk_tokens"] is not None and not options["files"]:
        raise click.UsageError("--chunk-tokens needs files; without them --tokens is the length of a chunk")
    configure_logs()
    from service.transports.cli.plan import PlanOptions, run

    return run(PlanOptions(as_json=as_json, **options))
