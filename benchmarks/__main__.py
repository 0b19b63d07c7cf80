"""The whole benchmark: a checkpoint, the contenders one after the other, the report. Run with `make bench`.

On a GPU another benchmark runs, which compares this engine with the ceilings of the card: see `benchmarks.gpu`.

make bench                                       about 25 minutes on two cores
make bench ARGS="--quick"                        about 3, on a small checkpoint; its figures mean little
make bench ARGS="--only packed packed-int8"      the others keep the results they have
make bench ARGS="--device cuda:0"                the benchmark of the GPU (--help after it lists its options)
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.checkpoint import made
from benchmarks.machine import hardware
from benchmarks.plan import ENTRIES
from benchmarks.report import write_report
from benchmarks.results import Result, Run, read_result, write
from benchmarks.shape import Shape
from benchmarks.texts import Texts
from benchmarks.workloads import WORKLOADS

ROOT = Path(__file__).parents[1]
REPORT = ROOT / "docs" / "benchmarks.md"
_PATIENCE = 1800.0
"""Seconds that one contender may take in all."""


def main() -> None:
    """Run what the command line asks for."""
    if _device() != "cpu":
        from benchmarks.gpu.__main__ import main as measure_gpu

        measure_gpu(sys.argv[1:])
        return
    options = _parse()
    started = time.monotonic()
    out = (options.out / "quick" if options.quick else options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    checkpoint = options.checkpoint or made(out / "checkpoint", quick=options.quick)
    shape = Shape.read(checkpoint)
    texts = Texts.make(checkpoint, shape.max_length)
    texts.write(out / "texts.json")
    _into_page_cache(checkpoint, {ENTRIES[name].kind for name in options.only or ENTRIES})
    found = hardware()
    for name in options.only or ENTRIES:
        (out / f"{name}.json").unlink(missing_ok=True)
    for name in options.only or ENTRIES:
        reason = "" if options.only else _needless(name, out)
        if reason:
            print(f"{name}: not run: {reason}", flush=True)
            write(out, Result(name, "not run", reason))
        else:
            print(f"{name}: {ENTRIES[name].title}", flush=True)
            _contend(name, checkpoint, out, options)
        run = Run(
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            quick=options.quick,
            device=options.device,
            seconds=round(time.monotonic() - started, 1),
            hardware=found,
            model=_model(shape),
            lengths={key: value[:512] for key, value in texts.lengths.items()},
        )
        write(out, run)
    report = options.report or (out / "benchmarks.md" if options.quick else REPORT)
    write_report(out, report)
    print(f"{report} and {report.with_suffix('.svg').name}, from {out}; {time.monotonic() - started:.0f} s in all")


def _into_page_cache(checkpoint: Path, kinds: AbstractSet[str]) -> None:
    """Read weights and libraries once, so that the first contender does not wait for the disk more than the others."""
    for path in checkpoint.iterdir():
        if path.is_file():
            with path.open("rb") as file:
                while file.read(1 << 24):
                    pass
    for kind, library in (("original", "FlagEmbedding"), ("m3serve", "m3serve"), ("packed", "embedder.encoder")):
        if kind in kinds:
            command = [sys.executable, "-c", f"import {library}"]
            subprocess.run(command, cwd=ROOT, check=False, capture_output=True)


def _needless(name: str, out: Path) -> str:
    """Why a contender need not run: the defaults run in a type like its own already."""
    entry = ENTRIES[name]
    default = out / "packed.json"
    if entry.dtype == "auto" or not default.is_file():
        return ""
    found = read_result(default)
    equal_types = {"16bit": {"float16", "bfloat16"}}.get(entry.dtype, {entry.dtype})
    return f"the defaults run in {found.dtype} already" if found.status == "ok" and found.dtype in equal_types else ""


def _contend(name: str, checkpoint: Path, out: Path, options: argparse.Namespace) -> None:
    workloads = [workload for workload in ENTRIES[name].workloads if workload in (options.workloads or WORKLOADS)]
    command = [sys.executable, "-m", "benchmarks.contender", name]
    command += ["--checkpoint", str(checkpoint.resolve()), "--texts", str(out / "texts.json")]
    command += ["--out", str(out), "--device", options.device, "--scale", str(options.scale)]
    command += ["--quick"] * options.quick + ["--workloads", *workloads]
    cache = out / "cache"  # what a contender keeps for its next start stays out of the user's own
    if name == "packed-first":
        shutil.rmtree(cache, ignore_errors=True)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "XDG_CACHE_HOME": str(cache)}
    with (out / f"{name}.log").open("w", encoding="utf-8") as log:
        begun = time.monotonic()
        process = subprocess.Popen([*command, "--started", repr(begun)], cwd=ROOT, env=environment, stderr=log)
        try:
            code = process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            code = process.wait()
        except BaseException:
            process.kill()
            raise
    path = out / f"{name}.json"
    result = read_result(path) if path.is_file() else Result(name, "failed")
    if code:
        how = f"by signal {-code}" if code < 0 else f"with status {code}"
        result.status = "failed"
        result.reason = f"its process ended {how}; {path.with_suffix('.log').name} has its last words"
        write(out, result)
    if result.reason:
        print(f"  {result.status}: {result.reason}", flush=True)


def _model(shape: Shape) -> dict[str, int]:
    names = ("hidden", "layers", "heads", "intermediate", "vocabulary", "positions", "parameters", "linear")
    return {name: getattr(shape, name) for name in names}


def _device() -> str:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--device", default="cpu")
    device: str = parser.parse_known_args()[0].device
    return device


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--only", nargs="+", choices=list(ENTRIES), help="these contenders")
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), help="these workloads")
    parser.add_argument("--checkpoint", type=Path, help="a directory; default: random weights of full size")
    parser.add_argument("--device", default="cpu", help="cpu; cuda:N runs the benchmark of the GPU")
    parser.add_argument("--quick", action="store_true", help="a small checkpoint and short limits")
    parser.add_argument("--scale", type=float, default=1.0, help="of all time limits")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "bench", help="directory of the raw results")
    parser.add_argument("--report", type=Path, help="default: docs/benchmarks.md; with --quick: beside the raw results")
    return parser.parse_args()


if __name__ == "__main__":
    main()
