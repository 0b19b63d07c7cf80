"""`bge-m3-qdrant precision`: the comparison of `precision.run`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from embedder import ConfigurationError, WorkerError
from precision.run import DTYPES, PASSAGE_LENGTH, QUERY_LENGTH, ComparisonOptions, run
from precision.verdict import INT8, SIXTEEN_BIT
from service.transports.cli.options import CONTEXT, configure_logs, examples, json_option, renamed

_OPTIONS = {"MODEL_ID": "--model", "MODEL_REVISION": "--revision", "DTYPE": "--dtype", "GPU_DEVICE": "--device"}
"""Settings that the embedder's messages name, and the options that stand for them."""

_THRESHOLDS = {
    "dense_cosine": ("--min-dense-cosine", "Every dense cosine must be above X"),
    "colbert_cosine": ("--min-colbert-cosine", "Every ColBERT row's cosine must be above X"),
    "sparse_error": ("--max-sparse-error", "No weight may differ by more than X, as a share of 1"),
    "ndcg_loss": ("--max-ndcg-loss", "nDCG@10 of no kind may fall by more than X, as a share of 1"),
    "overlap": ("--min-overlap", "Minimum mean overlap@10 with your own queries, from 0 to 1"),
}


def _threshold_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for attribute, (name, meaning) in reversed(_THRESHOLDS.items()):
        defaults = f"{getattr(SIXTEEN_BIT, attribute):g}, or {getattr(INT8, attribute):g} for int8 and float8"
        option = click.option(name, attribute, type=float, metavar="X", help=f"{meaning}.  [default: {defaults}]")
        function = option(function)
    return function


@click.command(
    "precision",
    context_settings=CONTEXT,
    epilog=examples(
        "bge-m3-qdrant precision --model mini --dtype float16",
        "bge-m3-qdrant precision --model BAAI/bge-m3 --dtype int8 --passages passages.txt --queries queries.txt",
    ),
)
@click.option(
    "--model", required=True, metavar="NAME", help="`mini`, a directory in the published layout, or a hub name."
)
@click.option("--revision", metavar="COMMIT", help="Commit of a hub model.  [default: the one that the service pins]")
@click.option("--dtype", type=click.Choice(DTYPES), default="auto", show_default=True, help="The type to judge.")
@click.option(
    "--device", metavar="DEVICE,...", help="`cpu`, `cuda:0` or a comma list.  [default: cuda:0 if there is one, or cpu]"
)
@click.option(
    "--passages",
    metavar="FILE",
    help="Your texts in UTF-8, one per line, - for the standard input; blank and repeated lines are left out.  "
    "[default: the bundled corpus with its questions and right answers]",
)
@click.option(
    "--queries",
    metavar="FILE",
    help="Your queries, in the same form; without them the rankings of your passages are not compared.",
)
@click.option(
    "--max-length",
    type=int,
    metavar="N",
    help="Tokens at which texts are cut.  "
    f"[default: passages {PASSAGE_LENGTH}, queries {QUERY_LENGTH}, or the model's limit]",
)
@_threshold_options
@json_option
def command(as_json: bool, **options: Any) -> int:  # noqa: FBT001 - click passes it by name
    """Compare a type with float32 on a checkpoint and texts of yours: cosines, sparse weights, rankings, a verdict.

    The checkpoint is loaded twice, one type after the other, so memory holds one set of weights at a time. Progress is
    logged to the standard error.

    Exit status: 0 if every check passes, 1 if one fails, 2 if the comparison cannot be made.
    """
    thresholds = {name: value for name in _THRESHOLDS if (value := options.pop(name)) is not None}
    configure_logs("INFO")
    try:
        report = run(ComparisonOptions(thresholds=thresholds, **options))
    except (ConfigurationError, WorkerError) as error:
        raise renamed(error, _OPTIONS) from None
    click.echo(report.as_json() if as_json else report.as_text())
    return 0 if report.passed else 1
