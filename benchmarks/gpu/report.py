"""The page of the GPU, from raw results: `python -m benchmarks.gpu.report DIR` writes it again, on any machine.

Without a directory the page shows the dated baseline and what is not measured yet. What stands between
`<!-- notes -->` and `<!-- /notes -->` is written by hand and stays.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from benchmarks.gpu import baseline, tables
from benchmarks.gpu.results import Results
from benchmarks.report import kept_notes

REPORT = Path(__file__).parents[2] / "docs" / "benchmarks-gpu.md"


def write_report(directory: Path | None, report: Path) -> None:
    """The tables as `report` and the plots beside it as `.svg`, from the JSON files of a directory."""
    results = Results.read(directory)
    picture = report.with_suffix(".svg")
    report.parent.mkdir(parents=True, exist_ok=True)
    drawn = _draw(results, picture)
    text = render(results, notes=kept_notes(report), picture=picture.name if drawn else "")
    report.write_text(text, encoding="utf-8")


def render(results: Results, *, notes: str, picture: str) -> str:
    """The page as Markdown.

    Args:
        results: of a run; sections may be missing.
        notes: the section written by hand, markers included.
        picture: file name of the plots; empty if there are none.
    """
    parts = [
        "# Benchmarks on a GPU",
        _opening(results),
        notes,
        tables.goals(results),
        f"![Share of the ceiling, passages, queries by clients, a query beside passages]({picture})" if picture else "",
        tables.ceilings(results),
        tables.engine(results),
        tables.small(results),
        tables.profile(results),
        tables.float8(results),
        tables.embedder(results),
        tables.queries(results),
        tables.handler(results),
        tables.memory(results),
        tables.machine(results),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _opening(results: Results) -> str:
    before = (
        f"*Before* is the code of {baseline.DATE} on one {baseline.GPU}: the baseline of the work on the GPU path. It"
        " ran passages and queries with 1 and with 4 worker threads (lanes)."
    )
    if not results.rows("machine"):
        return f'{before} *Now* is {tables.NOT_MEASURED}: `make bench ARGS="--device cuda:0"` fills it in.'
    warning = ""
    if results.fact("quick") == "yes" or not results.fact("GPU"):
        warning = "**A small checkpoint or no GPU: it shows that everything runs; its figures mean little.**\n\n"
    gpu = results.fact("GPU") or results.fact("device")
    caution = "" if gpu == baseline.GPU or warning else f" That is another card than this one ({gpu}): compare shares."
    return (
        f'{warning}*Now* was made by `make bench ARGS="--device {results.fact("device")}"` on {results.fact("date")},'
        f" one {gpu}, matrix products in {results.fact('type')}, {results.fact('checkpoint')},"
        f" tokenizer: {results.fact('tokenizer')}."
        f" {before}{caution}\n\n"
        "p50 is the median, p95 the value at the nearest rank. Compare ratios rather than times: machines differ."
    )


def _draw(results: Results, path: Path) -> bool:
    if find_spec("matplotlib") is None:
        print("matplotlib is not installed: no plots")
        return False
    from benchmarks.gpu.plot import draw

    draw(results, path)
    return True


def main() -> None:
    """Write the page of a directory of results, or that of the baseline."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("directory", type=Path, nargs="?", help="of the raw results; default: the baseline alone")
    parser.add_argument("--report", type=Path, default=REPORT)
    options = parser.parse_args()
    write_report(options.directory, options.report)
    print(options.report)


if __name__ == "__main__":
    main()
