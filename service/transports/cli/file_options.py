"""The options of the commands that read files: which files, how they are read and cut, and where rejections go."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import click

_Function = TypeVar("_Function", bound=Callable[..., Any])

FORMATS: Final = ("jsonl", "json", "csv", "tsv", "parquet", "arrow", "text", "markdown", "html", "pdf")
"""`service.bulk.formats.FORMATS`, whose import would make `--help` wait for numpy."""


def _encoding(_ctx: click.Context, _param: click.Parameter, value: str | None) -> str | None:
    from service.bulk.text_encoding import is_text_encoding

    if value is not None and not is_text_encoding(value):
        raise click.BadParameter(f"{value!r} is unknown; name an encoding of Python, such as latin-1 or utf-16")
    return value


def _names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",")) if value else ()


_CHUNKS: Final = (
    click.option(
        "--chunk-tokens",
        type=int,
        metavar="N",
        help="Cut texts into chunks of at most N tokens.  [default: no]",
    ),
    click.option("--chunk-overlap", type=int, metavar="N", help="Tokens that a chunk repeats of the previous one."),
)

_POOLING: Final = (
    click.option(
        "--colbert-pooling",
        type=click.Choice(["none", "mean"]),
        default="none",
        show_default=True,
        help="What to do with more ColBERT rows than Qdrant takes.",
    ),
)

_REJECTIONS: Final = (
    click.option(
        "--rejects",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write to FILE why each line was rejected: file, number, code, message.",
    ),
    click.option(
        "--rejected-lines",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Write the rejected lines to FILE as JSON Lines, to correct and to load again.",
    ),
)

_READING: Final = (
    click.option(
        "--format",
        type=click.Choice(FORMATS),
        help="Format of all files.  [default: that of each name, or of the first bytes]",
    ),
    click.option(
        "--encoding",
        callback=_encoding,
        metavar="NAME",
        help="Encoding of text.  [default: that of a byte order mark, or UTF-8]",
    ),
    click.option("--id-field", metavar="FIELD", help="Field of the id.  [default: id]"),
    click.option(
        "--text-field",
        "text_fields",
        multiple=True,
        metavar="FIELD",
        help="Field of the text; several are joined by line breaks.  [default: text]",
    ),
    click.option(
        "--payload-fields",
        callback=_names,
        metavar="FIELD,...",
        help="Fields of the payload.  [default: all others]",
    ),
    click.option(
        "--columns",
        callback=_names,
        metavar="NAME,...",
        help="Names of the columns of CSV and TSV files whose first line is a row already.",
    ),
)

files_argument = click.argument("files", nargs=-1, metavar="[FILE...]")


def chunk_options(function: _Function) -> _Function:
    """Add the options that cut texts."""
    return _with(_CHUNKS, function)


def pooling_option(function: _Function) -> _Function:
    """Add the option for texts with more ColBERT rows than a point may have."""
    return _with(_POOLING, function)


def reading_options(function: _Function) -> _Function:
    """Add the options that say how files are read."""
    return _with(_READING, function)


def rejection_options(function: _Function) -> _Function:
    """Add the options that say where rejections go."""
    return _with(_REJECTIONS, function)


def check_chunks(options: Mapping[str, Any]) -> None:
    """Raise UsageError for an overlap of no chunks."""
    if options["chunk_overlap"] is not None and options["chunk_tokens"] is None:
        raise click.UsageError("--chunk-overlap needs --chunk-tokens")


def _with(options: Sequence[Callable[[_Function], _Function]], function: _Function) -> _Function:
    return reduce(lambda decorated, option: option(decorated), reversed(options), function)
