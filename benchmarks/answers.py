"""The benchmark of answers: what the service adds to the model, beside an older revision. `make bench-answers`.

make bench-answers                               about 5 minutes on two cores
make bench-answers ARGS="--quick"                a few texts, one round; its figures mean little
make bench-answers ARGS="--baseline v1.0.0"      another revision of this repository to compare with

Behind a stub engine whose vectors are ready, everything that takes time is the service's. Each side runs in a process
of its own per round, old and new in turn: see `benchmarks.answers_side`.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, Literal

from benchmarks import tokenizer
from benchmarks.answers_side import BATCH_MAX_TOKENS, SIZE, Measured, Task
from benchmarks.machine import hardware, versions
from benchmarks.report import kept_notes
from benchmarks.sections import table
from benchmarks.texts import Writer

ROOT: Final = Path(__file__).parents[1]
REPORT: Final = ROOT / "docs" / "benchmarks-answers.md"
SIDE: Final = ROOT / "benchmarks" / "answers_side.py"
BASELINE: Final = "aa57ad8d184f8569188d364d7d25d30a6d634bab"
"""The last revision that wrote an answer's numbers more than once."""

ROUNDS: Final = 5
REQUESTS: Final = 3
"""Timed requests of a process; its figure is their median."""

QUICK_TEXTS_DIVISOR: Final = 16
MB: Final = 1e6

Times = Literal["total", "returned"]


@dataclass(frozen=True, slots=True)
class Case:
    """A request, and what is asked of its answer.

    Attributes:
        name: of the case in the report.
        transport: that carries it.
        texts: number of texts.
        tokens: of each text.
        options: fields of the request beside its texts.
        judged: the time that the goal is about.
        goal: how many times faster than the baseline.
        same_bytes: whether both sides write the same bytes; if not, the same numbers.
    """

    name: str
    transport: Literal["http", "queue"]
    texts: int
    tokens: int
    options: Mapping[str, Any]
    judged: Times
    goal: float
    same_bytes: bool

    def task(self, texts: Sequence[str], checkpoint: Path, requests: int, *, parts: bool) -> Task:
        """Run a process of either side and read what it measured."""
        fields = {"texts": list(texts), "isPassage": True, **self.options}
        return Task(self.transport, fields, self.tokens * len(texts), str(checkpoint), requests, parts)


CASES: Final = (
    Case("lists over HTTP", "http", 64, 117, {}, "total", 3.0, same_bytes=False),
    Case("lists on the queue", "queue", 64, 117, {}, "returned", 1.4, same_bytes=True),
    Case(
        "base64 float16 over HTTP",
        "http",
        512,
        139,
        {"encoding": "base64", "dtype": "float16"},
        "total",
        3.0,
        same_bytes=True,
    ),
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """Both sides of a case.

    Attributes:
        case: what was asked.
        texts: how many texts; fewer than the case's in a quick run.
        old: the baseline, one value per round.
        new: this tree, one value per round.
    """

    case: Case
    texts: int
    old: list[Measured] = field(default_factory=list)
    new: list[Measured] = field(default_factory=list)

    def ratio(self, figure: str) -> float:
        """The baseline's figure divided by the new one: the median over the pairs of a round."""
        return self._ratio(lambda side: side.ms[figure])

    def memory_ratio(self) -> float:
        """The same for the peak of memory."""
        return self._ratio(lambda side: side.peak_bytes)

    def _ratio(self, figure: Callable[[Measured], float]) -> float:
        return statistics.median(figure(old) / figure(new) for old, new in zip(self.old, self.new, strict=True))


@dataclass(frozen=True, slots=True)
class Findings:
    """All that the report says.

    Attributes:
        date: of the run, ISO 8601.
        quick: whether its figures mean little.
        baseline: hash of the revision.
        tokenizer: its origin.
        comparisons: one per case.
        machine: hardware and versions.
    """

    date: str
    quick: bool
    baseline: str
    tokenizer: str
    comparisons: Sequence[Comparison]
    machine: Mapping[str, str]


class MeasurementError(Exception):
    """A side could not be measured, or both sides answer differently."""


def main() -> int:
    """Run what the command line asks for; returns the exit status, 1 if a goal is missed."""
    options = _parse()
    try:
        return _run(options)
    except MeasurementError as error:
        print(error, file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    machine = hardware()
    baseline = _resolved(options.baseline)
    comparisons, origin = [], ""
    with tempfile.TemporaryDirectory() as directory:
        old = Path(directory) / "baseline"
        _export(baseline, old)
        origin = tokenizer.name_of(tokenizer.made(Path(directory) / "tokenizer"))
        for case in CASES:
            print(case.name, flush=True)
            comparisons.append(_compared(case, old, Path(directory), quick=options.quick))
    findings = Findings(
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=options.quick,
        baseline=baseline,
        tokenizer=origin,
        comparisons=comparisons,
        machine={**machine, **versions("orjson", "pybase64", "uvicorn", "fastapi", "runpod")},
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "answers.json").write_text(json.dumps(asdict(findings), indent=1), encoding="utf-8")
    report = options.report or (options.out / "benchmarks-answers.md" if options.quick else REPORT)
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(render(findings, notes=kept_notes(report)), encoding="utf-8")
    print(report)
    return 0 if options.quick or all(_is_met(comparison) for comparison in comparisons) else 1


def _resolved(revision: str) -> str:
    """The hash of a revision of this repository."""
    command = ["git", "rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    if done.returncode:
        raise MeasurementError(f"this clone has no revision {revision}; fetch its whole history, or set --baseline")
    return done.stdout.strip()


def _export(revision: str, folder: Path) -> None:
    """The files of a revision, as a folder."""
    command = ["git", "archive", "--format=tar", revision]
    archive = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def _compared(case: Case, old: Path, folder: Path, *, quick: bool) -> Comparison:
    comparison = Comparison(case, max(1, case.texts // QUICK_TEXTS_DIVISOR) if quick else case.texts)
    checkpoint = tokenizer.made(folder / "tokenizer")
    writer = Writer(checkpoint / "tokenizer.json", seed=case.tokens)
    texts = [writer.text(case.tokens) for _ in range(comparison.texts)]
    sides = []
    for measurements, tree, parts in ((comparison.old, old, False), (comparison.new, ROOT, True)):
        path = folder / f"task-{'new' if parts else 'old'}.json"
        task = case.task(texts, checkpoint, 1 if quick else REQUESTS, parts=parts)
        path.write_text(json.dumps(asdict(task)), encoding="utf-8")
        sides.append((measurements, tree, path))
    for number in range(1 if quick else ROUNDS):
        for measurements, tree, path in sides if number % 2 == 0 else reversed(sides):
            measurements.append(_measured(tree, path))
        before, after = comparison.old[-1], comparison.new[-1]
        if case.same_bytes and before.digest != after.digest:
            raise MeasurementError(f"{case.name}: the two sides do not answer the same")
        print(f"  {before.ms['total']:.0f} ms, {after.ms['total']:.0f} ms", flush=True)
    return comparison


def _measured(tree: Path, task: Path) -> Measured:
    """One side, in a process of its own. -P: the folder of the program is not searched for modules."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "RUNPOD_LOG_LEVEL": "ERROR"}
    command = [sys.executable, "-P", str(SIDE), str(task)]
    done = subprocess.run(command, cwd=tree, env=environment, check=False, capture_output=True, text=True)
    if done.returncode:
        raise MeasurementError(f"{tree}: {done.stderr[-2000:]}")
    return Measured(**json.loads(done.stdout.splitlines()[-1]))


def render(findings: Findings, *, notes: str) -> str:
    """The report as Markdown; `notes` is the section written by hand, markers included."""
    warning = "**A quick run: it shows that everything runs; its figures mean little.**\n\n" if findings.quick else ""
    machine = "\n".join(f"| {name} | {value} |" for name, value in findings.machine.items())
    flags = findings.machine.get("CPU flags", "unknown flags")
    where = f"{findings.machine.get('CPU', 'unknown CPU')} ({flags}), {findings.machine.get('cores', '?')} cores"
    parts = [
        "# Benchmarks of answers",
        f"{warning}Made by `make bench-answers` on {findings.date[:10]}; {where}. Old: `{findings.baseline[:12]}`.",
        notes,
        _times(findings),
        _memory(findings.comparisons),
        _parts(findings.comparisons),
        f"## Machine\n\n| | |\n|---|---|\n{machine}",
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _times(findings: Findings) -> str:
    rows = []
    for comparison in findings.comparisons:
        case = comparison.case
        for figure, words in _figures(case):
            judged = figure == case.judged
            rows.append(
                (
                    _title(comparison),
                    words,
                    f"{_median(comparison.old, figure):.0f}",
                    f"{_median(comparison.new, figure):.0f}",
                    f"{comparison.ratio(figure):.2f} x",
                    f"{case.goal:g} x" if judged else "",
                    ("met" if comparison.ratio(figure) >= case.goal else "missed") if judged else "",
                )
            )
    rounds = len(findings.comparisons[0].old)
    head = ("answer", "until", "old, ms", "new, ms", "faster", "goal", "")
    return (
        f"## Time\n\nBoth sides answer the same requests for all three kinds of vectors, with {SIZE} components, behind"
        " the same stub engine: its float32 rows are ready, and it tells the tokens of the texts apart for the sparse"
        f" weights, no more. The tokenizer is {findings.tokenizer}, a batch has at most {BATCH_MAX_TOKENS} tokens."
        f" Medians of {rounds} rounds, each a process per side, old and new in turn, with {REQUESTS} requests after one"
        " that is not timed; the ratio is the median of the rounds' own ratios. CPU: of the whole process, the client"
        " over HTTP included; what else runs on the machine moves it little. Over HTTP the client reads the bytes and"
        " parses nothing. On the queue the SDK is unmodified: it formats the answer for its log, and `json.dumps`"
        f" writes what it posts.\n\n{table(head, rows, words=2)}"
    )


def _figures(case: Case) -> Sequence[tuple[str, str]]:
    if case.transport == "http":
        return (("total", "the last byte is read"), ("cpu", "the same, CPU"))
    return (
        ("returned", "the handler returns"),
        ("returned cpu", "the same, CPU"),
        ("total", "the SDK has written it"),
        ("cpu", "the same, CPU"),
    )


def _memory(comparisons: Sequence[Comparison]) -> str:
    rows = []
    for comparison in comparisons:
        ready, old, new = (
            statistics.median(values) / MB
            for values in (
                [side.ready_bytes for side in comparison.new],
                [side.peak_bytes for side in comparison.old],
                [side.peak_bytes for side in comparison.new],
            )
        )
        ratio = comparison.memory_ratio()
        size = comparison.new[0].answer_bytes / MB
        rows.append(
            (
                _title(comparison),
                f"{size:.0f}",
                f"{ready:.0f}",
                f"{old:.0f}",
                f"{new:.0f}",
                f"{ratio:.2f} x",
                "met" if ratio >= 1 else "missed",
            )
        )
    head = ("answer", "answer, MB", "before, MB", "old peak, MB", "new peak, MB", "old / new", "")
    return (
        "## Memory\n\nThe most that was ever resident (`VmHWM`) of the process, its client and the ready vectors"
        f" included; before: what was resident before the first request. Goal: no higher.\n\n{table(head, rows)}"
    )


def _parts(comparisons: Sequence[Comparison]) -> str:
    rows = []
    names = ("parse", "embed", "render", "write", "check", "values", "sent")
    for comparison in comparisons:
        cells = (f"{_median(comparison.new, name):.1f}" if name in comparison.new[0].ms else "" for name in names)
        rows.append((_title(comparison), *cells))
    return (
        "## Where the time of the new side goes\n\nMilliseconds. Embed: tokenizer, pool and stub. Write: the JSON from"
        " the arrays' buffers, or what of it is written before base64. Values: the objects that the queue takes. Check:"
        " the limit on the size. Sent: from the first byte that the client reads to the last; base64 is written"
        f" meanwhile.\n\n{table(('answer', *names), rows)}"
    )


def _title(comparison: Comparison) -> str:
    return f"{comparison.texts} x {comparison.case.tokens} tokens, {comparison.case.name}"


def _median(sides: Sequence[Measured], figure: str) -> float:
    return statistics.median(side.ms[figure] for side in sides)


def _is_met(comparison: Comparison) -> bool:
    return comparison.ratio(comparison.case.judged) >= comparison.case.goal and comparison.memory_ratio() >= 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.answers", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--baseline", default=BASELINE, help="revision to compare with")
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench" / "answers", help="of the raw results")
    parser.add_argument(
        "--report", type=Path, help="default: docs/benchmarks-answers.md; with --quick: beside the results"
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
