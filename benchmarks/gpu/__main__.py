"""The benchmark of the GPU, whole: a checkpoint, the sections, the report.

make bench ARGS="--device cuda:0"                        about 4 minutes
make bench ARGS="--device cuda:0 --only engine queries"  the other sections keep the results they have
python -m benchmarks.gpu --device cpu --quick            a small checkpoint, no GPU: it shows that everything runs
python -m benchmarks.gpu.report DIR                      the page again, from the results of another machine
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks.gpu.report import REPORT, write_report

ROOT = Path(__file__).parents[2]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what the command line asks for."""
    started_s = time.monotonic()
    from benchmarks.gpu.bench import Bench
    from benchmarks.gpu.checkpoint import made
    from benchmarks.gpu.run import run_sections
    from benchmarks.gpu.sections import SECTIONS
    from embedder import ConfigurationError
    from embedder.engines.devices import choose_devices

    options = _parse(list(SECTIONS), arguments)
    try:
        [options.device] = choose_devices(options.device)
    except ConfigurationError as error:
        raise SystemExit(f"--device: {error}") from error
    out = (options.out / "gpu" / "quick" if options.quick else options.out / "gpu").resolve()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or made(out / "checkpoint", quick=options.quick, device=options.device)
    print(f"checkpoint: {checkpoint}; {time.monotonic() - started_s:.1f} s since the start", flush=True)
    bench = Bench(options.device, checkpoint, quick=options.quick)
    try:
        left_s = options.limit - (time.monotonic() - started_s)
        run_sections(bench, out, options.only or SECTIONS, limit_s=left_s, watched=True)
    finally:
        bench.close()
    report = options.report or (REPORT if options.device != "cpu" and not options.quick else out / REPORT.name)
    write_report(out, report)
    print(f"{report}, from {out}; {time.monotonic() - started_s:.0f} s in all", flush=True)


def _parse(names: Sequence[str], arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks --device cuda:0", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", default="cuda:0", help="cuda:N, or cpu to try the benchmark (default: cuda:0)")
    parser.add_argument("--only", nargs="+", choices=names, help="these sections")
    parser.add_argument("--quick", action="store_true", help="a small checkpoint and few repetitions")
    parser.add_argument("--checkpoint", type=Path, help="a directory; default: random weights of full size")
    parser.add_argument("--limit", type=float, default=540.0, help="seconds after which no section is begun")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="directory of the raw results")
    parser.add_argument("--report", type=Path, help="default: docs/benchmarks-gpu.md; quick or on a CPU: beside them")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
