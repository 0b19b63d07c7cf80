"""The raw results: values, and their JSON files."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

Status = Literal["ok", "not run", "not installed", "failed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a workload.

    Attributes:
        status: only `ok` has figures.
        reason: why it is not ok, or a remark.
        n: calls measured.
        p50: seconds of the median call.
        p95: seconds of the call at the nearest rank to 95 %.
        least: seconds of the quickest call.
        seconds: from the first call's start to the last one's end.
        texts: per call.
        tokens: per call, special tokens included; the mean where calls differ.
        figures: what only this workload has.
    """

    status: Status
    reason: str = ""
    n: int = 0
    p50: float = 0.0
    p95: float = 0.0
    least: float = 0.0
    seconds: float = 0.0
    texts: int = 0
    tokens: float = 0.0
    figures: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        durations: Sequence[float],
        *,
        seconds: float,
        texts: int = 1,
        tokens: float = 0.0,
        figures: dict[str, float] | None = None,
        reason: str = "",
    ) -> Outcome:
        """The outcome of calls that took so long each; at least one."""
        ordered = sorted(durations)
        return cls(
            status="ok",
            reason=reason,
            n=len(ordered),
            p50=statistics.median(ordered),
            p95=ordered[math.ceil(0.95 * len(ordered)) - 1],
            least=ordered[0],
            seconds=seconds,
            texts=texts,
            tokens=tokens,
            figures=figures or {},
        )

    @property
    def calls_per_second(self) -> float:
        """Calls per second over the whole workload, pauses included."""
        return self.n / self.seconds

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second of the median call."""
        return self.tokens / self.p50


@dataclass(slots=True)
class Result:
    """The results of one contender.

    Attributes:
        name: key of `benchmarks.plan.ENTRIES`.
        status: `ok` once it has loaded.
        reason: why it is not ok.
        date: of its start, ISO 8601, UTC.
        dtype: of its matrix products.
        device: name of the device.
        threads: of one matrix product on the CPU.
        versions: of the libraries it loaded.
        startup: seconds from the start of the process to the end of each phase.
        detail: what the contender says of its start.
        memory: bytes: `ready rss`, `ready uss`, and the peak since the start after each workload.
        outcomes: per workload.
    """

    name: str
    status: Status = "ok"
    reason: str = ""
    date: str = ""
    dtype: str = ""
    device: str = ""
    threads: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    startup: dict[str, float] = field(default_factory=dict)
    detail: str = ""
    memory: dict[str, float] = field(default_factory=dict)
    outcomes: dict[str, Outcome] = field(default_factory=dict)

    def good(self, workload: str) -> Outcome | None:
        """The outcome, if it has figures."""
        outcome = self.outcomes.get(workload)
        return outcome if outcome is not None and outcome.status == "ok" else None


@dataclass(frozen=True, slots=True)
class Run:
    """The facts that all contenders of a run share.

    Attributes:
        date: ISO 8601, UTC.
        quick: whether the checkpoint and the limits were the small ones.
        device: as asked for.
        seconds: of all contenders of the last call.
        hardware: by name, for a person.
        model: sizes of the checkpoint; `parameters`, and `linear` for those of the encoder's linear layers.
        lengths: tokens per text of each set of texts.
    """

    date: str
    quick: bool
    device: str
    seconds: float
    hardware: dict[str, str]
    model: dict[str, int]
    lengths: dict[str, list[int]]


def write(directory: Path, value: Result | Run) -> None:
    """Write `NAME.json`, or `run.json`, replacing the file in one step."""
    path = directory / f"{value.name if isinstance(value, Result) else 'run'}.json"
    part = path.with_suffix(".part")
    part.write_text(json.dumps(asdict(value), indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def read_result(path: Path) -> Result:
    """Read what `write` wrote."""
    raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    outcomes = {name: Outcome(**outcome) for name, outcome in raw.pop("outcomes").items()}
    return Result(**raw, outcomes=outcomes)


def read_run(directory: Path) -> Run:
    """Read what `write` wrote."""
    return Run(**json.loads((directory / "run.json").read_text(encoding="utf-8")))
