"""The benchmark of the search in Qdrant Edge: what an answer takes, encoding excluded. `make bench-search`.

make bench-search                                about 6 minutes on two cores
make bench-search ARGS="--quick"                 a few seconds; its figures mean little

Each query is timed alone: from the plan to the hits with their payload, in one thread.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from benchmarks.collections import QUERY_ROWS, QUERY_WEIGHTS, WEIGHTS, Shape, points, queries
from benchmarks.latencies import Case, Latency
from benchmarks.machine import hardware, versions
from benchmarks.report import kept_notes
from benchmarks.sections import table
from qdrant_sink import Search, run
from qdrant_sink.edge import EdgeStore
from service.collection_config import CollectionConfig

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks-search.md"
COLLECTION = "search"
BATCH, WARM_UP, TIMED = 500, 20, 200
HYBRID, RERANK, DEEP, GROUPS = "hybrid", "reranked, 50 per branch", "reranked, 100 per branch", "hybrid by document"
WAYS: Final[Mapping[str, Mapping[str, Any]]] = {
    "dense": {"using": ("dense",)},
    "sparse": {"using": ("sparse",)},
    HYBRID: {},
    RERANK: {"rerank": "colbert", "prefetch": 50},
    DEEP: {"rerank": "colbert"},
    GROUPS: {"group_by": "doc_id"},
}
"""Options of a search (`SearchOptions`) by its name; the rest are the defaults: 10 hits, 100 candidates per branch."""


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report says: date as ISO 8601, the cases with goals, those of growing size, the machine."""

    date: str
    quick: bool
    cases: Sequence[Case]
    growth: Sequence[Case]
    machine: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A collection to measure, and its goals."""

    name: str
    shape: Shape
    goals: Mapping[str, float]
    graph: bool = False


CASES: Final = (
    Wanted("the miniature", Shape(10_000, 192, 40), {HYBRID: 10.0, RERANK: 20.0}),
    Wanted("full size", Shape(2_000, 1024, 64), {RERANK: 15.0}),
)
GROWTH: Final = tuple(Wanted("growth", Shape(size, 192, 8), {}, graph=True) for size in (1_000, 10_000, 100_000))
QUICK_CASES: Final = (Wanted("quick", Shape(300, 32, 4), {HYBRID: 10.0, RERANK: 20.0}),)
QUICK_GROWTH: Final = tuple(Wanted("growth", Shape(size, 32, 4), {}, graph=True) for size in (100, 200))


def main() -> None:
    """Run what the command line asks for."""
    options = _parse()
    found = hardware()
    cases, growth = (QUICK_CASES, QUICK_GROWTH) if options.quick else (CASES, GROWTH)
    timed = 10 if options.quick else TIMED
    findings = Findings(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=options.quick,
        cases=[case for wanted in cases for case in measure(wanted, timed)],
        growth=[case for wanted in growth for case in measure(wanted, timed)],
        machine={**found, **versions("qdrant-edge-py")},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "search.json").write_text(json.dumps(asdict(findings), indent=1), encoding="utf-8")
    report = options.report or (options.out / "benchmarks-search.md" if options.quick else REPORT)
    write_report(findings, report)
    print(report)


def measure(wanted: Wanted, timed: int) -> list[Case]:
    """Fill a collection and search it: as it is and, where it is wanted, with the graph built."""
    print(f"{wanted.name}: {wanted.shape}", flush=True)
    with tempfile.TemporaryDirectory() as root:
        store = EdgeStore(root)
        try:
            store.ensure(COLLECTION, CollectionConfig().schema_for(wanted.shape.size, wanted.shape.size))
            rest = points(wanted.shape)
            while batch := list(itertools.islice(rest, BATCH)):
                store.upsert(COLLECTION, batch)
            cases = [_case(store, wanted, timed, graph=False)]
            if wanted.graph:
                store.optimize(COLLECTION)
                cases.append(_case(store, wanted, timed, graph=True))
            return cases
        finally:
            store.close()


def write_report(findings: Findings, report: Path) -> None:
    """The tables as `report` and the plot beside it as `.svg`; what was written by hand stays."""
    picture = report.with_suffix(".svg")
    report.parent.mkdir(parents=True, exist_ok=True)
    drawn = find_spec("matplotlib") is not None
    if drawn:
        from benchmarks.search_plot import draw

        draw(findings.growth, picture, title=f"{_where(findings)}, {findings.date[:10]}")
    else:
        print("matplotlib is not installed: no plot")
    text = render(findings, notes=kept_notes(report), picture=picture.name if drawn else "")
    report.write_text(text, encoding="utf-8")


def render(findings: Findings, *, notes: str, picture: str) -> str:
    """The report as Markdown.

    Args:
        findings: the figures.
        notes: the section written by hand, markers included.
        picture: file name of the plot; empty without one.
    """
    warning = "**A quick run: it shows that everything runs; its figures mean little.**\n\n" if findings.quick else ""
    growing = findings.growth[0].shape
    intro = (
        f"{warning}Made by `make bench-search` on {findings.date[:10]}; {_where(findings)}. Milliseconds of one query"
        " in Qdrant Edge, from its vectors to ten hits with their payload, one at a time; encoding is excluded. Points"
        f" and queries are drawn at random: dense vectors and rows in clusters, {WEIGHTS} sparse weights per point and"
        f" {QUERY_WEIGHTS} per query on ids as frequent as words (Zipf), {QUERY_ROWS} ColBERT rows per query."
    )
    grown = (
        f"## Growth\n\nPoints of {growing.size} dimensions with {growing.rows} ColBERT rows on the average: fewer than"
        " texts have, so that the largest collection is filled in a minute; a reranking takes time by its candidates,"
        " whatever the number of points. Without the graph, dense vectors are compared with all.\n\n"
        f"{_growth(findings.growth)}"
    )
    parts = [
        "# Benchmarks of the search",
        intro,
        notes,
        *(_section(case) for case in findings.cases),
        grown,
        f"![Milliseconds by the number of points]({picture})" if picture else "",
        "## Machine\n\n| | |\n|---|---|\n"
        + "\n".join(f"| {name} | {value} |" for name, value in findings.machine.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _case(store: EdgeStore, wanted: Wanted, timed: int, *, graph: bool) -> Case:
    latencies = {}
    candidates = {}
    for way, fields in WAYS.items():
        searches = queries(wanted.shape, WARM_UP + timed, **fields)
        seconds, busy = [], []
        for search in searches:
            started, computed = time.perf_counter(), time.process_time()
            run(store, COLLECTION, [search])
            seconds.append(1e3 * (time.perf_counter() - started))
            busy.append(1e3 * (time.process_time() - computed))
        ordered = sorted(seconds[WARM_UP:])
        latencies[way] = Latency(
            p50=statistics.median(ordered),
            p95=ordered[int(0.95 * (len(ordered) - 1))],
            cpu=statistics.median(busy[WARM_UP:]),
        )
        if "rerank" in fields:
            candidates[way] = statistics.mean(_candidates(store, search) for search in searches[:WARM_UP])
    return Case(wanted.name, wanted.shape, graph, latencies, candidates, wanted.goals)


def _candidates(store: EdgeStore, search: Search) -> int:
    """Number of points that the branches of a search find together."""
    options = search.options
    alone = [
        search.with_options(using=(kind,), rerank=None, limit=options.prefetch, with_payload=False)
        for kind in options.using
    ]
    return len({hit.id for hits in run(store, COLLECTION, alone) for hit in hits})


def _section(case: Case) -> str:
    head = ("search", "candidates reranked", "p50, ms", "p95, ms", "CPU, ms", "goal of the p50, ms", "")
    rows = []
    for way, latency in case.latencies.items():
        goal = case.goals.get(way)
        rows.append(
            (
                way,
                f"{case.candidates[way]:.0f}" if way in case.candidates else "",
                f"{latency.p50:.1f}",
                f"{latency.p95:.1f}",
                f"{latency.cpu:.1f}",
                "" if goal is None else f"{goal:.0f}",
                "" if goal is None else "met" if latency.p50 <= goal else "missed",
            )
        )
    shape = case.shape
    title = f"{case.name.capitalize()}: {shape.points:,} points, {shape.size} dimensions, {shape.rows} rows"
    before = "Without a graph, as a collection is before `bge-m3-qdrant bulk` or `optimize`."
    return f"## {title}\n\n{before}\n\n{table(head, rows)}"


def _growth(cases: Sequence[Case]) -> str:
    head = ("points", "graph", *(f"{way}, p50" for way in WAYS))
    rows = [
        (
            f"{case.shape.points:,}",
            "built" if case.graph else "none",
            *(f"{case.latencies[way].p50:.1f}" for way in WAYS),
        )
        for case in cases
    ]
    return table(head, rows, words=2)


def _where(findings: Findings) -> str:
    return f"{findings.machine.get('CPU', 'unknown CPU')}, {findings.machine.get('cores', '?')} cores"


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.search", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quick", action="store_true", help="few points, few queries")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "search", help="of the raw results")
    parser.add_argument(
        "--report", type=Path, help="default: docs/benchmarks-search.md; with --quick: beside the results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
