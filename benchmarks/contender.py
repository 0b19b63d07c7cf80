"""One contender in a process of its own: load it, run its workloads, write NAME.json after each.

    python -m benchmarks.contender packed --checkpoint DIR --texts FILE --out DIR --workloads query mixed

Without --started, start-up is counted from the first line of this module.
"""

from __future__ import annotations

import time

_BEGAN = time.monotonic()

import argparse  # noqa: E402 - the start of the process is what is measured
import asyncio  # noqa: E402
import os  # noqa: E402
from collections.abc import Sequence  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from datetime import UTC, datetime  # noqa: E402
from functools import partial  # noqa: E402
from pathlib import Path  # noqa: E402

from benchmarks import memory  # noqa: E402
from benchmarks.plan import ENTRIES, FULL, QUICK, Entry, Limits  # noqa: E402
from benchmarks.results import Outcome, Result, write  # noqa: E402
from benchmarks.seam import Contender, Load, NotInstalledError, Setup  # noqa: E402
from benchmarks.shape import Shape  # noqa: E402
from benchmarks.texts import Texts  # noqa: E402
from benchmarks.workloads import WORKLOADS, Bench  # noqa: E402


@dataclass(frozen=True, slots=True)
class Arguments:
    """The arguments of the command line."""

    name: str
    checkpoint: Path
    texts: Path
    out: Path
    device: str
    limits: Limits
    started: float
    workloads: Sequence[str]


async def run(arguments: Arguments) -> Result:
    """Load, measure, and write what there is after each step."""
    entry = ENTRIES[arguments.name]
    result = Result(arguments.name, date=datetime.now(UTC).isoformat(timespec="seconds"))
    setup = Setup(arguments.checkpoint, arguments.device, entry.dtype_on(arguments.device), entry.lanes)
    texts = Texts.read(arguments.texts)

    def phase(name: str) -> None:
        result.startup[name] = round(time.monotonic() - arguments.started, 3)

    try:
        contender = await _loader(entry)(setup, phase)
    except NotInstalledError as error:
        result.status, result.reason = "not installed", str(error)
        write(arguments.out, result)
        return result
    except Exception as error:  # noqa: BLE001 - whatever a contender raises is a result of the benchmark
        result.status, result.reason = "failed", f"it did not load: {type(error).__name__}: {error}"
        write(arguments.out, result)
        return result
    bench = _bench(arguments, contender, texts)
    await bench.timed(texts.queries[-1:], query=True)
    phase("answered")
    _describe(result, contender, arguments.device)
    write(arguments.out, result)
    for place, workload in enumerate(arguments.workloads):
        task = asyncio.create_task(bench.run(workload))
        done, _ = await asyncio.wait({task}, timeout=arguments.limits.give_up)
        if not done:
            result.outcomes[workload] = Outcome("failed", f"gave up after {arguments.limits.give_up:.0f} s")
            for later in arguments.workloads[place + 1 :]:
                result.outcomes[later] = Outcome("not run", f"{workload} did not end")
            write(arguments.out, result)
            print(f"  {workload}: {result.outcomes[workload].reason}", flush=True)
            os._exit(0)  # its threads cannot be stopped, and nothing after this would be measured undisturbed
        result.outcomes[workload] = task.result()
        result.memory[f"peak after {workload}"] = memory.peak()
        write(arguments.out, result)
        print(f"  {workload}: {_line(task.result())}", flush=True)
    result.memory |= _on_device(arguments.device)
    write(arguments.out, result)
    await contender.close()
    return result


def _loader(entry: Entry) -> Load:
    if entry.kind == "original":
        from benchmarks.original import load as load_original

        return load_original
    if entry.kind == "m3serve":
        from benchmarks.m3serve_contender import load as load_m3serve

        return load_m3serve
    from benchmarks.packed import load as load_packed

    return load_packed


def _bench(arguments: Arguments, contender: Contender, texts: Texts) -> Bench:
    import psutil

    from benchmarks.ceiling import measure

    return Bench(
        contender,
        texts,
        Shape.read(arguments.checkpoint),
        arguments.limits,
        device=arguments.device,
        ceiling=partial(measure, contender.dtype, arguments.device),
        memory=psutil.virtual_memory().available if arguments.device == "cpu" else float("inf"),
    )


def _describe(result: Result, contender: Contender, device: str) -> None:
    import torch

    from benchmarks.machine import device_name, versions

    result.dtype, result.detail = contender.dtype, contender.detail
    result.device, result.threads, result.versions = device_name(device), torch.get_num_threads(), versions()
    result.memory = {**memory.ready(), "peak when ready": memory.peak()}


def _on_device(device: str) -> dict[str, float]:
    if device == "cpu":
        return {}
    import torch

    return {"device peak": float(torch.cuda.max_memory_allocated(device))}


def _line(outcome: Outcome) -> str:
    if outcome.status != "ok":
        return f"{outcome.status}: {outcome.reason}"
    return (
        f"p50 {outcome.p50 * 1000:.0f} ms, p95 {outcome.p95 * 1000:.0f} ms, "
        f"min {outcome.least * 1000:.0f} ms, n = {outcome.n}, {outcome.seconds:.0f} s"
    )


def main() -> None:
    """Run the contender that the command line names."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.contender", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", choices=list(ENTRIES))
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True, help="what benchmarks.texts wrote")
    parser.add_argument("--out", type=Path, required=True, help="directory of the results")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--workloads", nargs="*", choices=list(WORKLOADS), help="default: those of its plan")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--scale", type=float, default=1.0, help="of all time limits")
    parser.add_argument("--started", type=float, default=_BEGAN, help="time.monotonic() when the process was started")
    options = parser.parse_args()
    arguments = Arguments(
        name=options.name,
        checkpoint=options.checkpoint,
        texts=options.texts,
        out=options.out,
        device=options.device,
        limits=(QUICK if options.quick else FULL).scaled(options.scale),
        started=options.started,
        workloads=ENTRIES[options.name].workloads if options.workloads is None else options.workloads,
    )
    asyncio.run(run(arguments))


if __name__ == "__main__":
    main()
