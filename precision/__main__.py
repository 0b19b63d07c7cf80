"""Compare a type with float32 on a checkpoint and texts of one's own, and print a verdict.

The checkpoint is loaded twice, one type after the other, so memory holds one set of weights at a time.
The exit status is 0 if every check passes, 1 if one fails and 2 if the comparison cannot be made.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import replace

from embedder import ModelOptions
from embedder.checkpoint import EncoderConfig, find_checkpoint
from embedder.errors import ConfigurationError, WorkerError
from embedder.tokenizer import Tokenizer
from precision.comparison import Lengths, compare, embed
from precision.report import Report
from precision.sample import fitting, read
from precision.verdict import INT8, SIXTEEN_BIT, Thresholds, described, judge, thresholds_for

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "float8")
PASSAGE_LENGTH = 8192
QUERY_LENGTH = 512
"""Tokens at which the service cuts by default."""
_ARGUMENTS = {
    "MODEL_ID": "--model",
    "MODEL_REVISION": "--revision",
    "DTYPE": "--dtype",
    "GPU_DEVICE": "--device",
}
"""The embedder's messages name settings of the service; this command has arguments in their place."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command.

    Args:
        arguments: those of the command line; None takes the process's own.

    Returns:
        The exit status.
    """
    parser = _parser()
    given = parser.parse_args(arguments)
    try:
        report = run(given)
    except (ConfigurationError, WorkerError) as error:
        message = str(error)
        for setting, argument in _ARGUMENTS.items():
            message = message.replace(setting, argument)
        sys.stderr.write(f"{parser.prog}: {message}\n")
        return 2
    sys.stdout.write((report.as_json() if given.json else report.as_text()) + "\n")
    return 0 if report.passed else 1


def run(given: argparse.Namespace) -> Report:
    """Make the comparison that the parsed arguments ask for. Blocks for seconds to minutes.

    Raises:
        ConfigurationError: it cannot be made; the message names the argument or the setting it stands for.
        WorkerError: the device failed.
    """
    sample = read(given.passages, given.queries)
    checkpoint = find_checkpoint(given.model, given.revision)
    lengths = _lengths(given.max_length, EncoderConfig.read(checkpoint).max_length)
    sample = fitting(sample, Tokenizer(checkpoint), passage_length=lengths.passage, query_length=lengths.query)

    from embedder.engines.devices import choose_devices, choose_dtype  # after the cheap refusals: it imports torch

    devices = choose_devices(given.device)
    dtype = choose_dtype(given.dtype, devices[0])
    options = ModelOptions(given.model, given.revision, dtype=dtype, device=",".join(devices))
    judged = embed(sample, options, lengths)  # first: a type that cannot run here is refused before float32 has run
    exact = embed(sample, replace(options, dtype="float32"), lengths)
    comparison = compare(exact, judged, sample.answers, types=("float32", dtype))
    thresholds = _thresholds(given, dtype)
    return Report(
        model=given.model,
        engine=options.engine,
        device=options.device or "",
        dtype=dtype,
        texts="the bundled corpus" if sample.answers is not None else "your files",
        lengths=lengths,
        limits=described(dtype, thresholds),
        thresholds=thresholds,
        comparison=comparison,
        checks=judge(comparison, thresholds),
    )


def _lengths(asked: int | None, limit: int) -> Lengths:
    if asked is None:
        return Lengths(passage=min(PASSAGE_LENGTH, limit), query=min(QUERY_LENGTH, limit))
    if not 3 <= asked <= limit:
        raise ConfigurationError(f"--max-length: must be from 3 to the model's {limit}, got {asked}")
    return Lengths(passage=asked, query=asked)


def _thresholds(given: argparse.Namespace, dtype: str) -> Thresholds:
    chosen = {
        "dense_cosine": given.dense_cosine,
        "colbert_cosine": given.colbert_cosine,
        "sparse_error": given.sparse_error,
        "ndcg_loss": given.ndcg_loss,
        "overlap": given.overlap,
    }
    return replace(thresholds_for(dtype), **{name: value for name, value in chosen.items() if value is not None})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m precision", description=__doc__)
    parser.add_argument("--model", required=True, help="`mini`, a directory in the published layout, or a hub name")
    parser.add_argument("--revision", help="commit of a hub model (default: the one the service pins)")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="the type to judge (default: auto)")
    parser.add_argument("--device", help="cpu, cuda:0 or a comma list (default: cuda:0 if there is one, else cpu)")
    parser.add_argument(
        "--passages",
        metavar="FILE",
        help="your texts, UTF-8, one per line, - for the standard input; blank and repeated lines are left out "
        "(default: the bundled corpus with its questions and right answers)",
    )
    parser.add_argument(
        "--queries",
        metavar="FILE",
        help="your queries, in the same form; without them the rankings of your passages are not compared",
    )
    parser.add_argument(
        "--max-length",
        type=int,
        metavar="N",
        help=f"tokens at which texts are cut (default: passages {PASSAGE_LENGTH}, queries {QUERY_LENGTH}, "
        "or the model's limit)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    limits = parser.add_argument_group("thresholds", "defaults: of 16-bit types / of int8 and float8")
    for flag, attribute, meaning in (
        ("--min-dense-cosine", "dense_cosine", "every dense cosine is above it"),
        ("--min-colbert-cosine", "colbert_cosine", "every ColBERT row's cosine is above it"),
        ("--max-sparse-error", "sparse_error", "no weight's error, as a share of 1, is above it"),
        ("--max-ndcg-loss", "ndcg_loss", "nDCG@10 of no kind falls by a larger share of 1"),
        ("--min-overlap", "overlap", "mean overlap@10 with your own queries, from 0 to 1"),
    ):
        defaults = f"{getattr(SIXTEEN_BIT, attribute):g} / {getattr(INT8, attribute):g}"
        limits.add_argument(flag, dest=attribute, type=float, metavar="X", help=f"{meaning} ({defaults})")
    return parser


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, format="%(message)s", level=logging.WARNING)
    for package in ("embedder", "precision"):
        logging.getLogger(package).setLevel(logging.INFO)
    try:
        status = main()
    except KeyboardInterrupt:
        os._exit(130)  # not by the interpreter's own end, which aborts while a thread is inside torch
    sys.exit(status)
