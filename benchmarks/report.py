"""The report, from the raw results: `python -m benchmarks.report build/bench` writes it again.

What stands between `<!-- notes -->` and `<!-- /notes -->` is written by hand and stays.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from benchmarks import sections
from benchmarks.plan import ENTRIES
from benchmarks.results import Result, Run, read_result, read_run

REPORT = Path(__file__).parents[1] / "docs" / "benchmarks.md"
_NOTES = re.compile(r"<!-- notes -->.*?<!-- /notes -->", re.DOTALL)
_NO_NOTES = "<!-- notes -->\n<!-- /notes -->"


def write_report(directory: Path, report: Path) -> None:
    """The tables as `report` and the plots beside it as `.svg`, from the JSON files of a directory."""
    run, results = read(directory)
    picture = report.with_suffix(".svg")
    report.parent.mkdir(parents=True, exist_ok=True)
    drawn = _draw(run, results, picture)
    text = render(run, results, notes=kept_notes(report), picture=picture.name if drawn else "")
    report.write_text(text, encoding="utf-8")


def kept_notes(report: Path) -> str:
    """The section of a report that is written by hand, markers included; an empty one if it has none."""
    notes = _NOTES.search(report.read_text(encoding="utf-8")) if report.is_file() else None
    return notes[0] if notes else _NO_NOTES


def read(directory: Path) -> tuple[Run, dict[str, Result]]:
    """The run and its results, in the order of the plan."""
    found = {name: directory / f"{name}.json" for name in ENTRIES}
    return read_run(directory), {name: read_result(path) for name, path in found.items() if path.is_file()}


def render(run: Run, results: Mapping[str, Result], *, notes: str, picture: str) -> str:
    """The report as Markdown.

    Args:
        run: what the results share.
        results: by name; contenders may be missing.
        notes: the section written by hand, markers included.
        picture: file name of the plots; empty if there are none.
    """
    parts = [
        "# Benchmarks",
        _opening(run),
        notes,
        sections.machine(run, results),
        sections.targets(run, results),
        f"![Ratios, throughput by concurrency, growth of time and the lengths of the mixed passages]({picture})"
        if picture
        else "",
        sections.contenders(run, results),
        sections.queries(run, results),
        sections.passages(run, results),
        sections.beside(run, results),
        sections.startup(run, results),
        sections.memory(run, results),
        sections.growth(run, results),
        sections.lengths(run),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(run: Run) -> str:
    size = (
        f"{run.model['parameters'] / 1e6:.0f} M parameters, {run.model['linear'] / 1e6:.0f} M of them in linear layers"
    )
    warning = (
        "**A quick run: a small checkpoint and short limits. It shows that everything runs;"
        " its figures mean little.**\n\n"
        if run.quick
        else ""
    )
    gpu = " Figures of a GPU stand in [benchmarks-gpu.md](benchmarks-gpu.md)."
    return (
        f"{warning}Made by `make bench` on {run.date[:10]}: a checkpoint in the layout of BAAI/bge-m3 with {size},"
        " the same texts for everyone, one contender after the other, each in a process of its own."
        f"{gpu}\n\n"
        "p50 is the median call; p95 the call at the nearest rank, so with few calls the slowest; n the number of"
        " calls. Ratios of times compare medians. Requests ask for dense, sparse and ColBERT vectors unless said"
        " otherwise."
    )


def _draw(run: Run, results: Mapping[str, Result], path: Path) -> bool:
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no plots")
        return False
    from benchmarks.plot import draw

    draw(run, results, path)
    return True


def main() -> None:
    """Write the report of a directory of results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path, help="of the raw results")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    write_report(options.directory, options.report)
    print(options.report)


if __name__ == "__main__":
    main()
