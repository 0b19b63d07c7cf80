"""The benchmark of the service: cold starts, HTTP beside a bulk job, bursts on the queue. `make bench-serving`.

make bench-serving                               about 4 minutes on two cores
make bench-serving ARGS="--quick"                half of one; its figures mean little
make bench-serving ARGS="--model /path --dtype int8 --device cpu"
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from benchmarks import bursts, cold_start, http_load
from benchmarks.bursts import GOAL, Bursts
from benchmarks.checkpoint import made
from benchmarks.cold_start import ColdStart, starts_table
from benchmarks.http_load import BULK, CLIENTS, Load
from benchmarks.machine import hardware, versions
from benchmarks.report import kept_notes
from benchmarks.sections import table

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks-serving.md"
SECONDS, ROUNDS = 20.0, 3
QUICK_SECONDS, QUICK_ROUNDS = 2.0, 1


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report says.

    Attributes:
        date: of the run, ISO 8601.
        quick: whether its figures mean little.
        model: model of the HTTP server, and its type.
        starts: one per transport, of random weights of full size.
        loads: one per route.
        bursts: of this worker and of the SDK alone.
        machine: hardware and versions.
    """

    date: str
    quick: bool
    model: str
    starts: Sequence[ColdStart]
    loads: Sequence[Load]
    bursts: Sequence[Bursts]
    machine: Mapping[str, str]


def main() -> None:
    """Run what the command line asks for."""
    options = _parse()
    quick = options.quick
    found = hardware()
    environment = {"MODEL_ID": options.model, "GPU_DEVICE": options.device, "DTYPE": options.dtype}
    checkpoint = made((options.out if quick else options.out.parent) / "checkpoint", quick=quick).resolve()
    print("cold starts", flush=True)
    rounds = QUICK_ROUNDS if quick else ROUNDS
    starts = cold_start.measure({**environment, "MODEL_ID": str(checkpoint)}, rounds)
    print("HTTP, alone and beside bulk jobs", flush=True)
    loads = http_load.measure(environment, QUICK_SECONDS if quick else SECONDS)
    print("bursts on the queue", flush=True)
    durations = bursts.measure(rounds)
    name = options.model if not Path(options.model).is_dir() else Path(options.model).name
    findings = Findings(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=quick,
        model=f"{name} ({options.dtype}, {options.device})",
        starts=starts,
        loads=loads,
        bursts=durations,
        machine={**found, **versions("runpod", "uvicorn", "fastapi", "qdrant-edge-py")},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "serving.json").write_text(json.dumps(asdict(findings), indent=1), encoding="utf-8")
    report = options.report or (options.out / "benchmarks-serving.md" if quick else REPORT)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(render(findings, notes=kept_notes(report)), encoding="utf-8")
    print(report)


def render(findings: Findings, *, notes: str) -> str:
    """The report as Markdown; `notes` is the section written by hand, markers included."""
    warning = "**A quick run: it shows that everything runs; its figures mean little.**\n\n" if findings.quick else ""
    machine = "\n".join(f"| {name} | {value} |" for name, value in findings.machine.items())
    where = f"{findings.machine.get('CPU', 'unknown CPU')}, {findings.machine.get('cores', '?')} cores"
    parts = [
        "# Benchmarks of the service",
        f"{warning}Made by `make bench-serving` on {findings.date[:10]}; {where}, which the clients share.",
        notes,
        _starts(findings),
        _loads(findings),
        _bursts(findings.bursts),
        f"## Machine\n\n| | |\n|---|---|\n{machine}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _starts(findings: Findings) -> str:
    size = "a small checkpoint" if findings.quick else "a checkpoint of full size"
    return (
        f"## Cold start\n\nSeconds from the start of the process to the first poll of the queue, or to `/ping` answered"
        f" with 200, or of the original design to its first query embedded, for {size} with random weights in the page"
        f" cache; medians of {len(findings.starts[0].seconds)}"
        " starts. The phases are those of the log; the rest is the interpreter, the service's own modules, and the"
        " checks before the first poll, a text embedded among them.\n\n" + starts_table(findings.starts)
    )


def _loads(findings: Findings) -> str:
    rows = []
    for load in findings.loads:
        for when, outcome in (("alone", load.idle), ("beside bulk jobs", load.beside)):
            rows.append(
                (
                    load.route,
                    when,
                    f"{outcome.n / outcome.seconds:.0f}",
                    f"{outcome.p50 * 1e3:.0f}",
                    f"{outcome.p95 * 1e3:.0f}",
                    f"{load.ingested:.0f}" if outcome is load.beside else "",
                )
            )
    lost = sum(load.lost for load in findings.loads)
    answered = sum(load.idle.n + load.beside.n for load in findings.loads)
    head = ("route", "", "requests/s", "p50, ms", "p95, ms", "passages ingested/s")
    return (
        f"## HTTP beside a bulk job\n\nModel: {findings.model}; the store is Qdrant Edge, in the same process."
        f" {CLIENTS} clients each ask again as soon as they are answered. `/search` is hybrid with a ColBERT rerank. A"
        f" bulk job stores {BULK} passages of about 120 tokens with all three vectors, one job after another."
        f" Requests: {answered + lost}; not answered with 200: {lost}.\n\n{table(head, rows)}"
    )


def _bursts(found: Sequence[Bursts]) -> str:
    rows = []
    ours, bare = found
    for what, field in (("64 jobs, a fresh worker", "first"), ("two times 64 jobs", "two"), ("640 jobs", "many")):
        mine, theirs = (statistics.median(getattr(one, field)) for one in (ours, bare))
        ratio = theirs / mine
        verdict = "met" if ratio >= GOAL else "missed"
        rows.append((what, f"{mine:.2f}", f"{theirs:.2f}", f"{100 * ratio:.0f} %", verdict))
    head = ("jobs of 10 ms", "this worker, s", "SDK alone with a limit of 128, s", "our rate, of the SDK's", "")
    return (
        "## Bursts on the queue\n\nFrom the submission to the last answer, medians. This worker runs at its defaults,"
        " four jobs concurrently; the SDK alone runs as many as it has taken. Goal: at least"
        f" {100 * GOAL:.0f} % of the SDK's rate.\n\n{table(head, rows)}"
    )


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--model", default="mini", help="as MODEL_ID")
    parser.add_argument("--dtype", default="auto", help="as DTYPE")
    parser.add_argument("--device", default="cpu", help="as GPU_DEVICE")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "serving", help="of the raw results")
    parser.add_argument(
        "--report", type=Path, help="default: docs/benchmarks-serving.md; with --quick: beside the results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
