"""Runs sections: prints and writes every row as soon as it is measured; a failure is a result of its section."""

from __future__ import annotations

import faulthandler
import time
import traceback
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from benchmarks.gpu.bench import Bench, NotRunError
from benchmarks.gpu.results import Row, Section, Status
from benchmarks.gpu.sections import SECTIONS, Plan

_HANG_FACTOR, _HANG_EXTRA_S = 2.0, 60.0
"""A section that is not done after this many times its cap, and so many seconds more, ends the process."""


def run_sections(bench: Bench, out: Path, names: Iterable[str], *, limit_s: float, watched: bool = False) -> None:
    """Measure these sections and write `NAME.json` for each.

    Args:
        bench: what is measured.
        out: directory of the results.
        names: of the sections, in order.
        limit_s: seconds after which no further section is begun.
        watched: whether a section that hangs ends the process, with its stack on the standard error.
    """
    started_s = time.monotonic()
    if bench.on_gpu:
        torch.cuda.init()  # type: ignore[no-untyped-call]  # statistics of memory fail before
        torch.cuda.set_device(bench.device)
    for name in names:
        left_s = limit_s - (time.monotonic() - started_s)
        section = Section(name, "failed", "it did not end")
        section.write(out)
        if left_s <= 0:
            section.status, section.reason = "not run", f"the limit of {limit_s:.0f} s was reached"
        else:
            plan = SECTIONS[name]
            cap_s = min(plan.cap_s, left_s)
            if watched:
                faulthandler.dump_traceback_later(_HANG_FACTOR * plan.cap_s + _HANG_EXTRA_S, exit=True)
            _run(bench, out, section, Plan(plan.measure, cap_s))
            if watched:
                faulthandler.cancel_dump_traceback_later()
        section.write(out)
        reason = f": {section.reason}" if section.reason else ""
        print(f"{name}: {section.status}{reason}; {section.seconds:.1f} s", flush=True)


def _run(bench: Bench, out: Path, section: Section, plan: Plan) -> None:
    started_s = time.perf_counter()
    if bench.on_gpu:
        torch.cuda.init()  # type: ignore[no-untyped-call]
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(bench.device)
    status: Status = "ok"
    reason = ""
    try:
        for row in plan.measure(bench):
            section.rows.append(row)
            section.seconds = round(time.perf_counter() - started_s, 2)
            section.write(out)
            if "kernel" not in row:  # a profile's many names are for the page
                print(f"  {shown(row)}", flush=True)
            if section.seconds > plan.cap_s:
                reason = f"stopped after {section.seconds:.0f} s, its cap is {plan.cap_s:.0f} s"
                break
    except NotRunError as error:
        status, reason = "not run", str(error)
    except Exception as error:  # noqa: BLE001 - whatever is raised is a result of the benchmark
        status, reason = "failed", f"{type(error).__name__}: {error}"[:500]
        traceback.print_exc()
    section.status, section.reason = status, reason
    section.seconds = round(time.perf_counter() - started_s, 2)
    if bench.on_gpu:
        section.device_peak_bytes = torch.cuda.max_memory_allocated(bench.device)


def shown(row: Row) -> str:
    """A row as one short line."""
    if "figure" in row:
        return f"{row['figure']}: {row['value']}"
    return ", ".join(f"{name} {_value(value)}" for name, value in row.items())


def _value(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{name} {_value(each)}" for name, each in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
