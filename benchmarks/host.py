"""The benchmark of the host: what a request costs beside its model, and beside an older tree.

python -m benchmarks.host                              this tree alone
python -m benchmarks.host --baseline ../old            another checkout of this repository, in turn with this one
python -m benchmarks.host "query, 512 clients"         some cases; --help lists them

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
from pathlib import Path
from typing import Final

from benchmarks import tokenizer
from benchmarks.sections import table
from benchmarks.texts import QUERIES, QUERY_LENGTHS, Writer, mixed_lengths

ROOT: Final = Path(__file__).parents[1]
SIDE: Final = ROOT / "benchmarks" / "host_side.py"
PASSAGES: Final = 2048
EQUALS: Final = 512
EQUAL_TOKENS: Final = 139
ROUNDS: Final = 3

Figures = Mapping[str, Mapping[str, float]]
"""Figures by case and by name of the figure."""


def main() -> int:
    """Measure, and print a table."""
    options = _parse()
    new: list[Figures] = []
    old: list[Figures] = []
    with tempfile.TemporaryDirectory() as directory:
        task = Path(directory) / "task.json"
        checkpoint = options.checkpoint or tokenizer.made(Path(directory) / "tokenizer")
        task.write_text(json.dumps(_texts(checkpoint)), encoding="utf-8")
        for _ in range(options.rounds):
            if options.baseline:
                old.append(_measured(options.baseline, task, options.cases))
            new.append(_measured(ROOT, task, options.cases))
    print(_rendered(old, new))
    return 0


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
            cells = [f"{statistics.median(values):,.6g}" if values else "" for values in (before, after, ratios)]
            rows.append((case, figure, *cells))
    return table(("case", "figure", "old", "new", "old / new"), rows, words=2)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.host", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("cases", nargs="*", help="all of them by default")
    parser.add_argument("--baseline", type=Path, help="another checkout of this repository")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--checkpoint", type=Path, help="whose tokenizer is used; XLM-RoBERTa's by default")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
