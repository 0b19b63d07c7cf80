"""The benchmark of the sink: what a request costs to build, and an ingest beside its halves. `make bench-sink`.

make bench-sink                                  about 5 minutes on two cores
make bench-sink ARGS="--quick"                   under one; its figures mean little
make bench-sink ARGS="--model /path --dtype int8 --device cpu"
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path

from benchmarks import ingest, messages
from benchmarks.ingest import GOAL, Ingest
from benchmarks.machine import hardware, versions
from benchmarks.messages import Way
from benchmarks.report import kept_notes
from benchmarks.sections import table
from service.settings import Settings

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks-sink.md"
POINTS, TEXTS, REPEATS, ROUNDS = 32, 2000, 5, 5
QUICK_POINTS, QUICK_TEXTS, QUICK_REPEATS, QUICK_ROUNDS = 2, 100, 1, 1
TIMES_GOAL = 20
_LIBRARIES = ("qdrant-client", "qdrant-edge-py", "grpcio", "protobuf", "pydantic")


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report says.

    Attributes:
        date: of the run, ISO 8601.
        quick: whether its figures mean little.
        model: name and how it computes.
        points: in one request.
        ways: to build one.
        ingests: one per store.
        machine: hardware and versions.
    """

    date: str
    quick: bool
    model: str
    points: int
    ways: Sequence[Way]
    ingests: Sequence[Ingest]
    machine: Mapping[str, str]


def main() -> None:
    """Run what the command line asks for."""
    options = _parse()
    quick = options.quick
    found = hardware()
    points = QUICK_POINTS if quick else POINTS
    print(f"building requests of {points} points", flush=True)
    ways = messages.measure(points, QUICK_REPEATS if quick else REPEATS)
    count = options.texts or (QUICK_TEXTS if quick else TEXTS)
    print(f"ingesting {count} texts", flush=True)
    ingests, label = ingest.measure(_settings(options), count, QUICK_ROUNDS if quick else ROUNDS)
    name = options.model if not Path(options.model).is_dir() else Path(options.model).name
    findings = Findings(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        model=f"{name} ({label})",
        points=points,
        ways=ways,
        ingests=ingests,
        machine={**found, **versions(*_LIBRARIES)},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "sink.json").write_text(json.dumps(asdict(findings), indent=1), encoding="utf-8")
    report = options.report or (options.out / "benchmarks-sink.md" if quick else REPORT)
    write_report(findings, report)
    print(report)


def write_report(findings: Findings, report: Path) -> None:
    """The tables as `report` and the timeline beside it as `.svg`; what was written by hand stays."""
    picture = report.with_suffix(".svg")
    report.parent.mkdir(parents=True, exist_ok=True)
    drawn = find_spec("matplotlib") is not None
    if drawn:
        from benchmarks.timeline import draw

        draw(findings.ingests, picture, title=f"{findings.model}; {_where(findings)}; {findings.date[:10]}")
    else:
        print("matplotlib is not installed: no timeline")
    text = render(findings, notes=kept_notes(report), picture=picture.name if drawn else "")
    report.write_text(text, encoding="utf-8")


def render(findings: Findings, *, notes: str, picture: str) -> str:
    """The report as Markdown.

    Args:
        findings: the figures.
        notes: the section written by hand, markers included.
        picture: file name of the timeline; empty without one.
    """
    warning = "**A quick run: it shows that everything runs; its figures mean little.**\n\n" if findings.quick else ""
    parts = [
        "# Benchmarks of the sink",
        f"{warning}Made by `make bench-sink` on {findings.date[:10]}. Medians; {_where(findings)}.",
        notes,
        _requests(findings),
        _ingests(findings),
        f"![When the model computed and when the store wrote]({picture})" if picture else "",
        "## Machine\n\n| | |\n|---|---|\n"
        + "\n".join(f"| {name} | {value} |" for name, value in findings.machine.items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _requests(findings: Findings) -> str:
    ours = findings.ways[-1]
    rows = [
        (
            way.name,
            f"{way.build * 1e3:.1f}",
            f"{way.ready * 1e3:.1f}",
            f"{way.nbytes / 1e6:.1f}",
            f"{way.build / ours.build:.1f} x",
            f"{way.ready / ours.ready:.1f} x",
        )
        for way in findings.ways
    ]
    ratio = findings.ways[0].ready / ours.ready
    verdict = "met" if ratio >= TIMES_GOAL else "missed"
    head = ("way", "built, ms", "ready, ms", "MB", "built, against this sink", "ready, against this sink")
    return (
        f"## One request of {findings.points} points\n\n"
        f"Each point has a dense vector of {messages.SIZE}, {messages.WEIGHTS} sparse weights and {messages.ROWS} x"
        f" {messages.SIZE} ColBERT values. Built: the request as the client takes it. Ready: the bytes that are sent,"
        f" which this sink builds directly. Goal: ready at least {TIMES_GOAL} times quicker than by the models of REST;"
        f" it is {ratio:.1f} times: {verdict}.\n\n{table(head, rows)}"
    )


def _ingests(findings: Findings) -> str:
    rows = []
    for one in findings.ingests:
        timeline = one.timeline
        rows.append(
            (
                one.store,
                *(f"{one.texts / statistics.median(seconds):.0f}" for seconds in (one.model, one.alone, one.whole)),
                _share(one.of_model),
                _share(one.of_slower),
                "met" if one.of_slower >= GOAL else "missed",
                _share(timeline.hidden),
                _share(timeline.idle),
            )
        )
    head = (
        "store",
        "model alone, texts/s",
        "store alone, texts/s",
        "ingest, texts/s",
        "of the model",
        "of the slower",
        "",
        "store beside model",
        "model idle",
    )
    return (
        f"## Ingest of {findings.ingests[0].texts} passages\n\n"
        f"Model: {findings.model}. Each text is two to four sentences of the bundled corpus, all three vectors are"
        f" stored, {len(findings.ingests[0].whole)} rounds. The model alone: `Embedder.embed`. The store alone:"
        " `Writer`, with the same points, into an empty collection. Ingest: one job of the worker, from its input"
        f" to its answer. Goal: at least {_share(GOAL)} of the rate of the slower half. Store beside model: the share"
        " of the store's time in which the model computed. The double is a process of its own on the same cores, in"
        f" Python, and slower than a server.\n\n{table(head, rows)}"
    )


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f} %"


def _where(findings: Findings) -> str:
    return f"{findings.machine.get('CPU', 'unknown CPU')}, {findings.machine.get('cores', '?')} cores"


def _settings(options: argparse.Namespace) -> Settings:
    return Settings.from_environment(
        {
            "MODEL_ID": options.model,
            "GPU_DEVICE": options.device,
            "DTYPE": options.dtype,
            "MAX_RESPONSE_MB": "1000",
        }
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sink", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--texts", type=int, help="of the ingest")
    parser.add_argument("--quick", action="store_true", help="few points, few texts, one round")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "sink", help="of the raw results")
    parser.add_argument(
        "--report", type=Path, help="default: docs/benchmarks-sink.md; with --quick: beside the results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
