"""Compare a type with float32 on a checkpoint and texts of one's own.

The checkpoint is loaded twice, one type after the other, so memory holds one set of weights at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from embedder import ModelOptions
from embedder.checkpoint import EncoderConfig, find_checkpoint
from embedder.errors import ConfigurationError
from embedder.tokenizer import Tokenizer
from precision.comparison import Lengths, compare, embed
from precision.report import Report
from precision.sample import fitting, read
from precision.verdict import described, judge, thresholds_for

DTYPES = ("auto", "float32", "bfloat16", "float16", "int8", "float8")
PASSAGE_LENGTH = 8192
QUERY_LENGTH = 512
"""Tokens at which the service cuts by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonOptions:
    """What to compare.

    Attributes:
        model: `mini`, a directory in the published layout, or a hub name.
        revision: commit of a hub model; None for the one that the service pins.
        dtype: the type to judge.
        device: `cpu`, `cuda:0` or a comma list; None for `cuda:0` if there is one, else the CPU.
        passages: path of the passages, `-` for the standard input; None for the bundled corpus.
        queries: path of the queries, likewise.
        max_length: tokens at which texts are cut; None for the defaults of the service.
        thresholds: fields of `Thresholds` that replace the defaults of the type.
    """

    model: str
    revision: str | None = None
    dtype: str = "auto"
    device: str | None = None
    passages: str | None = None
    queries: str | None = None
    max_length: int | None = None
    thresholds: Mapping[str, float] = field(default_factory=dict)


def run(options: ComparisonOptions) -> Report:
    """Make the comparison. Blocks for seconds to minutes.

    Raises:
        ConfigurationError: it cannot be made; the message names the argument or the setting it stands for.
        WorkerError: the device failed.
    """
    sample = read(options.passages, options.queries)
    checkpoint = find_checkpoint(options.model, options.revision)
    lengths = _lengths(options.max_length, EncoderConfig.read(checkpoint).max_length)
    sample = fitting(sample, Tokenizer(checkpoint), passage_length=lengths.passage, query_length=lengths.query)

    from embedder.engines.devices import choose_devices, choose_dtype  # after the cheap refusals: it imports torch

    devices = choose_devices(options.device)
    dtype = choose_dtype(options.dtype, devices[0])
    model = ModelOptions(options.model, options.revision, dtype=dtype, device=",".join(devices))
    judged = embed(sample, model, lengths)  # first: a type that cannot run here is refused before float32 has run
    exact = embed(sample, replace(model, dtype="float32"), lengths)
    comparison = compare(exact, judged, sample.answers, types=("float32", dtype))
    thresholds = replace(thresholds_for(dtype), **options.thresholds)
    return Report(
        model=options.model,
        engine=model.engine,
        device=model.device or "",
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
