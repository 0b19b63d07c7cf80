"""The plots of the report, as one SVG."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")

from matplotlib.figure import Figure

from benchmarks.goals import goals_of
from benchmarks.ratios import growth_sizes, ratios
from benchmarks.results import Result, Run

STYLE = {
    "svg.hashsalt": "benchmarks",
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
}
_COLOURS = {
    "original": "#b0413e",
    "m3serve": "#d99a2b",
    "packed": "#20639b",
    "packed-int8": "#3caea3",
    "packed-16bit": "#5b8db8",
    "packed-float32": "#8a6fb0",
    "packed-1-lane": "#999999",
    "packed-first": "#bbbbbb",
}
_LEVELS = {1: "query", 8: "concurrent-8", 32: "concurrent-32", 128: "concurrent-128"}


def draw(run: Run, results: Mapping[str, Result], path: Path) -> None:
    """Ratios, throughput by concurrency, growth of time, lengths of the mixed passages."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(11, 8.5), layout="constrained")
        axes = figure.subplots(2, 2)
        _ratios(axes[0][0], run, results)
        _throughput(axes[0][1], results)
        _growth(axes[1][0], results)
        _lengths(axes[1][1], run)
        cpu = f"{run.hardware.get('CPU', '')}, {run.hardware.get('cores', '?')} cores, {run.date[:10]}"
        note = "; a quick run on a small checkpoint" if run.quick else ""
        figure.suptitle(f"{cpu}{note}", fontsize=9, color="#555555")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _ratios(axes: Any, run: Run, results: Mapping[str, Result]) -> None:
    found = [
        (ratio, ratio.value)
        for ratio in ratios(results, run.model["linear"], goals_of(run.hardware))
        if ratio.value is not None and ratio.against in {"original", "m3serve"} and ratio.at_least
    ]
    axes.set_title("How many times quicker (black line: goal)")
    if not found:
        _nothing(axes)
        return
    found.reverse()
    labels = [f"{_short(ratio.figure)}, {_type(ratio.contender)}" for ratio, _ in found]
    for place, (ratio, value) in enumerate(found):
        axes.barh(place, value - 1, left=1, color=_COLOURS[ratio.against])
        axes.annotate(f" {value:.3g}x", (1, place), va="center", fontsize=8, color="white", weight="bold")
        if ratio.goal:
            axes.plot([ratio.goal] * 2, [place - 0.4, place + 0.4], color="black", linewidth=1.8)
    axes.set_yticks(range(len(found)), labels, fontsize=8)
    axes.set_xscale("log")
    axes.axvline(1, color="#555555", linewidth=0.8)
    axes.margins(x=0.15)
    axes.grid(visible=False, axis="y")
    for against in ("original", "m3serve"):
        axes.barh(0, 0, left=1, color=_COLOURS[against], label=f"against {against}")
    _legend(axes)


def _throughput(axes: Any, results: Mapping[str, Result]) -> None:
    axes.set_title("Short queries per second, by concurrent clients")
    drawn = False
    for key, result in results.items():
        outcomes = {level: result.good(workload) for level, workload in _LEVELS.items()}
        points = {level: outcome.calls_per_second for level, outcome in outcomes.items() if outcome}
        if len(points) > 2:
            axes.plot(points.keys(), points.values(), "o-", color=_COLOURS[key], label=f"{key} ({result.dtype})")
            drawn = True
    if not drawn:
        _nothing(axes)
        return
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(list(_LEVELS), [str(level) for level in _LEVELS])
    axes.set_xlabel("clients")
    axes.set_ylabel("queries/s")
    _legend(axes)


def _growth(axes: Any, results: Mapping[str, Result]) -> None:
    axes.set_title("Time against number of short texts, dense only")
    drawn = False
    for key, result in results.items():
        outcome = result.good("growth")
        if outcome is None:
            continue
        sizes = growth_sizes(outcome)
        seconds = [outcome.figures[f"seconds of {size}"] for size in sizes]
        axes.plot(sizes, seconds, "o-", color=_COLOURS[key], label=f"{key} ({result.dtype})")
        linear = [seconds[0] * size / sizes[0] for size in sizes]
        axes.plot(sizes, linear, ":", color="#555555", label="linear from the first")
        drawn = True
    if not drawn:
        _nothing(axes)
        return
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("texts")
    axes.set_ylabel("seconds")
    _legend(axes)


def _lengths(axes: Any, run: Run) -> None:
    axes.set_title("Lengths of the mixed passages")
    axes.hist(run.lengths["mixed"], bins=range(0, 545, 32), color="#20639b", edgecolor="white")
    axes.yaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("tokens")
    axes.set_ylabel("texts")


def _legend(axes: Any) -> None:
    """Below the axes, where it hides nothing."""
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)


def _nothing(axes: Any) -> None:
    axes.text(0.5, 0.5, "not measured", ha="center", va="center", transform=axes.transAxes, color="#555555")
    axes.set_xticks([])
    axes.set_yticks([])


def _short(figure: str) -> str:
    return figure.partition(",")[0]


def _type(contender: str) -> str:
    return contender.rstrip(")").replace("(", ", ").rpartition(", ")[2]
