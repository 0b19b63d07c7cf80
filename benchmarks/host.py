"""The benchmark of the host: what a request costs beside its model, and beside an older tree.

python -m benchmarks.host                              this tree alone
python -m benchmarks.host --baseline ../old            another checkout of this repository, in turn with this one
python -m benchmarks.host "query, 512 clients"         some cases
python -m benchmarks.host --report docs/benchmarks-host.md --baseline ../old       writes the page anew

Behind a stub engine whose vectors are ready, everything that takes time is the host's. Each side runs in a process of
its own per round; a figure is the median of the rounds, a ratio the median of the rounds' own ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from benchmarks import tokenizer
from benchmarks.machine import hardware, versions
from benchmarks.report import kept_notes
from benchmarks.sections import table
from benchmarks.texts import QUERIES, QUERY_LENGTHS, Writer, mixed_lengths

ROOT: Final = Path(__file__).parents[1]
SIDE: Final = ROOT / "benchmarks" / "host_side.py"
PASSAGES: Final = 2048
EQUALS: Final = 512
EQUAL_TOKENS: Final = 139
ROUNDS: Final = 3

GOALS: Final = {
    "tokens, all outputs": 1_500_000,
    "tokens, all outputs, launched": 1_500_000,
    "tokens, all outputs, 16 jobs": 1_500_000,
    "tokens, all outputs, 16 jobs of both types": 1_500_000,
    "stream, all outputs": 1_500_000,
    "tokens, dense + sparse": 5_000_000,
    "tokens, dense + sparse, launched": 5_000_000,
    "tokens, dense + sparse, 16 jobs": 5_000_000,
    "stream, dense + sparse": 5_000_000,
}
"""Tokens per second of the host alone, from tokenized texts to their results, by case."""

ON_THE_PAGE: Final = (
    *GOALS,
    "tokenizer",
    "request, all outputs",
    "request, dense + sparse",
    "job, 512 passages, base64",
    "stages, all outputs",
    "stages, dense + sparse",
)
"""Cases of the page."""

Figures = Mapping[str, Mapping[str, float]]
"""Figures by case and by name of the figure."""


def main() -> int:
    """Measure, and print a table."""
    options = _parse()
    cases = options.cases or (ON_THE_PAGE if options.report else ())
    new: list[Figures] = []
    old: list[Figures] = []
    with tempfile.TemporaryDirectory() as directory:
        task = Path(directory) / "task.json"
        checkpoint = options.checkpoint or tokenizer.made(Path(directory) / "tokenizer")
        task.write_text(json.dumps(_texts(checkpoint)), encoding="utf-8")
        for _ in range(options.rounds):
            if options.baseline:
                old.append(_measured(options.baseline, task, cases))
            new.append(_measured(ROOT, task, cases))
        origin = tokenizer.name_of(checkpoint)
    print(_rendered(old, new))
    if options.report:
        revision = _revision(options.baseline) if options.baseline else ""
        options.report.write_text(_page(options.report, _rendered(old, new), revision, origin), encoding="utf-8")
    return 0


def _page(report: Path, figures: str, baseline: str, origin: str) -> str:
    """The page as Markdown, with the notes that it has."""
    machine = {**hardware(), **versions("torch", "numpy", "tokenizers", "pybase64")}
    rows = "\n".join(f"| {name} | {value} |" for name, value in machine.items())
    old = f" Old: `{baseline}`, in turn with this tree." if baseline else ""
    parts = [
        "# Benchmarks of the host",
        f"Made by `python -m benchmarks.host --report` on {datetime.now(UTC).date()}.{old} Tokenizer: {origin}.",
        kept_notes(report),
        f"## Figures\n\n{figures}",
        f"## Machine\n\n| | |\n|---|---|\n{rows}",
    ]
    return "\n\n".join(parts) + "\n"


def _revision(tree: Path) -> str:
    """The revision of a checkout; "another tree" where git knows none."""
    command = ["git", "-C", str(tree), "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout.strip() or "another tree"


def _texts(checkpoint: Path) -> dict[str, object]:
    """Queries and passages of random words."""
    writer = Writer(checkpoint / "tokenizer.json", seed=0)
    lengths = mixed_lengths()
    return {
        "queries": [writer.text(QUERY_LENGTHS[n % len(QUERY_LENGTHS)]) for n in range(QUERIES)],
        "passages": [writer.text(lengths[n % len(lengths)]) for n in range(PASSAGES)],
        "equal": [writer.text(EQUAL_TOKENS) for _ in range(EQUALS)],
        "checkpoint": str(checkpoint.resolve()),
    }


def _measured(tree: Path, task: Path, cases: Sequence[str]) -> Figures:
    """One side, in a process of its own. -P: the folder of the program is not searched for modules."""
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    command = [sys.executable, "-P", str(SIDE), str(task), *cases]
    done = subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def _rendered(old: Sequence[Figures], new: Sequence[Figures]) -> str:
    rows = []
    for case, figures in new[0].items():
        for figure in figures:
            after = [side[case][figure] for side in new]
            before = [side[case][figure] for side in old]
            ratios = [one / other for one, other in zip(before, after, strict=bool(old))]
            cells = [_number(statistics.median(values)) if values else "" for values in (before, after, ratios)]
            goal = GOALS.get(case) if figure == "tokens/s" else None
            verdict = "" if goal is None else "met" if statistics.median(after) >= goal else "missed"
            rows.append((case, figure, *cells, "" if goal is None else f"{goal:,}", verdict))
    return table(("case", "figure", "old", "new", "old / new", "goal", ""), rows, words=2)


def _number(value: float) -> str:
    """Three digits, and no fewer than a whole number has."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", help="all of them by default; of the page, its own")
    parser.add_argument("--report", type=Path, help="a page to write the figures to, whose notes are kept")
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--checkpoint", type=Path, help="whose tokenizer is used; XLM-RoBERTa's by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
