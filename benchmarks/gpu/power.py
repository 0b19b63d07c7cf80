"""The clock and the power of the GPU while something runs: under load it may run slower than for an instant."""

from __future__ import annotations

import statistics
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

_PERIOD_MS = 50


class PowerMeter:
    """Samples `nvidia-smi` inside a `with` block; without the tool, or on a CPU, it has no figures.

    Args:
        device: `cpu` or `cuda:N`.
    """

    def __init__(self, device: str) -> None:
        self._index = None if device == "cpu" else device.partition(":")[2] or "0"
        self._process: subprocess.Popen[str] | None = None
        self.figures: dict[str, float] = {}
        """Means: `clock_mhz` of the multiprocessors, `power_w`."""

    def __enter__(self) -> Self:
        """Start sampling."""
        if self._index is not None:
            command = ["nvidia-smi", f"--id={self._index}", "--query-gpu=clocks.sm,power.draw"]
            command += ["--format=csv,noheader,nounits", f"--loop-ms={_PERIOD_MS}"]
            try:
                self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            except OSError:
                self._process = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop, and take the means of the second half: the first has the clock of an idle card."""
        if self._process is None:
            return
        self._process.terminate()
        written, _ = self._process.communicate()
        samples = [sample for line in written.splitlines() for sample in _sample(line)]
        late = samples[len(samples) // 2 :]
        if late:
            clocks, watts = zip(*late, strict=True)
            self.figures = {"clock_mhz": statistics.mean(clocks), "power_w": statistics.mean(watts)}


@contextmanager
def metered(device: str) -> Iterator[dict[str, float]]:
    """A dictionary that has the figures after the block."""
    figures: dict[str, float] = {}
    with PowerMeter(device) as meter:
        yield figures
    figures |= meter.figures


def _sample(line: str) -> list[tuple[float, float]]:
    """Clock and power of a line; nothing for a line that is cut off."""
    try:
        clock, watts = map(float, line.split(","))
    except ValueError:
        return []
    return [(clock, watts)]
